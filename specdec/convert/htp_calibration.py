"""Runs calibration texts beside the conversion: ranges, statistics, and position 0's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdec.convert.checkpoint import Checkpoint
from specdec.convert.float_forward import LINEAR_INPUTS, FloatForward, LayerWeights
from specdec.convert.htp_graph import layer_encodings
from specdec.convert.htp_ranges import Range, Ranges, encode8_symmetric, encode16, quantise
from specdec.convert.htp_stats import LinearStats, StatsGatherer
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
        self._forward = FloatForward(checkpoint, texts)
        self._token = texts[0][0]
        self._ranges = Ranges(ranges)
        self._observers = [] if ranges is not None else [self._ranges.observe]
        self._stats = StatsGatherer({*LINEAR_INPUTS.values(), "final_norm"}) if gather else None
        if self._stats is not None:
            self._observers.append(self._stats.observe)
        self._sink: list[tuple[FloatArray, FloatArray]] = []
        self._sink_logits: FloatArray = np.empty(0, np.float32)

    def layer(self, layer: int, weights: LayerWeights, x: Encoding) -> Mapping[str, Encoding]:
        """Moves the texts through the next layer, whose input is encoded as ``x``."""
        prefix = f"layers.{layer}."
        if self._stats is not None:
            self._stats.clear()
        sink = self._forward.layer(weights, prefix, self._observe)
        self._sink.append(sink)
        key, value = (
            encode8_symmetric(max(*map(abs, self._ranges[prefix + site]), float(abs(part).max())))
            for site, part in zip(("key_rotated", "value"), sink, strict=True)
        )
        return layer_encodings(self._ranges, layer, x, key, value)

    def head(self, gain: FloatArray, weights: FloatArray, x: Encoding) -> Mapping[str, Encoding]:
        """The encodings of the last graphs."""
        if self._stats is not None:
            self._stats.clear()
        self._sink_logits = self._forward.head(gain, weights, self._observe)
        sites = ("final_norm", "logits")
        return {"input": x, **{site: encode16(*self._ranges[site]) for site in sites}}

    def stats(self, site: str) -> LinearStats | None:
        """Of the linears that read ``site``, which is of the layer just passed."""
        return None if self._stats is None else self._stats.stats(site)

    def sink(self, keys: Sequence[Encoding], values: Sequence[Encoding]) -> dict[str, NDArray[Any]]:
        """What position 0 leaves behind: its token, its K/V as encoded, its logits."""
        key = [quantise(part[0], code) for part, code in zip(self._sink, keys, strict=True)]
        value = [quantise(part[1], code) for part, code in zip(self._sink, values, strict=True)]
        return {
            "token": np.array(self._token, np.int32),
            "key": np.stack(key),
            "value": np.stack(value),
            "logits": self._sink_logits,
        }

    def _observe(self, site: str, values: FloatArray) -> None:
        for observe in self._observers:
            observe(site, values)
