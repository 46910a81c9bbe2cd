"""Fixed-shape models on a Hexagon NPU, through ONNX Runtime's QNN provider."""

from specdec.qnn.options import QnnOptions

__all__ = ["QnnOptions"]
