"""What the graph writers know of a checkpoint, whatever file it came from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from specdec.convert.matrix import FloatArray, IndexArray, Matrix
from specdec.model_shape import ModelShape

BLOCK = 32  # inputs that share a scale; rows of weights are whole blocks
LONGEST_CONTEXT = 2**22  # beyond it, the tables of rotations would fill the memory


@dataclass(frozen=True)
class ModelConfig(ModelShape):
    """A shape, and whether it can be converted."""

    def as_manifest(self) -> dict[str, Any]:
        manifest = asdict(self)
        if self.target_layers is None:
            del manifest["target_layers"]
        return manifest

    def unsupported(self) -> str | None:
        """What about this shape cannot be converted; None: nothing."""
        sizes = {"hidden": self.hidden, "heads": self.heads * self.head_dim, "ffn": self.ffn}
        for what, size in sizes.items():
            if size < 1 or size % BLOCK:
                return f"a {what} size of {size} (it must be a multiple of {BLOCK})"
        if not 1 <= self.context <= LONGEST_CONTEXT:
            return f"a context of {self.context} tokens (at most {LONGEST_CONTEXT})"
        if not (0 < self.rope_theta < math.inf and 0 < self.norm_eps < 1):
            return f"rope theta {self.rope_theta} with norm epsilon {self.norm_eps}"
        return None


class Checkpoint(Protocol):
    """Weights under the names that ``architectures`` gives them, loaded one at a time.

    ``matrix`` returns [outputs, inputs]; query and key rows are in the half-split rotary order
    (the two values that rotate together are half a head apart). An attached drafter has, for each
    layer j of ``config.bridges``, the matrix ``layers.{j}.bridge`` [hidden, 2 * hidden] and the
    vectors ``layers.{j}.bridge_scale`` and ``layers.{j}.bridge_bias`` [hidden].
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
