"""What the graph writers know of a checkpoint, whatever file it came from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from specdec.convert.matrix import FloatArray, IndexArray, Matrix


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder-only transformer."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    rope_theta: float
    norm_eps: float
    tied_head: bool

    def as_manifest(self) -> dict[str, Any]:
        return asdict(self)


class Checkpoint(Protocol):
    """Weights under the names that ``architectures`` gives them, loaded one at a time.

    ``matrix`` returns [outputs, inputs]; query and key rows are in the half-split rotary order
    (the two values that rotate together are half a head apart).
    """

    @property
    def config(self) -> ModelConfig: ...

    @property
    def head_ids(self) -> IndexArray | None:
        """The vocabulary ids of the head's rows, ascending; None: all of the vocabulary."""
        ...

    @property
    def rope_factors(self) -> FloatArray | None:
        """What each rotary frequency is divided by, [head_dim / 2]; None: by one."""
        ...

    def vector(self, name: str) -> FloatArray: ...

    def matrix(self, name: str) -> Matrix: ...
