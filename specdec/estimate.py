"""How fast a pair of models would write on a chip: folders and recipes into the cost model.

A compiled folder says how many bytes each of its graphs moves, by QNN's own plan; for any other
model they are counted from its shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specdec.cost_model import (
    LAYOUTS,
    Chip,
    DecoderShape,
    Pair,
    Prediction,
    Step,
    counted_step,
    step_operations,
)
from specdec.errors import InvalidInputError, ModelFolderError
from specdec.model_folder import MANIFEST, ModelFolder
from specdec.recipe import UserSource, known_models, load_recipe

WIDTHS = (8, 32)
"""Of the graphs of a model that has none yet."""
LAYERS_IN_PART = 8  # of Llama-2-7B in 4 bits; only the number of calls depends on it


@dataclass(frozen=True)
class Decoder:
    """What the steps of a model cost."""

    name: str
    shape: DecoderShape
    layout: str
    past: int
    steps: Mapping[int, Step]
    """By width."""
    compiled: bool
    """Whether the bytes are the compiler's, and not a count."""


@dataclass(frozen=True)
class Estimate:
    """A pair on one chip."""

    chip: Chip
    target: Decoder
    draft: Decoder | None
    pair: Pair
    best: tuple[Prediction, ...]
    """At the best draft length, for each acceptance."""

    @property
    def plain_tokens_per_second(self) -> float:
        return 1 / self.pair.predict(0.0, 0).round_seconds

    def as_json(self) -> dict[str, Any]:
        """The figures, with units in their names."""
        return {
            "soc": self.chip.name,
            "bandwidth_gb_per_second": self.chip.bandwidth / 1e9,
            "target": _decoder_json(self.target, self.chip),
            "draft": None if self.draft is None else _decoder_json(self.draft, self.chip),
            "plain_tokens_per_second": self.plain_tokens_per_second,
            "speculative": [
                {
                    "acceptance": prediction.acceptance,
                    "draft_length": prediction.draft_length,
                    "tokens_per_round": prediction.round_tokens,
                    "tokens_per_second": prediction.tokens_per_second,
                    "ratio": prediction.ratio,
                }
                for prediction in self.best
            ],
        }


def decoder(
    name_or_folder: str,
    *,
    layout: str,
    past: int | None = None,
    head_size: int | None = None,
) -> Decoder:
    """A model folder, or a known model that has a recipe with its shape.

    ``layout``, ``past`` (default 1,024) and ``head_size`` are for a model that is not compiled.

    Raises:
        InvalidInputError: No such model, one that the NPU cannot run, or an unknown layout.
        ModelFolderError: The folder is damaged.
    """
    if layout not in LAYOUTS:
        raise InvalidInputError(f"no layout '{layout}': choose one of {', '.join(LAYOUTS)}")
    path = Path(name_or_folder)
    if (path / MANIFEST).is_file():
        folder = ModelFolder.open(path, verify=False)
        if folder.is_compiled and head_size is None:
            return _compiled_decoder(folder)
        if folder.is_attached:
            raise InvalidInputError(
                f"{name_or_folder} is an attached drafter, which runs on the CPU only; take a "
                "standalone drafter"
            )
        config = folder.config
        fields = {name: getattr(config, name) for name in DecoderShape.__dataclass_fields__}
        return _counted(folder.name, DecoderShape(**fields), layout, past, head_size)
    if name_or_folder in known_models():
        source = load_recipe(name_or_folder).source
        if isinstance(source, UserSource):
            sizes = {"head_size": source.shape["vocab"]} | dict(source.shape)
            fields = {name: sizes[name] for name in DecoderShape.__dataclass_fields__}
            return _counted(name_or_folder, DecoderShape(**fields), layout, past, head_size)
    raise InvalidInputError(
        f"'{name_or_folder}' is neither a model folder nor a known model with a shape in its "
        "recipe (llama-2-7b-chat has one); give the folder"
    )


def estimate(
    chip: Chip,
    target: Decoder,
    draft: Decoder | None,
    acceptances: Sequence[float],
    longest: int = 16,
    plain_tokens_per_second: float | None = None,
) -> Estimate:
    """Predicts with draft lengths up to ``longest`` (or what the target's widths hold).

    ``plain_tokens_per_second`` is a measured speed of the target alone, to take the chip's
    bandwidth from.
    """
    if plain_tokens_per_second is not None:
        chip = chip.fitted(target.steps[min(target.steps)], plain_tokens_per_second)
    seconds = {width: chip.seconds(step) for width, step in target.steps.items()}
    draft_seconds = 0.0
    if draft is not None:
        draft_seconds = chip.seconds(draft.steps[min(draft.steps)])
    pair = Pair(seconds, draft_seconds)
    lengths = range(1, min(longest, max(seconds) - 1) + 1)
    best: tuple[Prediction, ...] = ()
    if draft is not None and lengths:
        best = tuple(pair.best(acceptance, lengths) for acceptance in acceptances)
    return Estimate(chip, target, draft, pair, best)


def _counted(
    name: str, shape: DecoderShape, layout: str, past: int | None, head_size: int | None
) -> Decoder:
    past = past or 1024
    if head_size is not None:
        shape = replace(shape, head_size=head_size)
    parts = -(-shape.layers // LAYERS_IN_PART)
    steps = {
        width: counted_step(shape, LAYOUTS[layout], past=past, width=width, parts=parts)
        for width in WIDTHS
    }
    return Decoder(name, shape, layout, past, steps, compiled=False)


def _compiled_decoder(folder: ModelFolder) -> Decoder:
    from specdec.htp_plan import HtpPlan
    from specdec.qnn.compile import REPORT_FILE, Report

    config, plan = folder.config, HtpPlan.read(folder.graph_path)
    fields = {name: getattr(config, name) for name in DecoderShape.__dataclass_fields__}
    shape = DecoderShape(**fields)
    try:
        report = Report.read(folder.path)
        moved = {
            (graph["part"], graph["width"]): graph["traffic"]["read"] + graph["traffic"]["write"]
            for part in report.parts
            for graph in part["graphs"]
        }
        steps = {}
        for width in plan.widths:
            chain = plan.chain(width, "logits")
            steps[width] = Step(
                float(sum(moved[part.name, width] for part in chain)),
                len(chain),
                step_operations(shape, width=width),
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFolderError(
            f"{folder.path / REPORT_FILE}: does not say what the graphs move ({error}); compile "
            "the model again"
        ) from error
    return Decoder(folder.name, shape, folder.layout, plan.past, steps, compiled=True)


def _decoder_json(decoder: Decoder, chip: Chip) -> dict[str, Any]:
    return {
        "name": decoder.name,
        "layout": decoder.layout,
        "context": decoder.past,
        "bytes_from": "compiler" if decoder.compiled else "count",
        "megabytes_by_width": {width: step.bytes / 1e6 for width, step in decoder.steps.items()},
        "milliseconds_by_width": {
            width: chip.seconds(step) * 1e3 for width, step in decoder.steps.items()
        },
    }
