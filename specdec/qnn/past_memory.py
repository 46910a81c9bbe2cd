"""Keys and values of the past in memory that CPU and NPU share.

A session reads the whole past at every step. From ordinary memory the driver copies it to the NPU's
side first: for a model of 7B that is a quarter of a gigabyte each time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime

from specdec.errors import BackendError
from specdec.htp_plan import HtpPlan
from specdec.model_folder import ModelConfig
from specdec.qnn import provider


class PastMemory:
    """Allocates a decoder's past; sessions are bound to its ``values``.

    The core asks for a layer's keys and then its values, layer by layer.

    Raises:
        BackendError: There is no such memory here, or not enough.
    """

    def __init__(self, plan: HtpPlan, config: ModelConfig):
        heads, dim = config.kv_heads, config.head_dim
        shapes = {"key": [1, heads, dim, plan.past], "value": [1, heads, plan.past, dim]}
        self.values: dict[str, Any] = {}
        """``past_key.i`` and ``past_value.i``, as ONNX Runtime holds them."""
        self._waiting = [
            (f"past_{kind}.{layer}", shapes[kind], np.dtype(encoding.type))
            for layer, encodings in enumerate(zip(plan.key, plan.value, strict=True))
            for kind, encoding in zip(shapes, encodings, strict=True)
        ]

    def __call__(self, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The next buffer, of ``size`` bytes."""
        name, shape, dtype = self._waiting.pop(0)
        try:
            value = _allocate(shape, dtype)
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(
                f"shared_memory: no {size} bytes of it for {name} "
                f"({' '.join(str(error).split())}); leave shared_memory out"
            ) from error
        self.values[name] = value
        array: np.ndarray[Any, np.dtype[np.uint8]] = value.numpy().reshape(-1).view(np.uint8)
        if array.ctypes.data != value.data_ptr():
            raise BackendError(
                f"shared_memory: onnxruntime {onnxruntime.__version__} gives copies of it; leave "
                "shared_memory out, or: pip install --upgrade onnxruntime"
            )
        return array


def _allocate(shape: list[int], dtype: np.dtype[Any]) -> Any:
    (device,) = provider.devices()
    kinds = getattr(onnxruntime, "OrtDeviceMemoryType", None)
    if kinds is None:
        raise BackendError(
            f"onnxruntime {onnxruntime.__version__} is too old for shared_memory; "
            "pip install --upgrade onnxruntime"
        )
    memory = device.memory_info(kinds.HOST_ACCESSIBLE)
    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype.type, memory_info=memory)
