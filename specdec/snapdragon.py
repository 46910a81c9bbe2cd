"""Snapdragon chips for the cost model, and the published decoding speeds that they are fitted to.

Speeds are those of Qualcomm AI Hub Models' performance files (``perf.yaml`` of each model in
github.com/quic/ai-hub-models and its successor qualcomm/ai-hub-models): w4a16, plain decoding, with
a graph for a fixed context. Where a model has several, measured with different software, all count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import median

from specdec.cost_model import Chip, DecoderShape, Step, WeightLayout, counted_step
from specdec.errors import InvalidInputError

# AI Hub's models: their sizes on disk (3.6 GB for Llama-2-7B, 4.8 for Llama-3-8B, 2.4 for
# Llama-3.2-3B) are 4-bit layers and head with 16-bit embeddings, to within 1 %.
AI_HUB_LAYOUT = WeightLayout(layer_bits=4, head_bits=4)

LLAMA_2_7B = DecoderShape(32, 4096, 32, 32, 128, 11008, 32000)
DRAFTER_115M = DecoderShape(4, 1024, 8, 8, 128, 2816, 32000)
"""Llama 2 Chat Drafter 115M (Goel et al. 2403.00858)."""


@dataclass(frozen=True)
class _Model:
    shape: DecoderShape
    parts: int
    """Graphs of layers that AI Hub splits it into."""
    layer_spill: float = 0.0
    """Bytes that QNN's compiler spills and fills in one layer of this shape, at a past of 4,096."""


_LLAMA_3_8B = DecoderShape(32, 4096, 32, 8, 128, 14336, 128256)
_QWEN_2_7B = DecoderShape(28, 3584, 28, 4, 128, 18944, 152064)
_MODELS: Mapping[str, _Model] = {
    "Llama-2-7B": _Model(LLAMA_2_7B, 4),  # at a past of 1,024, where nothing spills
    "Llama-3-8B": _Model(_LLAMA_3_8B, 5, 9.5e6),
    "Llama-3.1-8B": _Model(_LLAMA_3_8B, 5, 9.5e6),
    "Llama-3.2-3B": _Model(DecoderShape(28, 3072, 24, 8, 128, 8192, 128256), 3, 9.9e6),
    "Llama-3.2-1B": _Model(DecoderShape(16, 2048, 32, 8, 64, 8192, 128256), 3),
    "Phi-3.5-mini": _Model(DecoderShape(32, 3072, 32, 32, 96, 8192, 32064), 4, 7.9e6),
    "Qwen2-7B": _Model(_QWEN_2_7B, 5),
    "Qwen2.5-7B": _Model(_QWEN_2_7B, 5),
    "Falcon3-7B": _Model(DecoderShape(28, 3072, 12, 4, 256, 23040, 131072), 5, 17.7e6),
    "Mistral-7B-v0.3": _Model(DecoderShape(32, 4096, 32, 8, 128, 14336, 32768), 5, 9.5e6),
    "Granite-3.1-8B": _Model(DecoderShape(40, 4096, 32, 8, 128, 12800, 49155), 5, 9.5e6),
    "Baichuan2-7B": _Model(DecoderShape(32, 4096, 32, 32, 128, 11008, 125696), 5, 68.7e6),
}


@dataclass(frozen=True)
class Published:
    """A published speed of plain decoding."""

    chip: str
    model: str
    past: int
    tokens_per_second: float

    @property
    def step(self) -> Step:
        """Its step: counted, with what the compiler says of spilling."""
        model = _MODELS[self.model]
        return counted_step(
            model.shape,
            AI_HUB_LAYOUT,
            past=self.past,
            parts=model.parts,
            layer_spill=model.layer_spill,
        )


PUBLISHED: tuple[Published, ...] = tuple(
    Published(chip, model, past, speed)
    for chip, entries in {
        "sm8650": (("Llama-2-7B", 1024, 12.85), ("Phi-3.5-mini", 4096, 13.01)),
        "sm8750": (
            ("Llama-2-7B", 1024, 17.94),
            ("Llama-3-8B", 4096, 12.93),
            ("Llama-3.1-8B", 4096, 13.05),
            ("Llama-3.2-3B", 4096, 23.47),
            ("Llama-3.2-3B", 4096, 28.03),
            ("Llama-3.2-1B", 4096, 53.64),
            ("Phi-3.5-mini", 4096, 14.73),
            ("Qwen2-7B", 4096, 13.65),
            ("Qwen2.5-7B", 4096, 15.40),
            ("Falcon3-7B", 4096, 14.03),
            ("Mistral-7B-v0.3", 4096, 12.56),
            ("Granite-3.1-8B", 4096, 11.01),
            ("Baichuan2-7B", 4096, 7.72),
        ),
        "x-elite": (
            ("Llama-2-7B", 1024, 11.20),
            ("Llama-3-8B", 4096, 10.04),
            ("Llama-3.1-8B", 4096, 9.36),
            ("Llama-3.2-3B", 4096, 18.42),
            ("Llama-3.2-3B", 4096, 11.87),
            ("Phi-3.5-mini", 4096, 6.20),
            ("Qwen2.5-7B", 4096, 12.34),
            ("Falcon3-7B", 4096, 9.97),
            ("Granite-3.1-8B", 4096, 8.02),
        ),
    }.items()
    for model, past, speed in entries
)

# Peak bandwidth: LPDDR5X-9600 and -10667 on 64 bits, LPDDR5X-8448 on 128 bits (product briefs).
# A call: what AI Hub publishes for a small network through ONNX Runtime (mediapipe_hand's detector,
# 196 nodes), so an upper bound. Operations: 1,024 tokens of prompt through Llama-2-7B.
_UNFITTED = (
    Chip("sm8650", 76.8e9, 1.0, 0.74e-3, 9.0e12),
    Chip("sm8750", 84.8e9, 1.0, 0.63e-3, 9.4e12),
    Chip("x-elite", 135.2e9, 1.0, 0.98e-3, 7.0e12),
)


def fit(chip: Chip, figures: Iterable[Published]) -> Chip:
    """``chip`` with the median of the fractions that the figures mean."""
    fractions = [chip.fitted(f.step, f.tokens_per_second).fraction for f in figures]
    if not fractions:
        raise InvalidInputError(f"no published figure for {chip.name}")
    return replace(chip, fraction=median(fractions))


def predicted_error(chip: Chip, figure: Published) -> float:
    """Predicted speed over the published one, less one."""
    return 1 / chip.seconds(figure.step) / figure.tokens_per_second - 1


def held_out_errors(chip: Chip, figures: Iterable[Published]) -> dict[Published, float]:
    """The error of each figure with a fraction fitted to the chip's other models."""
    own = [figure for figure in figures if figure.chip == chip.name]
    return {
        figure: predicted_error(fit(chip, others), figure)
        for figure in own
        if (others := [other for other in own if other.model != figure.model])
    }


CHIPS: Mapping[str, Chip] = {
    chip.name: fit(chip, (figure for figure in PUBLISHED if figure.chip == chip.name))
    for chip in _UNFITTED
}
"""By the names that ``specdec compile --soc`` takes."""
