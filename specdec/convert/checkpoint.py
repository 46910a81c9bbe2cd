"""What the graph writers know of a checkpoint, whatever file it came from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
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


class ModelSource(Checkpoint, Protocol):
    """A checkpoint with everything else that becomes part of a model folder."""

    @property
    def architecture_name(self) -> str: ...

    @property
    def is_drafter(self) -> bool: ...

    @property
    def sampling(self) -> dict[str, Any]:
        """Sampling parameters that the model's makers recommend; may be empty."""
        ...

    def describe(self) -> dict[str, Any]:
        """The manifest's account of where the model came from."""
        ...

    def write_tokenizer(self, folder: Path) -> dict[str, Any]:
        """Writes the tokenizer's files and returns the manifest's account of them."""
        ...
