"""How far each layout's distributions are from those of the dequantised float model.

    python -m bench.layout_quality smollm2-135m [--layouts fused nbits8] [--json FILE]

Top-1 agreement, mean KL(float || layout) in nats and perplexity, over the text in ``bench/text``
(prose, and conversations that SmolLM2 wrote itself). The reference is the layout ``float32``, which
``--check-reference`` compares with a forward pass in numpy that shares no code with specdec.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bench.graph_runner import GraphRunner, session_options
from bench.sources import gguf
from specdec.convert import LAYOUTS, convert
from tests.convert.numpy_llama import NumpyLlama

REFERENCE = "float32"
TEXT = Path(__file__).parent / "text"
CHUNK = 512  # tokens of prose that are scored together, and the most of a conversation
CHECKED = 48  # tokens that the reference is checked on

Logprobs = NDArray[np.float32]


@dataclass(frozen=True)
class Quality:
    layout: str
    positions: int
    top1: float
    kl: float
    kl_standard_error: float
    perplexity: float
    perplexity_ratio: float  # to the float model's


def main() -> None:
    arguments = _parse_arguments()
    with tempfile.TemporaryDirectory() as scratch, gguf(arguments.source) as source:
        folder = convert(source, Path(scratch) / REFERENCE, layout=REFERENCE)
        documents = _documents(folder, arguments.positions)
        runner = _runner(folder)
        if arguments.check_reference:
            _check_reference(source, runner, documents[0][:CHECKED])
        reference = list(_logprobs(runner, documents))
        results = []
        print(f"{'layout':16} positions  top-1   KL      +-       perplexity  ratio")
        for layout in arguments.layouts:
            folder = convert(source, Path(scratch) / layout, layout=layout, replace=True)
            quality = _compare(layout, documents, reference, _logprobs(_runner(folder), documents))
            results.append(quality)
            print(
                f"{layout:16} {quality.positions:9d}  {quality.top1:.4f}  {quality.kl:.5f} "
                f"{quality.kl_standard_error:.5f}  {quality.perplexity:10.4f}  "
                f"{quality.perplexity_ratio:.4f}",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(result) for result in results], indent=2))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", help="a GGUF file, or a known model's name")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--positions", type=int, default=2000, help="score at least so many")
    parser.add_argument("--check-reference", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _documents(folder: Path, positions: int) -> list[list[int]]:
    """Token lists that are scored each on its own, the prose first."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    prose = encode((TEXT / "prose.txt").read_text(encoding="utf-8"))
    documents = [prose[start : start + CHUNK] for start in range(0, len(prose), CHUNK)]
    conversations = (TEXT / "written_by_smollm2.txt").read_text(encoding="utf-8").split("\f\n")
    for conversation in conversations:
        if sum(map(len, documents)) >= positions:
            break
        documents.append(encode(conversation)[:CHUNK])
    return documents


def _runner(folder: Path) -> GraphRunner:
    # Several sessions take turns here: threads that spin for the next run would slow the others.
    options = session_options(0, {"session.force_spinning_stop": "1"})
    return GraphRunner(folder / "model.onnx", CHUNK, options)


def _logprobs(runner: GraphRunner, documents: list[list[int]]) -> Iterator[Logprobs]:
    for document in documents:
        logits = runner.step(document, 0)
        logits -= logits.max(-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        yield logits


def _compare(
    layout: str,
    documents: list[list[int]],
    reference: list[Logprobs],
    measured: Iterator[Logprobs],
) -> Quality:
    divergences, agreements, losses, reference_losses = [], [], [], []
    for document, expected, found in zip(documents, reference, measured, strict=True):
        divergences.append((np.exp(expected) * (expected - found)).sum(-1))
        agreements.append(expected.argmax(-1) == found.argmax(-1))
        following = np.array(document[1:])
        rows = np.arange(len(following))
        losses.append(-found[rows, following])
        reference_losses.append(-expected[rows, following])
    divergence = np.concatenate(divergences).astype(np.float64)
    loss = float(np.concatenate(losses).mean(dtype=np.float64))
    reference_loss = float(np.concatenate(reference_losses).mean(dtype=np.float64))
    return Quality(
        layout=layout,
        positions=len(divergence),
        top1=float(np.concatenate(agreements).mean()),
        kl=float(divergence.mean()),
        kl_standard_error=float(divergence.std() / np.sqrt(len(divergence))),
        perplexity=float(np.exp(loss)),
        perplexity_ratio=float(np.exp(loss - reference_loss)),
    )


def _check_reference(source: Path, runner: GraphRunner, tokens: list[int]) -> None:
    difference = np.abs(runner.step(tokens, 0) - NumpyLlama(source).logits(tokens)).max()
    print(f"{REFERENCE} against numpy over {len(tokens)} tokens: logits differ by {difference:.2e}")


if __name__ == "__main__":
    main()
