"""Writes a graph's large initializers to one data file, tensor by tensor."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

_ALIGNMENT = 4096  # so that the runtime can map tensors instead of copying them
_SMALL = 1024  # bytes up to which a tensor stays inside the graph


class ExternalData:
    """The data file of one graph. A context manager; the file is whole when it closes."""

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
        values = np.ascontiguousarray(values)
        digest = hashlib.sha256(values.data).digest()
        if digest not in self._offsets:
            self._offsets[digest] = self._append(values)
        return self._refer(name, values, self._offsets[digest])

    def _append(self, values: NDArray[Any]) -> int:
        offset = self._file.seek(-(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT)
        values.tofile(self._file)
        return offset

    def _refer(self, name: str, values: NDArray[Any], offset: int) -> TensorProto:
        tensor = TensorProto(
            name=name,
            data_type=onnx.helper.np_dtype_to_tensor_dtype(values.dtype),
            dims=values.shape,
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (("location", self._name), ("offset", offset), ("length", values.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor
