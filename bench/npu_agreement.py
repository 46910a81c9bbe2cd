"""Compares a folder's graphs on the NPU (or its simulator) with the same graphs on the CPU.

    python -m bench.npu_agreement FOLDER --positions 160

Both take the same held-out text, a step of at most 32 tokens at a time, each with its own K/V. That
they agree is what lets quality be measured on the CPU, where it is a hundred times faster.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from specdec import Model
from specdec.quantize.quality import model_logits
from specdec.quantize.texts import HELD_OUT, shipped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--positions", type=int, default=160)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for backend in ("cpu", "qnn"):
        model = Model.load(args.folder, backend=backend)
        if model.head_ids is not None:
            parser.error(f"{args.folder} has a trimmed head: there is no perplexity of its text")
        text = model.tokenizer.encode(" ".join(shipped(HELD_OUT)))
        first = [] if model.first_token is None else [model.first_token]
        tokens = [*first, *text][: args.positions + 1]
        start = time.monotonic()
        rows.append(model_logits(model, [tokens])(0).astype(np.float64))
        print(f"{model.device}: {len(tokens)} tokens, {time.monotonic() - start:.0f} s", flush=True)
    cpu, npu = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in rows)
    following = tokens[2:]
    losses = [-float(x[np.arange(len(following)), following].mean()) for x in (cpu[:-1], npu[:-1])]
    kl = (np.exp(cpu) * (cpu - npu)).sum(axis=-1)
    result = {
        "positions": len(cpu),
        "top1": float((cpu.argmax(-1) == npu.argmax(-1)).mean()),
        "mean_kl": float(kl.mean()),
        "largest_kl": float(kl.max()),
        "largest_logit_difference": float(np.abs(rows[0] - rows[1]).max()),
        "perplexity_cpu": float(np.exp(losses[0])),
        "perplexity_npu": float(np.exp(losses[1])),
    }
    print(json.dumps(result, indent=1))
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
