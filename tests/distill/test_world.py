"""Two processes that train together are one with twice the batches a step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from specdec.distill.build import read_weights
from specdec.distill.options import Options
from specdec.distill.pipeline import distill
from tests.distill.runs import write_shard
from tests.tiny_gguf import write_tiny_gguf

_COMMAND = """
import sys
from pathlib import Path
from specdec.distill.options import Options
from specdec.distill.pipeline import distill
distill(sys.argv[1], Path(sys.argv[2]), Options(**eval(sys.argv[3])))
for thread in Path("/proc/self/task").glob("*/comm"):
    name = thread.read_text().strip()
    if "gloo" in name:  # it could abort the interpreter while that ends
        sys.exit(f"the thread {name} outlived the process group")
"""


def test_two_processes(tmp_path: Path) -> None:
    target = write_tiny_gguf(tmp_path / "target.gguf", layers=4)
    write_shard(tmp_path / "text", "a", seed=0, conversations=120)
    values = {
        "text": str(tmp_path / "text"),
        "tokens": 1500,
        "batch_tokens": 150,
        "target_layers": (0, 2),
        "head": 200,
        "dtype": "float32",
        "warmup": 1,
        "prompts_per_kind": 0,
    }
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    script = tmp_path / "script.py"
    script.write_text(_COMMAND)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--standalone", "--local-addr", "127.0.0.1"),
            *(str(script), str(target), str(tmp_path / "two"), repr(values)),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    distill(str(target), tmp_path / "one", Options(**values, accumulate=2))  # type: ignore[arg-type]
    two, one = (
        read_weights(tmp_path / f"{name}.work/train/checkpoint.pt") for name in ("two", "one")
    )
    first = read_weights(tmp_path / "one.work/initial.pt")
    moved = max((one[name] - first[name]).abs().max().item() for name in one)
    for name, weights in one.items():
        # Sums are in another order, which Adam's first steps blow up where gradients are tiny.
        assert (two[name] - weights).abs().mean().item() < 0.02 * moved, name
    assert moved > 1e-3
    assert torch.load(tmp_path / "two.work/initial.pt").keys() == first.keys()
