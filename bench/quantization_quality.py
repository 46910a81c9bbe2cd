"""How far each way of quantising for the NPU is from the float model.

    python -m bench.quantization_quality smollm2-135m [--choices w8a16:gptq w4a16-b32:rtn]

A choice is LAYOUT:METHOD, or LAYOUT:METHOD:MEGABYTES for a mixed one. Each is quantised with the
same calibration texts, and its graphs run on the CPU, on the path that generation takes. The texts
to measure on are those of ``bench/text`` (prose, and conversations that SmolLM2 wrote); prose is
given apart as well.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from bench.sources import gguf
from specdec.convert.source import open_source
from specdec.model import Model
from specdec.quantize import Settings, calibration_texts, quantize
from specdec.quantize.quality import (
    FloatReference,
    Logits,
    Quality,
    compare_texts,
    model_logits,
    summarise,
)
from specdec.quantize.texts import HELD_OUT, Speech, read, shipped

TEXT = Path(__file__).parent / "text"
LENGTH = 512
CHOICES = ("w4a16-b32m:gptq", "w8a16:gptq", "w8a16:rtn", "w4a16-b16:gptq", "w4a16-b32:gptq")


def main() -> None:
    arguments = _parse_arguments()
    base = Settings(
        context=LENGTH,
        widths=(32,),
        calibration=arguments.calibration,
        written_tokens=arguments.written_tokens,
    )
    with tempfile.TemporaryDirectory() as scratch, gguf(arguments.source) as source:
        texts = calibration_texts(source, base)
        print(f"calibrated with {sum(map(len, texts))} tokens", flush=True)
        checkpoint = open_source(source, None)
        speech = Speech.of(checkpoint)
        prose = [*shipped(HELD_OUT), *read(TEXT / "prose.txt")]
        held_out = [piece for text in prose for piece in speech.encode(text, LENGTH)]
        count = len(held_out)
        for text in read(TEXT / "written_by_smollm2.txt"):
            held_out += speech.encode(text, LENGTH)
        reference = FloatReference(checkpoint, held_out)
        results: list[Quality] = []

        def measure(choice: str, logits: Logits) -> None:
            found = compare_texts(reference, logits)
            parts = {"all": found, "prose": found[:count], "own": found[count:]}
            for name, part in parts.items():
                results.append(summarise(f"{choice} {name}", part))
                _print(results[-1])
            if arguments.json:
                document = [entry.as_dict() for entry in results]
                arguments.json.write_text(json.dumps(document, indent=2))

        print(f"{'choice and text':37} positions perplexity  ratio   top-1  KL")
        measure("float", reference.logits)
        for choice in arguments.choices:
            layout, method, *mixed = choice.split(":")
            settings = replace(
                base, layout=layout, method=method, mixed=float(mixed[0]) if mixed else None
            )
            folder = quantize(source, Path(scratch) / "made", settings, texts=texts, replace=True)
            measure(choice, model_logits(Model.load(folder, backend="cpu"), held_out))


def _print(entry: Quality) -> None:
    print(
        f"{entry.choice:37} {entry.positions:8d} {entry.perplexity:10.3f} "
        f"{entry.perplexity_ratio:7.4f} {entry.top1:7.4f} {entry.kl:8.5f}",
        flush=True,
    )


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", help="a GGUF file, or a known model's name")
    parser.add_argument("--choices", nargs="+", default=list(CHOICES))
    parser.add_argument("--calibration", type=Path, help="a text file to calibrate with")
    parser.add_argument("--written-tokens", type=int, default=4096)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
