"""Reads the safetensors files of a Hugging Face folder, one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # makes numpy know bfloat16, which safetensors asks it for
import numpy as np
from safetensors import SafetensorError, safe_open

from specdec.convert.json_file import read_json
from specdec.convert.matrix import FloatArray
from specdec.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class SafetensorsTensor:
    """Where a tensor lies, and what it is."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class SafetensorsFolder:
    """The weights of a folder, in one file or in shards that an index lists."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[Path]
        """Every file that was looked at, in a fixed order."""
        self.tensors: dict[str, SafetensorsTensor] = {}
        self._open_files: dict[Path, Any] = {}
        index = folder / INDEX_FILE
        if (folder / SINGLE_FILE).is_file():
            self.files = [folder / SINGLE_FILE]
            self._add(folder / SINGLE_FILE)
        elif index.is_file():
            shards = _read_index(index)
            names = sorted(set(shards.values()))
            self.files = [index, *(folder / name for name in names)]
            for name in names:
                self._add(folder / name)
            self._check_index(index, shards)
        else:
            raise CheckpointError(
                f"{folder}: no weights: neither {SINGLE_FILE} nor {INDEX_FILE} (other formats, "
                "such as .bin, are not supported: save the model as safetensors)"
            )

    def read(self, name: str) -> FloatArray:
        """A tensor's values as float32, in its own shape."""
        self.check_type(name)
        tensor = self.tensors[name]
        try:
            values = self._open_files[tensor.file].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{tensor.file}: tensor '{name}' cannot be read: {error}") from (
                error
            )
        return np.asarray(values, dtype=np.float32)

    def check_type(self, name: str) -> None:
        """Raises CheckpointError for a tensor that ``read`` could not turn into float32."""
        tensor = self.tensors[name]
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(
                f"{tensor.file}: tensor '{name}' is of type {tensor.dtype}, which is not "
                f"supported: use a checkpoint in {', '.join(_DTYPES)}"
            )

    def _add(self, path: Path) -> None:
        if not path.is_file():
            raise CheckpointError(f"{path}: missing: the checkpoint is incomplete, fetch it again")
        try:
            # The file is mapped: a tensor's bytes are read when it is asked for.
            file: Any = safe_open(path, framework="numpy")
            for name in file.keys():  # noqa: SIM118  # not a mapping
                part = file.get_slice(name)
                self.tensors[name] = SafetensorsTensor(
                    path, str(part.get_dtype()), tuple(part.get_shape())
                )
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
        except SafetensorError as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{path}: damaged or truncated ({reason}); fetch it again"
            ) from error
        self._open_files[path] = file

    def _check_index(self, index: Path, shards: Mapping[str, str]) -> None:
        for name, shard in shards.items():
            if name not in self.tensors or self.tensors[name].file.name != shard:
                raise CheckpointError(
                    f"{index}: says that tensor '{name}' is in {shard}, where it is not: the files "
                    "do not belong together, fetch them again"
                )


def _read_index(index: Path) -> dict[str, str]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{index}: 'weight_map' is missing or empty; fetch it again")
    for shard in shards.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{index}: {shard!r} is no file name in this folder")
    return shards
