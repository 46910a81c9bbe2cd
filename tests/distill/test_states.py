"""The target's states on disk are those that it computes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from specdec.convert.source import open_source
from specdec.distill.corpus import read_shard
from specdec.distill.llama import States, TorchLlama
from specdec.distill.states import (
    CachedTeacher,
    OnlineTeacher,
    StateShape,
    check_disk,
    disk_need,
    missing_states,
    write_states,
)
from specdec.errors import InvalidInputError
from tests.distill.runs import write_shard

LAYERS = (0, 1)


class Run:
    def __init__(self, target: Path, folder: Path) -> None:
        source = open_source(target, None)
        self.model = TorchLlama.from_source(source, dtype=torch.float32)
        config = source.config
        self.shape = StateShape("a", config.hidden, LAYERS, config.kv_heads, config.head_dim)
        self.text, self.states = folder / "text", folder / "states"
        for name, seed in (("a", 0), ("b", 1)):
            write_shard(self.text, name, seed=seed)

    def write(self) -> None:
        write_states(self.text, self.states, ["a", "b"], self.model, self.shape)


@pytest.fixture
def run(tiny_gguf: Path, tmp_path: Path) -> Run:
    return Run(tiny_gguf, tmp_path)


def test_cached_states_are_the_targets(run: Run) -> None:
    run.write()
    cached, online = CachedTeacher(run.states, run.shape), OnlineTeacher(run.model, LAYERS)
    items = [*read_shard(run.text / "b.npz")[3:7], read_shard(run.text / "a.npz")[0]]
    found, expected = cached(items), online(items)
    assert found.hidden.dtype == torch.float16
    for row, item in enumerate(items):
        n = len(item)
        assert torch.allclose(found.hidden[row, :n], expected.hidden[row, :n], atol=2e-3)
        assert not found.hidden[row, n:].any()
        for layer in LAYERS:
            for part, other in (
                (found.keys[layer], expected.keys[layer]),
                (found.values[layer], expected.values[layer]),
            ):
                assert torch.allclose(part[row, :, :n], other[row, :, :n], atol=5e-3)


def test_values_beyond_half_precision_are_cut(run: Run) -> None:
    class Loud:
        def states(self, ids: torch.Tensor, layers: object = ()) -> States:
            huge = torch.full((*ids.shape, 4), 1e6)
            return States(huge, {}, {})

    found = OnlineTeacher(Loud(), ())(read_shard(run.text / "a.npz")[:2])
    assert found.hidden.isfinite().all()


def test_need_is_what_is_written(run: Run) -> None:
    need = disk_need(run.text, ["a", "b"], run.shape)
    run.write()
    size = sum(path.stat().st_size for path in run.states.glob("*.npy"))
    headers = 4 * 128
    assert size == need + headers
    check_disk(run.states, need)


def test_states_are_kept_until_something_changes(run: Run) -> None:
    run.write()
    files = {path: path.stat().st_mtime_ns for path in run.states.iterdir()}
    run.write()
    assert {path: path.stat().st_mtime_ns for path in run.states.iterdir()} == files

    def missing(shape: StateShape = run.shape) -> list[str]:
        return missing_states(run.text, run.states, ["a", "b"], shape)

    assert missing() == []
    fewer = StateShape("a", run.shape.hidden, (1,), run.shape.kv_heads, run.shape.head_dim)
    assert missing(fewer) == []
    assert torch.equal(
        CachedTeacher(run.states, fewer)(read_shard(run.text / "a.npz")[:2]).keys[1],
        CachedTeacher(run.states, run.shape)(read_shard(run.text / "a.npz")[:2]).keys[1],
    )
    other = StateShape("b", run.shape.hidden, LAYERS, run.shape.kv_heads, run.shape.head_dim)
    assert missing(other) == ["a", "b"]
    write_shard(run.text, "b", seed=7)
    assert missing() == ["b"]
    (run.states / "a.kv.npy").unlink()
    assert missing() == ["a", "b"]


def test_a_killed_writer_leaves_nothing_that_looks_whole(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(source: object, destination: Path) -> None:
        if str(destination).endswith("a.kv.npy"):
            raise KeyboardInterrupt
        replace(source, destination)  # type: ignore[arg-type]

    replace = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            run.write()
    assert missing_states(run.text, run.states, ["a"], run.shape) == ["a"]
    run.write()
    assert sorted(path.name for path in run.states.iterdir()) == sorted(
        f"{name}.{suffix}" for name in "ab" for suffix in ("hidden.npy", "kv.npy", "json")
    )


def test_states_that_cannot_be_read(run: Run) -> None:
    run.write()
    (run.states / "a.kv.npy").write_bytes(b"")
    teacher = CachedTeacher(run.states, run.shape)
    with pytest.raises(InvalidInputError, match="to have them made again"):
        teacher(read_shard(run.text / "a.npz")[:1])
    (run.states / "a.json").write_text(json.dumps({"layers": [5]}))
    with pytest.raises(InvalidInputError, match="to have them made again"):
        teacher(read_shard(run.text / "a.npz")[:1])


def test_a_full_disk_is_said_before(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 2 * 10**9})()
    monkeypatch.setattr("specdec.distill.states.shutil.disk_usage", lambda path: usage)
    check_disk(run.states / "not" / "there", 10**8)
    with pytest.raises(InvalidInputError, match=r"take 1\.5 GB and 2\.0 GB are free"):
        check_disk(run.states / "not" / "there", int(1.5e9))


def test_no_place_for_states(run: Run) -> None:
    run.states.touch()
    with pytest.raises(InvalidInputError, match="cannot be written"):
        run.write()
    assert np.load(run.text / "a.npz")["offsets"][0] == 0
