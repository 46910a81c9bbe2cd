"""Writes a graph's large initializers to one data file, tensor by tensor."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

_ALIGNMENT = 4096  # so that the runtime can map tensors instead of copying them
_SMALL = 1024  # bytes up to which a tensor stays inside the graph


class ExternalData:
    """The data file of one graph, or of several that share tensors by their content.

    A context manager; the file is whole when it closes.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._file = path.open("wb")
        self._offsets: dict[bytes, int] = {}  # by digest: a tied head shares the embedding's data

    def __enter__(self) -> ExternalData:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def store(self, name: str, values: NDArray[Any]) -> TensorProto:
        """An initializer ``name`` that holds ``values``, outside the graph if they are large."""
        if values.nbytes <= _SMALL:
            return onnx.numpy_helper.from_array(values, name)
        stored = np.ascontiguousarray(values)
        if values.dtype == ml_dtypes.int4:
            stored = _pack(stored)
        digest = hashlib.sha256(stored.data).digest()
        if digest not in self._offsets:
            self._offsets[digest] = self._append(stored)
        tensor = TensorProto(
            name=name,
            data_type=onnx.helper.np_dtype_to_tensor_dtype(values.dtype),
            dims=values.shape,
            data_location=TensorProto.EXTERNAL,
        )
        place = {
            "location": self._name,
            "offset": self._offsets[digest],
            "length": stored.nbytes,
        }
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def _append(self, values: NDArray[Any]) -> int:
        offset = self._file.seek(-(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT)
        values.tofile(self._file)
        return offset


def _pack(values: NDArray[Any]) -> NDArray[np.uint8]:
    """4-bit elements two in a byte, the earlier one in the lower half."""
    codes = values.reshape(-1).view(np.uint8) & np.uint8(15)
    if codes.size % 2:
        codes = np.append(codes, np.uint8(0))
    return codes[0::2] | (codes[1::2] << np.uint8(4))
