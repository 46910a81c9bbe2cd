"""What ``"auto"`` loses to plain decoding with a drafter that knows nothing.

    python -m bench.bad_drafter [--kinds chat code] [--prompts 4] [--turns 3]

A copy of the drafter has the codes of its weights shuffled: it costs what the drafter costs,
and its drafts are good for nothing. Plain decoding and ``"auto"`` with that drafter, as it is and
with lookups, write the same prompts in turns; plain decoding once more, so that it can be seen how
much is chance. The texts must be the same, or the run fails.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import onnx

from specdec import Generator, Model, SamplingParams
from specdec.distill.evaluate.prompts import KINDS, load_kinds

_SETTLE_SECONDS = 0.02  # threads of the step before go to sleep
PLAIN, AGAIN, BAD, LOOKUP = "plain", "plain, again", "bad drafter", "bad drafter, lookups"


def shuffled(folder: Path, made: Path, seed: int = 1) -> Path:
    """A copy of a drafter's folder, of layout ``fused``, whose weights are in no order."""
    shutil.copytree(folder, made)
    graph = onnx.load(str(made / "model.onnx"), load_external_data=False).graph
    rng = np.random.default_rng(seed)
    data = np.memmap(made / "model.onnx.data", np.uint8, "r+")
    for tensor in graph.initializer:
        if not tensor.name.endswith(".codes"):
            continue
        where = {entry.key: entry.value for entry in tensor.external_data}
        begin = int(where["offset"])
        codes = data[begin : begin + int(where["length"])]
        codes[:] = rng.permutation(codes)
    data.flush()
    described = json.loads((made / "model.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256((made / "model.onnx.data").read_bytes()).hexdigest()
    described["files"]["model.onnx.data"]["sha256"] = digest
    (made / "model.json").write_text(json.dumps(described), encoding="utf-8")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    options = _parse(arguments)
    target = Model.load(options.target, threads=options.threads)
    good = Model.load(options.draft, threads=options.threads)
    params = SamplingParams(temperature=0, max_tokens=options.tokens)
    with tempfile.TemporaryDirectory() as folder:
        bad = Model.load(shuffled(good.folder.path, Path(folder) / "bad"), threads=options.threads)
        writers = {
            PLAIN: Generator(target),
            AGAIN: Generator(target),
            BAD: Generator(target, bad, lookup=False),
            LOOKUP: Generator(target, bad),
        }
        prompts = [
            (kind.name, prompt)
            for kind in load_kinds(options.kinds, options.prompts)
            for prompt in kind.prompts
        ]
        seconds: dict[tuple[str, int], list[float]] = {}
        for _ in range(options.turns):
            for index, (_kind, prompt) in enumerate(prompts):
                texts = []
                for name, writer in writers.items():
                    time.sleep(_SETTLE_SECONDS)
                    texts.append(writer.generate(prompt, params).tokens)
                    stats = writer.stats
                    spent = sum(stats.seconds.values()) - stats.seconds["prefill"]
                    seconds.setdefault((name, index), []).append(spent / stats.tokens)
                if any(text != texts[0] for text in texts):
                    sys.exit(f"another text for prompt {index}: a bug")
        print("| mode | tokens/s | over plain | acceptance |")
        print("|---|---|---|---|")
        for name, writer in writers.items():
            per_token = [median(seconds[name, i]) for i in range(len(prompts))]
            plain = [median(seconds[PLAIN, i]) for i in range(len(prompts))]
            print(
                f"| {name} | {len(prompts) / sum(per_token):.1f} | "
                f"{sum(plain) / sum(per_token):.3f} | "
                f"{writer.stats.acceptance_rate:.0%} |"
            )
        del writers, bad


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", default="smollm2-135m", help="of layout fused")
    parser.add_argument("--draft", default="smollm2-135m-drafter")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["chat", "code"])
    parser.add_argument("--prompts", type=int, default=4, help="of each kind")
    parser.add_argument("--tokens", type=int, default=96, help="of each text, at most")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--turns", type=int, default=3)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
