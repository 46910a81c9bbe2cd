"""Which linears need 8 bits when the rest have 4: measured one by one, then chosen for a budget."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from specdec.convert.checkpoint import Checkpoint
from specdec.convert.float_forward import LINEAR_INPUTS, FloatForward, LayerWeights, load_linear
from specdec.convert.htp.layouts import HtpLayout
from specdec.convert.htp.parts import linear_shapes
from specdec.convert.htp.stats import StatsGatherer
from specdec.convert.htp.weights import W8, Kind
from specdec.quantize.first_row import first_row_apart
from specdec.quantize.grid import FloatArray
from specdec.quantize.linears import quantise_linear


@dataclass(frozen=True)
class Sensitivity:
    """What it costs to hold one linear in the layout's kind while all others are float."""

    linear: str
    kl: float
    """Mean KL(float || quantised) in nats."""
    extra_bytes: int
    """What the linear takes in 8 bits beyond that."""


def scan(
    checkpoint: Checkpoint,
    texts: Sequence[Sequence[int]],
    layout: HtpLayout,
    method: str,
    progress: Callable[[float], None] = lambda fraction: None,
) -> list[Sensitivity]:
    """The sensitivity of every linear of the layers that ``layout`` holds in 4 bits.

    Keeps all layers in memory in float32. Each linear takes a forward pass of ``texts`` through the
    layers from its own on: a few hundred tokens tell the linears apart.
    """
    layers = checkpoint.config.layers
    weights = [LayerWeights.load(checkpoint, layer) for layer in range(layers)]
    gain, head = checkpoint.vector("final_norm"), load_linear(checkpoint, "head")
    streams = [FloatForward(checkpoint, texts)]
    for layer in range(layers):
        streams.append(copy.deepcopy(streams[-1]))
        streams[-1].layer(weights[layer], "", _ignore)
    expected = _distributions(streams[-1], gain, head)
    found = []
    for layer in range(layers):
        gatherer = StatsGatherer(set(LINEAR_INPUTS.values()))
        copy.deepcopy(streams[layer]).layer(weights[layer], "", gatherer.observe)
        for index, (role, site) in enumerate(LINEAR_INPUTS.items()):
            progress((layer + index / len(LINEAR_INPUTS)) / layers)
            name = f"layers.{layer}.{role}"
            kind = layout.kind(name)
            if kind.bits != 4:
                continue
            linear = quantise_linear(
                weights[layer].linears[role], kind, gatherer.stats(site), method
            )
            exact = weights[layer].linears
            changed = exact | {role: first_row_apart(exact[role], linear.dequantise())}
            stream = copy.deepcopy(streams[layer])
            stream.layer(LayerWeights(changed, weights[layer].norms), "", _ignore)
            for after in weights[layer + 1 :]:
                stream.layer(after, "", _ignore)
            kl = _divergence(expected, _distributions(stream, gain, head))
            shape = linear_shapes(checkpoint.config)[role]
            found.append(Sensitivity(name, kl, W8.bytes(*shape) - kind.bytes(*shape)))
    progress(1.0)
    return found


def choose(sensitivities: Sequence[Sensitivity], budget: int) -> Mapping[str, Kind]:
    """The linears to hold in 8 bits, for at most ``budget`` bytes more.

    Takes those that give most KL back for a byte, as if the linears' KLs added up.
    """
    chosen: dict[str, Kind] = {}
    left = budget
    for entry in sorted(sensitivities, key=lambda entry: -entry.kl / max(entry.extra_bytes, 1)):
        if entry.extra_bytes <= left:
            chosen[entry.linear] = W8
            left -= entry.extra_bytes
    return chosen


def _distributions(forward: FloatForward, gain: FloatArray, head: FloatArray) -> list[FloatArray]:
    """Log probabilities of each text."""
    rows: list[FloatArray] = []

    def keep(site: str, logits: FloatArray) -> None:
        if site == "logits":
            shifted = logits - logits.max(axis=-1, keepdims=True)
            rows.append(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))

    copy.deepcopy(forward).head(gain, head, keep)
    return rows


def _divergence(expected: Sequence[FloatArray], found: Sequence[FloatArray]) -> float:
    rows = [
        (np.exp(float_rows) * (float_rows - other)).sum(axis=-1)
        for float_rows, other in zip(expected, found, strict=True)
    ]
    return float(np.concatenate(rows).mean(dtype=np.float64))


def _ignore(site: str, values: FloatArray) -> None:
    pass
