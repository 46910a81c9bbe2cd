"""Compares verification in blocks with decoding one token at a time, bit for bit, on one backend.

    python -m bench.npu_exactness FOLDER --tokens 300 --json npu_exactness.json

For models of fixed shape, whose graphs run padded: first the target writes greedy text with one
token in each step; then the same text is verified in blocks of random length, some drafts right and
the rest wrong. Of every row that a right draft leads to, the logits are compared with the plain
ones; of every step, the bytes of the past before and after, and of every commit, its columns with
those of plain decoding.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from specdec import Generator, Model, _core

FloatRows = np.ndarray[Any, np.dtype[np.float32]]


@dataclass
class Report:
    """What was compared."""

    model: str
    device: str
    widths: tuple[int, ...]
    plain_steps: int = 0
    plain_seconds: float = 0.0
    block_steps: int = 0
    block_seconds: float = 0.0
    steps_of_width: dict[int, int] = field(default_factory=dict)
    rows: int = 0
    """Rows that a right draft leads to, the first row of each step among them."""
    rows_after_wrong_drafts: int = 0
    """Of these, rows in steps that held a wrong draft."""
    different_rows: int = 0
    largest_difference: float = 0.0
    flips: list[dict[str, float]] = field(default_factory=list)
    """Rows with another argmax: the gap between both tokens in the plain logits."""
    past_bytes: int = 0
    """Bytes of K/V compared before and after steps."""
    past_bytes_changed: int = 0
    column_bytes: int = 0
    """Bytes of committed K/V compared with plain decoding's."""
    column_bytes_different: int = 0

    @property
    def exact(self) -> bool:
        return not (self.different_rows or self.past_bytes_changed or self.column_bytes_different)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backend", default="qnn")
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--prompt", default="Why is the sky blue? Explain it in detail.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = Model.load(args.folder, backend=args.backend)
    if model.plan is None:
        parser.error(f"{args.folder} is not a model of fixed shape")
    generator = Generator(model)
    prompt = generator.encode(args.prompt)
    report = Report(model.name, model.device, model.plan.widths)
    plain = _prefilled(model, prompt)
    text, rows = _decode(plain, prompt[-1], args.tokens, report)
    print(model.tokenizer.decode(text), flush=True)
    _verify(model, prompt, text, rows, plain, np.random.default_rng(args.seed), report)
    if args.json is not None:
        args.json.write_text(json.dumps({**asdict(report), "exact": report.exact}, indent=1))
    print(json.dumps(asdict(report)))
    print("bit-identical" if report.exact else "NOT bit-identical")
    return 0 if report.exact else 1


def _prefilled(model: Model, prompt: list[int]) -> _core.Decoder:
    """A decoder that holds all but the prompt's last token."""
    decoder = model.new_decoder(capacity=model.config.context, max_logit_rows=32)
    assert model.plan is not None
    widest = model.plan.widths[-1]
    for first in range(0, len(prompt) - 1, widest):
        piece = prompt[first : min(first + widest, len(prompt) - 1)]
        decoder.forward(piece, 1)
        decoder.commit(len(piece))
    return decoder


def _decode(
    decoder: _core.Decoder, last: int, count: int, report: Report
) -> tuple[list[int], FloatRows]:
    """Greedy text, one token in each step, and the logits that each came from."""
    text: list[int] = []
    rows = []
    start = time.monotonic()
    for index in range(count):
        rows.append(np.array(decoder.forward([last], 1)[0]))
        decoder.commit(1)
        last = int(rows[-1].argmax())
        text.append(last)
        report.plain_steps, report.plain_seconds = index + 1, time.monotonic() - start
        if index % 20 == 19:
            print(f"{index + 1} plain tokens, {report.plain_seconds:.0f} s", flush=True)
    return text, np.stack(rows)


def _verify(
    model: Model,
    prompt: list[int],
    text: list[int],
    plain_rows: FloatRows,
    plain: _core.Decoder,
    random: np.random.Generator,
    report: Report,
) -> None:
    assert model.plan is not None
    widths = model.plan.widths
    decoder = _prefilled(model, prompt)
    buffers, plain_buffers = decoder.buffers(), plain.buffers()
    past = sorted(name for name in buffers if name.startswith("past_"))
    inputs = [prompt[-1], *text]  # inputs[i] leads to plain_rows[i]
    start, at = time.monotonic(), 0
    while at < len(text):
        width = int(random.choice(widths, p=_shares(len(widths))))
        size = min(int(random.integers(2, width + 1)), len(text) - at)
        right = int(random.integers(1, size + 1))
        wrong = random.integers(0, model.config.vocab, size - right).tolist()
        before = {name: buffers[name].copy() for name in past}
        found = np.array(decoder.forward(inputs[at : at + right] + wrong, size))[:right]
        for name in past:
            report.past_bytes += before[name].nbytes
            changed = before[name].view(np.uint8) != buffers[name].view(np.uint8)
            report.past_bytes_changed += int(changed.sum())
        _compare_rows(found, plain_rows[at : at + right], bool(wrong), at, report)
        columns = slice(decoder.length, decoder.length + right)
        decoder.commit(right)
        for name in past:
            axis = 3 if name.startswith("past_key") else 2
            index = (slice(None),) * axis + (columns,)
            mine = np.ascontiguousarray(buffers[name][index]).view(np.uint8)
            other = np.ascontiguousarray(plain_buffers[name][index]).view(np.uint8)
            report.column_bytes += mine.size
            report.column_bytes_different += int((mine != other).sum())
        at += right
        chosen = next(w for w in widths if w >= size)
        report.steps_of_width[chosen] = report.steps_of_width.get(chosen, 0) + 1
        report.block_steps, report.block_seconds = report.block_steps + 1, time.monotonic() - start
        if report.block_steps % 10 == 0:
            differing = f"{report.different_rows} rows differ"
            print(
                f"{report.block_steps} blocks, {at} tokens, {differing}, "
                f"{report.block_seconds:.0f} s",
                flush=True,
            )


def _shares(count: int) -> list[float]:
    """How often each width is taken: the narrowest most often, as in use."""
    if count == 1:
        return [1.0]
    return [0.75, *[0.25 / (count - 1)] * (count - 1)]


def _compare_rows(
    found: FloatRows, plain: FloatRows, after_wrong: bool, at: int, report: Report
) -> None:
    report.rows += len(found)
    report.rows_after_wrong_drafts += len(found) if after_wrong else 0
    for offset, (mine, other) in enumerate(zip(found, plain, strict=True)):
        if np.array_equal(mine, other):
            continue
        report.different_rows += 1
        difference = float(np.abs(mine - other).max())
        report.largest_difference = max(report.largest_difference, difference)
        if mine.argmax() != other.argmax():
            gap = float(other.max() - other[mine.argmax()])
            report.flips.append({"token": at + offset, "gap": gap})


if __name__ == "__main__":
    raise SystemExit(main())
