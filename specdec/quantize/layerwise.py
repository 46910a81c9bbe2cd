"""Quantises layer after layer, each with the inputs that the quantised layers before it give."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from specdec.convert.checkpoint import Checkpoint
from specdec.convert.float_forward import LINEAR_INPUTS, FloatForward, LayerWeights
from specdec.convert.htp.stats import LinearStats, StatsGatherer
from specdec.convert.htp.weights import Kind, QuantLinear
from specdec.quantize.first_row import first_row_apart
from specdec.quantize.grid import FloatArray
from specdec.quantize.linears import is_held_as_it_is, quantise_linear

_SITES = {*LINEAR_INPUTS.values(), "final_norm"}


class LayerwiseQuantiser:
    """A ``Quantiser`` for ``convert_htp``, which asks for linears in the order of the layers.

    It moves texts of its own through the layers as they were quantised, so that a layer's codes
    also make up for what the layers before it got wrong. One layer is in memory at a time.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        texts: Sequence[Sequence[int]],
        kind_of: Callable[[str], Kind],
        method: str,
    ) -> None:
        """``texts`` are token ids from position 0, which is left out of the statistics."""
        self._checkpoint = checkpoint
        self._forward = FloatForward(checkpoint, texts)
        self._kind_of = kind_of
        self._method = method
        self._layer = -1
        self._ready: dict[str, QuantLinear] = {}

    def __call__(
        self, name: str, weights: FloatArray, kind: Kind, stats: LinearStats | None
    ) -> QuantLinear:
        """As ``Quantiser``; ``stats`` are not used."""
        if name == "head":
            return self._head(weights, kind)
        layer = int(name.split(".")[1])
        while self._layer < layer:
            self._advance(self._layer + 1)
        return self._ready[name]

    def _advance(self, layer: int) -> None:
        """Quantises a layer, and moves the texts through the result."""
        self._layer = layer
        prefix = f"layers.{layer}."
        weights = LayerWeights.load(self._checkpoint, layer)
        gatherer: StatsGatherer | None = None
        if not all(
            is_held_as_it_is(linear, self._kind_of(prefix + role))
            for role, linear in weights.linears.items()
        ):
            gatherer = StatsGatherer(_SITES)
            copy.deepcopy(self._forward).layer(weights, prefix, gatherer.observe)
        self._ready.clear()
        for role, site in LINEAR_INPUTS.items():
            name = prefix + role
            stats = None if gatherer is None else gatherer.stats(prefix + site)
            linear = quantise_linear(
                weights.linears[role], self._kind_of(name), stats, self._method
            )
            self._ready[name] = linear
            weights.linears[role] = first_row_apart(weights.linears[role], linear.dequantise())
        self._forward.layer(weights, prefix, lambda site, values: None)

    def _head(self, weights: FloatArray, kind: Kind) -> QuantLinear:
        gatherer = StatsGatherer(_SITES)
        gain = self._checkpoint.vector("final_norm")
        # Only the head's inputs are wanted: one column stands for all of its outputs.
        self._forward.head(gain, weights[:, :1], gatherer.observe)
        return quantise_linear(weights, kind, gatherer.stats("final_norm"), self._method)
