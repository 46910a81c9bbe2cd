"""Quantises checkpoints for the Hexagon NPU so that quality holds: ``quantize(source, folder)``.

Never imported by what runs a model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from specdec.convert import convert
from specdec.convert.chat_templates import load_template
from specdec.convert.checkpoint import Checkpoint
from specdec.convert.float_forward import LINEAR_INPUTS, load_linear
from specdec.convert.htp.folder import check_sizes, convert_htp, refuse_attached
from specdec.convert.htp.layouts import DEFAULT_HTP_LAYOUT, HTP_LAYOUTS, HtpLayout
from specdec.convert.htp.stats import Quantiser, round_linear
from specdec.convert.source import open_source
from specdec.errors import InvalidInputError, ModelFolderError
from specdec.model import Model
from specdec.quantize import texts as texts_
from specdec.quantize.layerwise import LayerwiseQuantiser
from specdec.quantize.linears import DEFAULT_METHOD, METHODS, is_held_as_it_is
from specdec.quantize.quality import FloatReference, Quality, compare, model_logits
from specdec.quantize.sensitivity import choose, scan

__all__ = [
    "DEFAULT_METHOD",
    "METHODS",
    "WRITTEN_TOKENS",
    "Settings",
    "calibration_texts",
    "measure",
    "quantize",
]

WRITTEN_TOKENS = 4096
_SCANNED_TOKENS = 256

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Settings:
    """How to quantise. Checked on construction: InvalidInputError."""

    layout: str = DEFAULT_HTP_LAYOUT
    """One of ``HTP_LAYOUTS``."""
    method: str = DEFAULT_METHOD
    """One of ``METHODS``."""
    mixed: float | None = None
    """Megabytes that linears which suffer most in 4 bits may take more, to be held in 8."""
    widths: tuple[int, ...] = (8, 32)
    """Tokens that a step may have."""
    context: int = 1024
    """Tokens that a text may have."""
    calibration: Path | None = None
    """A text file; None: the text that comes with specdec, and what the model itself writes."""
    written_tokens: int = WRITTEN_TOKENS
    """About how many tokens the model writes for that."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.layout not in HTP_LAYOUTS:
            raise InvalidInputError(
                f"no layout '{self.layout}': choose one of {', '.join(HTP_LAYOUTS)}"
            )
        if self.method not in METHODS:
            raise InvalidInputError(
                f"no method '{self.method}': choose one of {', '.join(METHODS)}"
            )
        if self.mixed is not None and not (self.mixed > 0 and self._layout.body.bits == 4):
            raise InvalidInputError(
                f"mixed is {self.mixed:g}: give megabytes above 0, with a layout of 4 bits"
            )
        if self.written_tokens < 0 or self.seed < 0:
            raise InvalidInputError("the number of written tokens and the seed are 0 or more")

    @property
    def _layout(self) -> HtpLayout:
        return HTP_LAYOUTS[self.layout]


def quantize(
    source: Path,
    destination: Path,
    settings: Settings | None = None,
    *,
    target_source: Path | None = None,
    name: str | None = None,
    sampling: dict[str, Any] | None = None,
    chat_template: str | None = None,
    texts: Sequence[Sequence[int]] | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Quantises the checkpoint ``source`` to fixed-shape graphs in the folder ``destination``.

    ``source``, ``target_source``, ``name``, ``sampling``, ``chat_template``, ``replace`` and
    ``progress`` are as for ``convert``; ``texts`` are token ids to calibrate with, instead of what
    ``settings`` says of it. Returns ``destination``.

    Raises:
        InvalidInputError: A setting that cannot be, a calibration file that cannot be used, or an
            attached drafter, which runs on the CPU only.
        CheckpointError: A checkpoint that cannot be converted.
        ModelFolderError: ``destination`` exists or cannot be written. Nothing is left behind.
    """
    settings = settings or Settings()
    report = progress or (lambda stage, fraction: None)
    if destination.exists() and not replace:  # said before minutes of work, not after them
        raise ModelFolderError(
            f"{destination}: already exists; name another folder or ask to replace"
        )
    checkpoint = open_source(source, target_source)
    refuse_attached(checkpoint, source)
    layout = HTP_LAYOUTS[settings.layout]
    check_sizes(settings.widths, settings.context, checkpoint.config, layout)
    quantiser: Quantiser = round_linear
    by_statistics = settings.method != "rtn" and layout.body.bits < 16
    if not layout.is_quantised and _is_held_as_it_is(checkpoint, layout):
        by_statistics = False
    if texts is None and (layout.is_quantised or by_statistics):
        texts = calibration_texts(
            source,
            settings,
            target_source=target_source,
            chat_template=chat_template,
            progress=progress,
        )
    texts = texts or ()
    if texts:
        report("checking the calibration texts", 0.0)
        texts = texts_.without_second_sinks(checkpoint, texts)
    if settings.mixed is not None:
        layout = _mix(checkpoint, texts, layout, settings.mixed, report)
    if by_statistics:
        quantiser = LayerwiseQuantiser(checkpoint, texts, layout.kind, settings.method)
    return convert_htp(
        source,
        destination,
        layout=layout,
        widths=settings.widths,
        context=settings.context,
        calibration=texts,
        quantiser=quantiser,
        target_source=target_source,
        name=name,
        sampling=sampling,
        chat_template=chat_template,
        replace=replace,
        progress=progress,
    )


def measure(
    source: Path,
    folders: Mapping[str, Path],
    *,
    target_source: Path | None = None,
    held_out: Path | None = None,
    tokens: int = 4096,
    progress: Progress | None = None,
) -> list[Quality]:
    """The quality of model folders, by choice, against the float model of ``source``.

    On the texts of ``held_out``; None takes the text that comes with specdec for this, and what the
    model itself writes, ``tokens`` tokens in all at the least. The folders run on the CPU.

    Raises InvalidInputError, CheckpointError and ModelFolderError for what cannot be used.
    """
    report = progress or (lambda stage, fraction: None)
    checkpoint = open_source(source, target_source)
    refuse_attached(checkpoint, source)
    models = {choice: Model.load(folder, backend="cpu") for choice, folder in folders.items()}
    speech = texts_.Speech.of(checkpoint)
    length = min(512, *(model.config.context for model in models.values()))
    texts = _encode(
        speech, texts_.read(held_out) if held_out else texts_.shipped(texts_.HELD_OUT), length
    )
    missing = tokens - texts_.all_tokens(texts)
    if held_out is None and missing > 0:
        texts += _written(
            target_source or source, missing, report, seed=0, length=length, held_out=True
        )
    reference = FloatReference(
        checkpoint, texts, progress=lambda done: report("running the float model", done)
    )
    results = [compare("float", reference, reference.logits)]
    for choice, model in models.items():
        told = partial(report, f"measuring {choice}")
        results.append(compare(choice, reference, model_logits(model, texts), told))
    return results


def calibration_texts(
    source: Path,
    settings: Settings,
    *,
    target_source: Path | None = None,
    chat_template: str | None = None,
    progress: Progress | None = None,
) -> list[list[int]]:
    """Token ids to calibrate with, as ``settings`` has it; a drafter reads what its target writes.

    Raises InvalidInputError for a file that cannot be used, CheckpointError for a checkpoint.
    """
    report = progress or (lambda stage, fraction: None)
    checkpoint = open_source(source, target_source)
    template = None if chat_template is None else load_template(chat_template)
    speech = texts_.Speech.of(checkpoint, template)
    length = min(texts_.LENGTH, settings.context)
    if settings.calibration is not None:
        return _encode(speech, texts_.read(settings.calibration), length)
    texts = _encode(speech, texts_.shipped(texts_.CALIBRATION), length)
    if settings.written_tokens:
        texts += _written(
            target_source or source,
            settings.written_tokens,
            report,
            seed=settings.seed,
            length=length,
            chat_template=chat_template,
        )
    return texts


def _is_held_as_it_is(checkpoint: Checkpoint, layout: HtpLayout) -> bool:
    """Whether no linear of the layers changes, going by those of the first."""
    names = [f"layers.0.{role}" for role in LINEAR_INPUTS]
    return all(is_held_as_it_is(load_linear(checkpoint, name), layout.kind(name)) for name in names)


def _written(
    source: Path,
    tokens: int,
    report: Progress,
    *,
    seed: int,
    length: int,
    chat_template: str | None = None,
    held_out: bool = False,
) -> list[list[int]]:
    """What the model of ``source`` writes, in the layout that is fast on the CPU."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        folder = convert(
            source,
            Path(scratch) / "writer",
            chat_template=chat_template,
            progress=lambda stage, done: report("preparing to write text", done),
        )
        what = "held-out" if held_out else "calibration"
        return texts_.write(
            Model.load(folder, backend="cpu"),
            tokens,
            seed=seed,
            length=length,
            held_out=held_out,
            progress=lambda done: report(f"writing {what} text", done),
        )


def _encode(speech: texts_.Speech, contents: Sequence[str], length: int) -> list[list[int]]:
    return [piece for content in contents for piece in speech.encode(content, length)]


def _mix(
    checkpoint: Checkpoint,
    texts: Sequence[Sequence[int]],
    layout: HtpLayout,
    megabytes: float,
    report: Progress,
) -> HtpLayout:
    """``layout`` with 8 bits for the linears that need them most."""
    few: list[Sequence[int]] = []
    for text in reversed(texts):  # what the model wrote lies at the end
        if texts_.all_tokens(few) >= _SCANNED_TOKENS:
            break
        few.append(text)
    found = scan(checkpoint, few, layout, "mse", lambda done: report("scanning sensitivity", done))
    kinds = choose(found, int(megabytes * 1e6))
    return layout.mixed(f"{layout.name}-mixed", kinds)
