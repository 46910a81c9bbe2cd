"""Reads GGUF checkpoints: metadata and tensors, with every length checked before it is believed.

The layout of the file is that of the GGUF specification (versions 2 and 3, little-endian); ggml's
type numbers, block sizes and dequantisation come from the ``gguf`` package.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from specdec.convert.matrix import BlockMatrix, DenseMatrix, FloatArray, Matrix
from specdec.errors import CheckpointError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies. ``shape`` is outermost first: (rows, columns) for a matrix."""

    name: str
    type_name: str
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    size: int  # bytes


class GgufFile:
    """A GGUF file: its metadata in ``fields``, its tensors in ``tensors``, read one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                if file.read(len(_MAGIC)) != _MAGIC:
                    raise CheckpointError(
                        f"{path}: not a GGUF file (its first bytes are not 'GGUF')"
                    )
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                    self.fields, self.tensors = _parse_header(path, view)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error

    def sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def vector(self, name: str) -> FloatArray:
        """A one-dimensional tensor as float32 [n]."""
        tensor = self._tensor(name, dimensions=1)
        return self._dequantise(tensor, self._bytes(tensor)).reshape(tensor.shape)

    def integers(self, name: str) -> NDArray[np.int64]:
        """A one-dimensional tensor of whole numbers [n]."""
        tensor = self._tensor(name, dimensions=1)
        if tensor.type_name not in ("I32", "I64"):
            raise self._unsupported(tensor, "whole numbers (I32 or I64)")
        dtype = np.int32 if tensor.type_name == "I32" else np.int64
        return self._bytes(tensor).view(dtype).astype(np.int64)

    def matrix(self, name: str) -> Matrix:
        """A two-dimensional tensor: Q8_0, Q4_0 and Q4_1 keep their codes, others become float32."""
        tensor = self._tensor(name, dimensions=2)
        data = self._bytes(tensor)
        rows = tensor.shape[0]
        match tensor.type_name:
            case "Q8_0":
                return _read_q8_0(data, rows)
            case "Q4_0":
                return _read_q4(data, rows, header=2)
            case "Q4_1":
                return _read_q4(data, rows, header=4)
            case _:
                return DenseMatrix(self._dequantise(tensor, data).reshape(tensor.shape))

    def _tensor(self, name: str, dimensions: int) -> GgufTensor:
        tensor = self.tensors.get(name)
        if tensor is None:
            raise CheckpointError(
                f"{self.path}: tensor '{name}' is missing: the checkpoint is incomplete or of "
                "another architecture than it says"
            )
        if len(tensor.shape) != dimensions:
            raise CheckpointError(
                f"{self.path}: tensor '{name}' has shape {tensor.shape}, expected {dimensions} "
                "dimension(s)"
            )
        return tensor

    def _bytes(self, tensor: GgufTensor) -> NDArray[np.uint8]:
        return np.fromfile(self.path, np.uint8, tensor.size, offset=tensor.offset)

    def _dequantise(self, tensor: GgufTensor, data: NDArray[np.uint8]) -> FloatArray:
        kind = gguf.GGMLQuantizationType[tensor.type_name]
        try:
            if kind == gguf.GGMLQuantizationType.F16:
                return data.view(np.float16).astype(np.float32)
            if kind == gguf.GGMLQuantizationType.F32:
                return data.view(np.float32)
            values: FloatArray = gguf.dequantize(data, kind)
            return values.astype(np.float32, copy=False)
        except NotImplementedError:
            raise self._unsupported(tensor, "F32, F16, BF16 or a Q type") from None

    def _unsupported(self, tensor: GgufTensor, expected: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: tensor '{tensor.name}' is of type {tensor.type_name}, which is not "
            f"supported here: use a checkpoint with {expected}"
        )


class _Cursor:
    """Reads little-endian values one after the other and stops at the end of the file."""

    def __init__(self, path: Path, view: mmap.mmap) -> None:
        self.path = path
        self.view = view
        self.position = len(_MAGIC)

    def take(self, size: int) -> int:
        """Skips ``size`` bytes and returns where they started."""
        start = self.position
        if size > len(self.view) - start:
            raise CheckpointError(
                f"{self.path}: the file ends inside its header (at byte {len(self.view)}): it is "
                "truncated; fetch it again"
            )
        self.position = start + size
        return start

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        start = self.take(struct.calcsize("<" + code) * count)
        return struct.unpack_from(f"<{count}{code}", self.view, start)

    def number(self, code: str) -> Any:
        return self.numbers(code, 1)[0]

    def string(self) -> str:
        size = self.number("Q")
        start = self.take(size)
        return self.view[start : start + size].decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            element, count = self.number("I"), self.number("Q")
            if element in _SCALARS:
                return list(self.numbers(_SCALARS[element], count))
            if element == _STRING:
                return [self.string() for _ in range(count)]
            kind = element  # arrays of arrays, which no checkpoint has, are refused below
        if kind not in _SCALARS:
            raise CheckpointError(
                f"{self.path}: unknown kind of value {kind} in the metadata at byte "
                f"{self.position}: the file is damaged; fetch it again"
            )
        return self.number(_SCALARS[kind])


def _parse_header(
    path: Path, view: mmap.mmap
) -> tuple[Mapping[str, Any], Mapping[str, GgufTensor]]:
    cursor = _Cursor(path, view)
    version = cursor.number("I")
    if version not in _VERSIONS:
        raise CheckpointError(
            f"{path}: GGUF version {version} is not supported (little-endian 2 and 3 are)"
        )
    tensor_count, field_count = cursor.number("Q"), cursor.number("Q")
    fields: dict[str, Any] = {}
    for _ in range(field_count):
        key = cursor.string()
        fields[key] = cursor.value(cursor.number("I"))

    found: list[tuple[str, int, tuple[int, ...], int]] = []
    for _ in range(tensor_count):
        name, dimensions = cursor.string(), cursor.number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise CheckpointError(
                f"{path}: tensor '{name}' claims {dimensions} dimensions: the file is damaged; "
                "fetch it again"
            )
        shape = tuple(reversed(cursor.numbers("Q", dimensions)))
        found.append((name, cursor.number("I"), shape, cursor.number("Q")))

    alignment = fields.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise CheckpointError(
            f"{path}: general.alignment is {alignment!r}, expected a power of two"
        )
    data_start = -(-cursor.position // alignment) * alignment
    tensors = {
        name: _locate(path, name, kind, shape, data_start + offset)
        for name, kind, shape, offset in found
    }
    end = max((tensor.offset + tensor.size for tensor in tensors.values()), default=0)
    if end > len(view):
        raise CheckpointError(
            f"{path}: the file has {len(view)} bytes but its tensors need {end}: it is truncated; "
            "fetch it again"
        )
    return fields, tensors


def _locate(path: Path, name: str, kind: int, shape: tuple[int, ...], offset: int) -> GgufTensor:
    try:
        ggml_type = gguf.GGMLQuantizationType(kind)
        block, block_bytes = gguf.GGML_QUANT_SIZES[ggml_type]
    except (ValueError, KeyError):
        raise CheckpointError(
            f"{path}: tensor '{name}' is of an unknown type (number {kind}): use a checkpoint in "
            "F16, Q8_0, Q4_1 or another common type"
        ) from None
    columns = shape[-1] if shape else 1
    if columns % block:
        raise CheckpointError(
            f"{path}: tensor '{name}' of type {ggml_type.name} has rows of {columns} values, not a "
            f"multiple of {block}: the file is damaged; fetch it again"
        )
    return GgufTensor(name, ggml_type.name, shape, offset, math.prod(shape) // block * block_bytes)


def round_to_4_bits(matrix: Matrix) -> BlockMatrix:
    """The nearest that Q4_1 has: blocks of 32 between their least and their greatest value."""
    blocks = gguf.quantize(matrix.dequantise(), gguf.GGMLQuantizationType.Q4_1)
    return _read_q4(blocks, matrix.shape[0], header=4)


def _read_q8_0(data: NDArray[np.uint8], rows: int) -> BlockMatrix:
    """Blocks of 32: a float16 scale, then 32 signed bytes."""
    blocks = data.reshape(rows, -1, 34)
    scales = _half_floats(blocks[..., 0:2])
    codes = blocks[..., 2:] ^ np.uint8(0x80)  # signed byte + 128
    return BlockMatrix(codes.reshape(rows, -1), scales, scales * np.float32(-128), bits=8)


def _read_q4(data: NDArray[np.uint8], rows: int, header: int) -> BlockMatrix:
    """Blocks of 32: a float16 scale (Q4_1: and a minimum), then 16 bytes of low and high halves."""
    blocks = data.reshape(rows, -1, header + 16)
    scales = _half_floats(blocks[..., 0:2])
    minima = _half_floats(blocks[..., 2:4]) if header == 4 else scales * np.float32(-8)
    packed = blocks[..., header:]
    codes = np.concatenate([packed & 0x0F, packed >> 4], axis=-1)
    return BlockMatrix(codes.reshape(rows, -1), scales, minima, bits=4)


def _half_floats(data: NDArray[np.uint8]) -> FloatArray:
    return np.ascontiguousarray(data).view(np.float16)[..., 0].astype(np.float32)
