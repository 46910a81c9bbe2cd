"""What the target computes for a text: its final hidden states, and keys and values of some layers.

They are kept on disk, computed once for each shard, or computed again for each batch. A shard's
are ``NAME.hidden.npy`` float16 [N, hidden], ``NAME.kv.npy`` float16 [N, layers, 2, kv_heads,
head_dim], keys after their rotation, and ``NAME.json``, written last, which says what they are of.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specdec.distill.corpus import Conversation, read_shard, shard_sha256
from specdec.distill.llama import States
from specdec.errors import InvalidInputError

HALF_BYTES = 2
_MOST_HALF = 65504.0
_BATCH_TOKENS = 4096  # of a batch of the target's, with padding
_SPARE_DISK = 1 << 30  # left free for everything else
_OPEN_SHARDS = 512

Progress = Callable[[str, float], None]


class Teacher(Protocol):
    """Gives the target's states of texts, float16, those of a batch padded with anything."""

    def __call__(self, items: Sequence[Conversation]) -> States: ...


class Target(Protocol):
    """The target's network, as TorchLlama has it."""

    def states(self, ids: Tensor, layers: Sequence[int] = ...) -> States: ...


@dataclass(frozen=True)
class StateShape:
    """What is kept of each token."""

    target_sha256: str
    hidden: int
    layers: tuple[int, ...]
    kv_heads: int
    head_dim: int

    @property
    def bytes_per_token(self) -> int:
        keys_and_values = 2 * len(self.layers) * self.kv_heads * self.head_dim
        return HALF_BYTES * (self.hidden + keys_and_values)


def padded_ids(items: Sequence[Conversation]) -> Tensor:
    """Token ids [B, L] int64, padded with 0."""
    ids = torch.zeros(len(items), max(map(len, items)), dtype=torch.long)
    for row, item in enumerate(items):
        ids[row, : len(item)] = torch.from_numpy(item.tokens.astype(np.int64))
    return ids


class OnlineTeacher:
    """Runs the target on every batch: no disk, and the target's time at every step."""

    def __init__(self, target: Target, layers: Sequence[int]) -> None:
        self._target = target
        self._layers = tuple(layers)

    def __call__(self, items: Sequence[Conversation]) -> States:
        return run_target(self._target, padded_ids(items), self._layers)


def run_target(target: Target, ids: Tensor, layers: Sequence[int]) -> States:
    """The target's states of ids [B, L], as float16 (values beyond its range are cut)."""
    found = target.states(ids, layers)

    def half(values: Tensor) -> Tensor:
        return values.clamp(-_MOST_HALF, _MOST_HALF).half()

    return States(
        half(found.hidden),
        {layer: half(found.keys[layer]) for layer in layers},
        {layer: half(found.values[layer]) for layer in layers},
    )


class CachedTeacher:
    """Reads the states that ``write_states`` left, through memory maps."""

    def __init__(self, folder: Path, shape: StateShape) -> None:
        self._folder = folder
        self._shape = shape
        self._open = lru_cache(_OPEN_SHARDS)(self._map)

    def __call__(self, items: Sequence[Conversation]) -> States:
        shape = self._shape
        rows, length = len(items), max(map(len, items))
        hidden = np.zeros((rows, length, shape.hidden), np.float16)
        kv = np.zeros(
            (len(shape.layers), 2, rows, shape.kv_heads, length, shape.head_dim), np.float16
        )
        for row, item in enumerate(items):
            part = slice(item.start, item.start + len(item))
            hiddens, columns, kvs = self._open(item.shard)
            hidden[row, : len(item)] = hiddens[part]
            if kvs is not None:
                # [n, layers, 2, heads, size] -> [layers, 2, heads, n, size]
                kv[:, :, row, :, : len(item)] = kvs[part][:, columns].transpose(1, 2, 3, 0, 4)
        keys_and_values = torch.from_numpy(kv)
        return States(
            torch.from_numpy(hidden),
            {layer: keys_and_values[place, 0] for place, layer in enumerate(shape.layers)},
            {layer: keys_and_values[place, 1] for place, layer in enumerate(shape.layers)},
        )

    def _map(self, shard: str) -> tuple[NDArray[Any], list[int], NDArray[Any] | None]:
        try:
            layers = json.loads((self._folder / f"{shard}.json").read_text())["layers"]
            hidden = np.load(self._folder / f"{shard}.hidden.npy", mmap_mode="r")
            if not self._shape.layers:
                return hidden, [], None
            kv = np.load(self._folder / f"{shard}.kv.npy", mmap_mode="r")
            return hidden, [layers.index(layer) for layer in self._shape.layers], kv
        except (OSError, EOFError, ValueError, KeyError) as error:
            raise InvalidInputError(
                f"{self._folder / shard}: the target's states cannot be read ({error}); remove "
                f"{self._folder} to have them made again"
            ) from error


def missing_states(text: Path, folder: Path, shards: Sequence[str], shape: StateShape) -> list[str]:
    """The shards whose states are not there, or were made for another text or target.

    States of more layers than are asked for will do.
    """
    return [name for name in shards if not _is_there(text / f"{name}.npz", folder, shape)]


def disk_need(text: Path, shards: Sequence[str], shape: StateShape) -> int:
    """Bytes that the states of ``shards`` take."""
    tokens = 0
    for name in shards:
        with np.load(text / f"{name}.npz", allow_pickle=False) as shard:
            tokens += int(shard["offsets"][-1])
    return tokens * shape.bytes_per_token


def check_disk(folder: Path, need: int) -> None:
    """Raise InvalidInputError unless ``need`` bytes fit below ``folder``, with some to spare."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if need + _SPARE_DISK > free:
        raise InvalidInputError(
            f"{folder}: the target's states take {need / 1e9:.1f} GB and {free / 1e9:.1f} GB are "
            "free there; make room, train on less text, or compute them again for each batch "
            "(--teacher online)"
        )


def write_states(
    text: Path,
    folder: Path,
    shards: Sequence[str],
    target: Target,
    shape: StateShape,
    *,
    progress: Progress | None = None,
) -> None:
    """Compute and keep the states of ``shards``, one after the other; what is there is kept.

    Raises:
        InvalidInputError: A shard cannot be read, or the disk cannot be written or is too full.
    """
    report = progress or (lambda stage, fraction: None)
    todo = missing_states(text, folder, shards, shape)
    if not todo:
        return
    check_disk(folder, disk_need(text, todo, shape))
    stage = "computing the target's states"
    report(stage, 0.0)
    done = 0

    def advance(fraction: float) -> None:
        report(stage, (done + fraction) / len(todo))

    for name in todo:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write_shard(text / f"{name}.npz", folder, target, shape, advance)
            done += 1
        except OSError as error:
            raise InvalidInputError(
                f"{folder}: cannot be written ({error.strerror or error})"
            ) from error


def _write_shard(
    path: Path,
    folder: Path,
    target: Target,
    shape: StateShape,
    progress: Callable[[float], None],
) -> None:
    items = read_shard(path)
    rows = sum(map(len, items))
    sizes = {
        "hidden": (rows, shape.hidden),
        "kv": (rows, len(shape.layers), 2, shape.kv_heads, shape.head_dim),
    }
    mark = secrets.token_hex(4)
    partial = {kind: folder / f".{path.stem}.{kind}.{mark}" for kind in sizes}
    for leftover in folder.glob(f".{path.stem}.*"):  # of a killed run
        leftover.unlink(missing_ok=True)
    (folder / f"{path.stem}.json").unlink(missing_ok=True)
    try:
        maps = {
            kind: np.lib.format.open_memmap(file, "w+", np.float16, sizes[kind])
            for kind, file in partial.items()
        }
        done = 0
        for batch in _by_length(items):
            states = run_target(target, padded_ids(batch), shape.layers)
            for row, item in enumerate(batch):
                part, n = slice(item.start, item.start + len(item)), len(item)
                maps["hidden"][part] = states.hidden[row, :n].cpu()
                for place, layer in enumerate(shape.layers):
                    maps["kv"][part, place, 0] = (
                        states.keys[layer][row, :, :n].transpose(0, 1).cpu()
                    )
                    maps["kv"][part, place, 1] = (
                        states.values[layer][row, :, :n].transpose(0, 1).cpu()
                    )
            done += len(batch)
            progress(done / len(items))
        for kind, array in maps.items():
            array.flush()
            os.replace(partial[kind], folder / f"{path.stem}.{kind}.npy")
        _write_note(folder / f"{path.stem}.json", _note(path, shape))
    finally:
        for file in partial.values():
            with suppress(OSError):
                file.unlink(missing_ok=True)


def _by_length(items: Sequence[Conversation]) -> list[list[Conversation]]:
    batches: list[list[Conversation]] = [[]]
    for item in sorted(items, key=len):
        if batches[-1] and (len(batches[-1]) + 1) * len(item) > _BATCH_TOKENS:
            batches.append([])
        batches[-1].append(item)
    return batches


def _note(path: Path, shape: StateShape) -> dict[str, Any]:
    return {
        "text_sha256": shard_sha256(path),
        "target_sha256": shape.target_sha256,
        "layers": list(shape.layers),
    }


def _write_note(path: Path, note: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    partial.write_text(json.dumps(note) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _is_there(path: Path, folder: Path, shape: StateShape) -> bool:
    try:
        note = json.loads((folder / f"{path.stem}.json").read_text(encoding="utf-8"))
        wanted = _note(path, shape)
        whole = all(
            (folder / f"{path.stem}.{kind}.npy").is_file()
            for kind in ("hidden", *(["kv"] if shape.layers else []))
        )
        return (
            whole
            and note["text_sha256"] == wanted["text_sha256"]
            and note["target_sha256"] == wanted["target_sha256"]
            and set(shape.layers) <= set(note["layers"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
