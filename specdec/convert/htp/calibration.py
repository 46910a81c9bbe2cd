"""Runs calibration texts beside the conversion: ranges, statistics, and position 0's results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdec.convert.checkpoint import Checkpoint
from specdec.convert.float_forward import LINEAR_INPUTS, FloatForward, LayerWeights, Observe
from specdec.convert.htp.cache import CacheScales
from specdec.convert.htp.encodings import layer_encodings
from specdec.convert.htp.linears import CODES_PRODUCT, OFFSETS_PRODUCT, SUMS
from specdec.convert.htp.ranges import Range, Ranges, encode_range, include, quantise
from specdec.convert.htp.stats import LinearStats, StatsGatherer
from specdec.convert.htp.weights import MinimaLinear
from specdec.convert.matrix import FloatArray
from specdec.htp_plan import Encoding


class Calibration:
    """The encodings of one layer after the other, while the texts move through them."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        texts: Sequence[Sequence[int]],
        ranges: Mapping[str, Range] | None,
        *,
        gather: bool,
    ) -> None:
        """``ranges`` replace those of ``texts``; ``gather`` asks for statistics too."""
        self._config = checkpoint.config
        self._forward = FloatForward(checkpoint, texts)
        self._token = texts[0][0]
        self._ranges = Ranges(ranges)
        self._is_open = ranges is None  # whether ranges are still to be seen
        self._stats = StatsGatherer({*LINEAR_INPUTS.values(), "final_norm"}) if gather else None
        self._keys: list[NDArray[Any]] = []  # of position 0, as encoded, of each layer
        self._values: list[NDArray[Any]] = []
        self._sink_logits: FloatArray = np.empty(0, np.float32)

    def layer(
        self,
        layer: int,
        weights: LayerWeights,
        x: Encoding,
        minima: Mapping[str, MinimaLinear],
    ) -> tuple[Mapping[str, Encoding], CacheScales]:
        """Moves the texts through the next layer, whose input is encoded as ``x``.

        ``minima`` are its linears with minima, by role.
        """
        prefix = f"layers.{layer}."
        inputs = {prefix + role: prefix + LINEAR_INPUTS[role] for role in minima}
        linears = {prefix + role: linear for role, linear in minima.items()}
        ignore = Ranges()
        key, value = self._forward.cache(
            weights, prefix, (self._ranges if self._is_open else ignore).observe
        )
        # Every later position reads position 0's key: it must fit like the others.
        scales = CacheScales.fit(
            include(self._ranges[prefix + "key_rotated"], key),
            include(self._ranges[prefix + "value"], value),
            heads=self._config.heads,
            head_dim=self._config.head_dim,
        )
        observe = self._observer(linears, inputs)
        self._forward.layer(weights, prefix, observe, scales.key_centre * scales.key)
        sink = scales.encoded_key(key), scales.encoded_value(value)
        encodings = layer_encodings(self._ranges, prefix, x, scales, sink, minima)
        for kept, new, name in zip(
            (self._keys, self._values), sink, ("key_cache", "value_cache"), strict=True
        ):
            kept.append(quantise(new.reshape(-1, self._config.head_dim), encodings[name]))
        return encodings, scales

    def head(
        self, gain: FloatArray, weights: FloatArray, x: Encoding, minima: MinimaLinear | None
    ) -> Mapping[str, Encoding]:
        """The encodings of the last graphs; ``minima``: the head where it is such a linear."""
        linears = {} if minima is None else {"logits": minima}
        observe = self._observer(linears, dict.fromkeys(linears, "final_norm"))
        self._sink_logits = self._forward.head(gain, weights, observe)
        sites = ["final_norm", "logits"]
        if minima is not None:
            sites += ["final_norm" + SUMS, "logits" + CODES_PRODUCT, "logits" + OFFSETS_PRODUCT]
        return {"input": x, **{site: encode_range(self._ranges[site]) for site in sites}}

    def stats(self, site: str) -> LinearStats | None:
        """Of the linears that read ``site``, which is of the layer just passed."""
        return None if self._stats is None else self._stats.stats(site)

    def sink(self) -> dict[str, Any]:
        """What position 0 leaves behind: its token, its K/V as encoded, its logits."""
        return {
            "token": np.array(self._token, np.int32),
            "key": np.stack(self._keys),
            "value": np.stack(self._values),
            "logits": self._sink_logits,
        }

    def _observer(self, linears: Mapping[str, MinimaLinear], inputs: Mapping[str, str]) -> Observe:
        observers: list[Callable[[str, FloatArray], None]] = []
        if self._is_open:
            observers.append(self._ranges.observe)
            if linears:
                observers.append(_MinimaObserver(linears, inputs, self._ranges.observe))
        if self._stats is not None:
            self._stats.clear()
            observers.append(self._stats.observe)

        def observe(site: str, values: FloatArray) -> None:
            for observer in observers:
                observer(site, values)

        return observe


class _MinimaObserver:
    """Sees a linear's input, then its output, and tells the two products that it is the sum of."""

    def __init__(
        self,
        linears: Mapping[str, MinimaLinear],
        inputs: Mapping[str, str],
        observe: Observe,
    ) -> None:
        """``linears`` by the site of their output, ``inputs`` their input's site by the same."""
        self._linears = linears
        self._inputs = inputs
        self._observe = observe
        self._products: dict[str, FloatArray] = {}

    def __call__(self, site: str, values: FloatArray) -> None:
        for output, linear in self._linears.items():
            if self._inputs[output] == site:
                sums = values.reshape(len(values), -1, linear.block).sum(axis=-1)
                self._observe(site + SUMS, sums)
                self._products[output] = sums @ linear.offsets
        if site in self._products:
            product = self._products.pop(site)
            self._observe(site + OFFSETS_PRODUCT, product)
            self._observe(site + CODES_PRODUCT, values - product)
