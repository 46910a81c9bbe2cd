"""Converts checkpoints to folders of fixed-shape graphs for the Hexagon NPU: ``convert_htp``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specdec.convert.chat_templates import load_template
from specdec.convert.checkpoint import ModelConfig, ModelSource
from specdec.convert.float_forward import LINEAR_INPUTS, LayerWeights, load_linear
from specdec.convert.htp.calibration import Calibration
from specdec.convert.htp.graph import HALF_ENCODINGS, HTP_GRAPH_VERSION, LayerTensors
from specdec.convert.htp.layouts import DEFAULT_HTP_LAYOUT, HTP_LAYOUTS, HtpLayout
from specdec.convert.htp.parts import DEFAULT_PART_BYTES, LayersPart, cut_layers, write_heads
from specdec.convert.htp.ranges import HALF, ROTARY, Range, Ranges, encode_range, quantise
from specdec.convert.htp.stats import Quantiser, round_linear
from specdec.convert.htp.weights import MinimaLinear, QuantLinear
from specdec.convert.matrix import FloatArray
from specdec.convert.rotary import rotary_tables
from specdec.convert.source import open_source, write_around_graph, write_model_json
from specdec.errors import CheckpointError, InvalidInputError
from specdec.htp_plan import PLAN_FILE, Encoding, HtpPlan, Part
from specdec.model_folder import create_model_folder

EMBEDDING_FILE = "embedding.bin"
ROTARY_FILE = "rotary.bin"
SINK_FILE = "sink.npz"
_ROWS = 4096  # rows of the embedding that are converted at a time
_WIDEST = 1024
_HALF_BLOCKED = np.float16(-10_000)  # no score comes near it, and the sum stays finite


def convert_htp(
    source: Path,
    destination: Path,
    *,
    layout: str | HtpLayout = DEFAULT_HTP_LAYOUT,
    widths: Sequence[int] = (8, 32),
    context: int = 1024,
    calibration: Sequence[Sequence[int]] = (),
    quantiser: Quantiser = round_linear,
    gather_moments: bool = False,
    ranges: Mapping[str, Range] | None = None,
    target_source: Path | None = None,
    name: str | None = None,
    sampling: dict[str, Any] | None = None,
    chat_template: str | None = None,
    part_bytes: int = DEFAULT_PART_BYTES,
    best_head: bool = True,
    replace: bool = False,
    progress: Callable[[str, float], None] | None = None,
) -> Path:
    """Converts the checkpoint ``source`` to fixed-shape graphs in the folder ``destination``.

    Args:
        source: As for ``convert``; ``target_source``, ``name``, ``sampling``, ``chat_template``,
            ``replace`` and ``progress`` too.
        layout: One of ``HTP_LAYOUTS``, by name or with some linears of other kinds.
        widths: Tokens that a step may have, one graph each.
        context: Columns of past K/V that the graphs take; the tokens that a text may have.
        calibration: Token ids of texts, from which the ranges of activations come (and the
            statistics for ``quantiser``). Each begins with the sink token (the model's BOS, else
            the token that they all begin with); where one does not, it is put in front. Not needed
            for float16.
        quantiser: Decides codes and scales of each linear. Kinds with minima it is asked for
            before there are statistics of the layer.
        gather_moments: Whether ``quantiser`` wants the statistics of the linears' inputs.
        ranges: By site, instead of those of ``calibration``.
        part_bytes: Weights that a part may hold.
        best_head: Whether to write a head that gives the best token's id alone.

    Returns:
        ``destination``.

    Raises:
        CheckpointError: The checkpoint cannot be converted.
        InvalidInputError: An argument is out of range, there is nothing to calibrate from, or
            the checkpoint is an attached drafter's.
        ModelFolderError: ``destination`` cannot be written. Nothing is left behind.
    """
    report = progress or (lambda stage, fraction: None)
    if isinstance(layout, str):
        layout = _layout(layout)
    if part_bytes < 1:
        raise InvalidInputError(f"part_bytes is {part_bytes}: give a number above 0")
    report("checking", 0.0)
    template = None if chat_template is None else load_template(chat_template)
    checkpoint = open_source(source, target_source)
    refuse_attached(checkpoint, source)
    check_sizes(widths, context, checkpoint.config, layout)
    widths = tuple(sorted(set(widths)))
    graph = {
        "file": PLAN_FILE,
        "backend": "qnn",
        "layout": layout.name,
        "version": HTP_GRAPH_VERSION,
    }
    report("checking", 1.0)
    with create_model_folder(destination, replace=replace) as folder:
        tokenizer = write_around_graph(checkpoint, folder, template)
        writer = _Writer(checkpoint, layout, folder, widths, context, quantiser)
        if layout.is_quantised:
            sink = _sink_token(tokenizer["bos_id"], calibration, source)
            writer.calibrate(_texts(sink, calibration, context), ranges, gather_moments)
        plan = writer.write(part_bytes, best_head, lambda done: report("writing the graphs", done))
        plan.write(folder)
        write_model_json(
            checkpoint,
            folder,
            name=name or destination.name,
            graph=graph,
            tokenizer=tokenizer,
            sampling=sampling,
            context=context,
        )
    return destination


class _Writer:
    """Moves calibration and weights through the layers together, so that each is loaded once."""

    def __init__(
        self,
        checkpoint: ModelSource,
        layout: HtpLayout,
        folder: Path,
        widths: Sequence[int],
        past: int,
        quantiser: Quantiser,
    ) -> None:
        self._checkpoint = checkpoint
        self._config = checkpoint.config
        self._layout = layout
        self._folder = folder
        self._widths = widths
        self._past = past
        self._quantiser = quantiser
        self._calibration: Calibration | None = None
        self._keys: list[Encoding] = []
        self._values: list[Encoding] = []

    def calibrate(
        self, texts: Sequence[Sequence[int]], ranges: Mapping[str, Range] | None, gather: bool
    ) -> None:
        """Ranges from ``texts`` unless given; position 0 of the first of them is the sink."""
        self._calibration = Calibration(self._checkpoint, texts, ranges, gather=gather)

    def write(self, part_bytes: int, best_head: bool, progress: Callable[[float], None]) -> HtpPlan:
        """Writes every file of the plan, and returns the plan."""
        config, half = self._config, not self._layout.is_quantised
        x = first_x = self._write_embedding()
        parts: list[Part] = []
        for index, layers in enumerate(cut_layers(config, self._layout, part_bytes)):
            name = f"layers{index}"
            with LayersPart(self._folder, name, config, layers, self._widths, self._past) as part:
                for layer in layers:
                    progress(layer / (config.layers + 1))
                    tensors = self._layer(layer, x)
                    part.add(layer, tensors)
                    x = tensors.encodings["residual"]
                parts.append(part.save())
        progress(config.layers / (config.layers + 1))
        heads, logits = self._heads(x, best_head)
        if self._calibration is not None:
            np.savez(self._folder / SINK_FILE, **self._calibration.sink())
        progress(1.0)
        return HtpPlan(
            past=self._past,
            widths=tuple(self._widths),
            x=first_x,
            rotary=self._write_rotary(),
            key=tuple(self._keys),
            value=tuple(self._values),
            logits=logits,
            mask_allowed=0 if half else 65535,
            mask_blocked=int(_HALF_BLOCKED.view(np.uint16)) if half else 0,
            embedding_file=EMBEDDING_FILE,
            rotary_file=ROTARY_FILE,
            sink_file=None if half else SINK_FILE,
            parts=(*parts, *heads),
        )

    def _layer(self, layer: int, x: Encoding) -> LayerTensors:
        """The tensors of ``layer``, whose input is encoded as ``x``."""
        weights = LayerWeights.load(self._checkpoint, layer)
        prefix = f"layers.{layer}."
        linears = {
            role: self._quantise(prefix + role, weights.linears[role], None)
            for role in LINEAR_INPUTS
            if self._layout.kind(prefix + role).minima
        }
        minima = {role: each for role, each in linears.items() if isinstance(each, MinimaLinear)}
        encodings, constants = HALF_ENCODINGS, {}
        if self._calibration is not None:
            encodings, scales = self._calibration.layer(layer, weights, x, minima)
            constants = scales.constants()
        for role, site in LINEAR_INPUTS.items():
            if role not in linears:
                linears[role] = self._quantise(prefix + role, weights.linears[role], prefix + site)
        if self._calibration is not None:
            linears |= scales.applied(linears)
        self._keys.append(encodings["key_cache"])
        self._values.append(encodings["value_cache"])
        return LayerTensors(linears, weights.norms, encodings, constants)

    def _heads(self, x: Encoding, best_head: bool) -> tuple[list[Part], Encoding]:
        gain = self._checkpoint.vector("final_norm")
        weights = load_linear(self._checkpoint, "head")
        linear = None
        if self._layout.kind("head").minima:
            linear = self._quantise("head", weights, None)
        encodings = HALF_ENCODINGS
        if self._calibration is not None:
            minima = linear if isinstance(linear, MinimaLinear) else None
            encodings = self._calibration.head(gain, weights, x, minima)
        linear = linear or self._quantise("head", weights, "final_norm")
        parts = write_heads(
            self._folder, self._config, self._widths, gain, linear, encodings, best=best_head
        )
        return parts, encodings["logits"]

    def _quantise(self, name: str, weights: FloatArray, site: str | None) -> QuantLinear:
        """``site`` is the input's; None: before the layer's statistics are known."""
        stats = None
        if self._calibration is not None and site is not None:
            stats = self._calibration.stats(site)
        return self._quantiser(name, weights, self._layout.kind(name), stats)

    def _write_embedding(self) -> Encoding:
        """Writes the embedding's rows; returns their encoding."""
        matrix, vocab = self._checkpoint.matrix("embedding"), self._config.vocab
        pieces = [slice(first, first + _ROWS) for first in range(0, vocab, _ROWS)]
        encoding = HALF
        if self._layout.is_quantised:
            seen = Ranges()
            for rows in pieces:
                seen.observe("x", matrix.take_rows(rows).dequantise())
            encoding = encode_range(seen["x"])
        with (self._folder / EMBEDDING_FILE).open("wb") as file:
            for rows in pieces:
                quantise(matrix.take_rows(rows).dequantise(), encoding).tofile(file)
        return encoding

    def _write_rotary(self) -> Encoding:
        encoding = ROTARY if self._layout.is_quantised else HALF
        tables = np.stack(rotary_tables(self._checkpoint, self._past + max(self._widths)))
        quantise(tables, encoding).tofile(self._folder / ROTARY_FILE)
        return encoding


def _layout(name: str) -> HtpLayout:
    if name not in HTP_LAYOUTS:
        raise InvalidInputError(f"no layout '{name}': choose one of {', '.join(HTP_LAYOUTS)}")
    return HTP_LAYOUTS[name]


def refuse_attached(checkpoint: ModelSource, source: Path) -> None:
    """Raises InvalidInputError for an attached drafter: there are no fixed-shape graphs of it."""
    if checkpoint.config.target_layers is not None:
        raise InvalidInputError(
            f"{source}: an attached drafter runs on the CPU only, since it reads its target's "
            "hidden state and K/V there; for the NPU take a standalone drafter"
        )


def check_sizes(
    widths: Sequence[int], context: int, config: ModelConfig, layout: HtpLayout
) -> None:
    """Raises InvalidInputError for widths or a context that there can be no graphs of."""
    # Other widths run in other kernels, whose results differ in their last bits: a draft of another
    # length would then give another text.
    step = 2 if layout.is_quantised else 8
    if not widths or any(width < step or width % step or width > _WIDEST for width in widths):
        raise InvalidInputError(
            f"widths {list(widths)}: give one or more multiples of {step} up to {_WIDEST}"
        )
    if not max(widths) <= context <= config.context:
        raise InvalidInputError(
            f"a context of {context} tokens: the model takes {config.context} at most, and the "
            f"widest step {max(widths)}"
        )


def _sink_token(bos: int | None, calibration: Sequence[Sequence[int]], source: Path) -> int:
    """The token that every text will begin with."""
    if bos is not None:
        return bos
    first = {text[0] for text in calibration if text}
    if len(first) != 1:
        raise CheckpointError(
            f"{source}: its tokenizer names no first token; give calibration texts that all begin "
            "with the same one"
        )
    return first.pop()


def _texts(sink: int, calibration: Sequence[Sequence[int]], context: int) -> list[list[int]]:
    """The texts to calibrate with, each from one sink on and no longer than the context.

    A second sink right behind the first would have its huge activations too, and spoil the ranges.
    """
    texts = []
    for text in calibration:
        first = next((at for at, token in enumerate(text) if token != sink), len(text))
        texts.append([sink, *text[first:]][:context])
    return texts or [[sink]]
