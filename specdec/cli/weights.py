"""What ``specdec inspect`` tells of the weights of layouts ``fused`` and ``fused-exact``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specdec.model_folder import ModelFolder

# Of a block, 16 outputs by 32 inputs.
_BLOCK_WEIGHTS = 512

_SCALES = {
    "halves": "a scale of 16 bits for each 32 weights",
    "pairs of halves": "a scale and an offset of 16 bits each for each 32 weights",
    "bytes": "a scale and an offset of 8 bits each for each 32 weights, and a row's own two of 16",
}
_CODES = {4: "4 bits", 6: "6 bits, 8 for the inputs that count most", 8: "8 bits"}


@dataclass(frozen=True)
class Packed:
    """A packed matrix by the shapes of its initializers (``specdec.convert.blocks``)."""

    codes: Sequence[int]  # [tiles, blocks, bytes]; of 6 bits, some blocks in 8, [tiles, bytes]
    scales: Sequence[int]  # of 16 bits: [tiles, blocks, 16], [tiles, blocks, 2, 16] or bytes'
    fine: Sequence[int] = (0,)  # of 6 bits, the lower two of their codes: [tiles, bytes]

    @property
    def weights(self) -> int:
        """Those that fill up the last tile are counted."""
        blocks = self.codes[1] if len(self.codes) == 3 else self.scales[1]
        return self.codes[0] * blocks * _BLOCK_WEIGHTS

    @property
    def code_bits(self) -> int:
        """Of most weights, without their part of the scales."""
        return self.codes[2] * 8 // _BLOCK_WEIGHTS if len(self.codes) == 3 else 6

    @property
    def size(self) -> int:
        """Bits of all codes and scales."""
        return 8 * (math.prod(self.codes) + math.prod(self.fine)) + 16 * math.prod(self.scales)

    @property
    def held(self) -> str:
        """How the scales are held, as JSON says it."""
        if len(self.scales) == 4:
            return "pairs of halves"
        whole = len(self.codes) == 2 or self.scales[1] == self.codes[1]
        return "halves" if whole else "bytes"


def describe_weights(folder: ModelFolder) -> dict[str, dict[str, Any]] | None:
    """Of the embedding, the layers and the head: bits of a weight with its part of the scales, and
    the kinds of blocks; None for a layout without the core's operators."""
    import onnx

    if folder.layout not in ("fused", "fused-exact"):
        return None
    graph = onnx.load(str(folder.graph_path), load_external_data=False).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    parts: dict[str, list[Packed]] = {"embedding": [], "layers": [], "head": []}
    for name, codes in shapes.items():
        if name.endswith(".codes"):
            matrix = name.removesuffix(".codes")
            part = {"embedding": "embedding", "logits": "head"}.get(matrix, "layers")
            fine = shapes.get(f"{matrix}.fine", (0,))
            parts[part].append(Packed(codes, shapes[f"{matrix}.scales"], fine))
    return {part: describe_part(found) for part, found in parts.items() if found}


def describe_part(matrices: Sequence[Packed]) -> dict[str, Any]:
    """Of matrices of one part of the model, ready for JSON."""
    size, weights = sum(m.size for m in matrices), sum(m.weights for m in matrices)
    kinds = sorted({(matrix.code_bits, matrix.held) for matrix in matrices})
    return {
        "bits": round(size / weights, 3),
        "kinds": [{"code_bits": bits, "scales": held} for bits, held in kinds],
    }


def weight_rows(parts: dict[str, dict[str, Any]] | None) -> dict[str, str]:
    """The lines of ``specdec inspect``: parts that hold their weights alike share what is said."""
    if not parts:
        return {}
    sizes = [f"{part} {found['bits']:.4g}" for part, found in parts.items()]
    said: dict[str, list[str]] = {}
    for part, found in parts.items():
        words = "; or ".join(
            f"{_CODES[kind['code_bits']]}, {_SCALES[kind['scales']]}" for kind in found["kinds"]
        )
        said.setdefault(words, []).append(part)
    blocks = "; ".join(f"{' and '.join(names)}: {words}" for words, names in said.items())
    return {"bits a weight": ", ".join(sizes), "held as": blocks}
