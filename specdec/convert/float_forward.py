"""A float32 forward pass that streams through a checkpoint: one layer's weights at a time.

It visits every tensor that the fixed-shape graphs quantise (a *site*) and hands it to an observer,
so that ranges and the statistics of linears' inputs are gathered exactly where they are used.
Position 0 of a text is left out of what is observed: its activations are thousands of times the
others' in some models, and the fixed-shape graphs never compute it (its K/V are copied in).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from specdec.convert.checkpoint import Checkpoint
from specdec.convert.matrix import FloatArray
from specdec.convert.rotary import rotary_tables
from specdec.errors import InvalidInputError

# The linears of a layer, and the site that each reads.
LINEAR_INPUTS: Mapping[str, str] = {
    "query": "attention_norm",
    "key": "attention_norm",
    "value": "attention_norm",
    "attention_output": "attention",
    "gate": "ffn_norm",
    "up": "ffn_norm",
    "down": "gated",
}
NORMS = ("attention_norm", "ffn_norm")

Observe = Callable[[str, FloatArray], None]
"""Called with a site's name and its rows of one text, float32 [rows, features]."""


@dataclass
class LayerWeights:
    """One layer in float32."""

    linears: dict[str, FloatArray]
    """By role, [inputs, outputs]; the query's are divided by the square root of the head's size."""
    norms: dict[str, FloatArray]

    @classmethod
    def load(cls, checkpoint: Checkpoint, layer: int) -> LayerWeights:
        """The weights of ``layer``."""
        prefix = f"layers.{layer}."
        linears = {role: load_linear(checkpoint, prefix + role) for role in LINEAR_INPUTS}
        linears["query"] *= np.float32(1 / math.sqrt(checkpoint.config.head_dim))
        return cls(linears, {name: checkpoint.vector(prefix + name) for name in NORMS})


def load_linear(checkpoint: Checkpoint, name: str) -> FloatArray:
    """The linear ``name`` as float32 [inputs, outputs]."""
    return np.ascontiguousarray(checkpoint.matrix(name).dequantise().T, np.float32)


class FloatForward:
    """The residual stream of several texts, moved through the model layer by layer.

    A layer's sites are named in ``layer``, the last ones in ``head``.
    """

    def __init__(self, checkpoint: Checkpoint, texts: Sequence[Sequence[int]]) -> None:
        """Starts with the embeddings of ``texts``, token ids from position 0."""
        self._config = checkpoint.config
        longest = max((len(text) for text in texts), default=0)
        if not texts or not all(texts) or longest > self._config.context:
            raise InvalidInputError(
                f"calibration needs texts of 1 to {self._config.context} tokens, not {longest}"
            )
        if not all(0 <= token < self._config.vocab for text in texts for token in text):
            raise InvalidInputError(
                f"calibration needs tokens of the vocabulary, 0 to {self._config.vocab - 1}"
            )
        matrix = checkpoint.matrix("embedding")
        self._streams = [
            matrix.take_rows(np.asarray(text, np.int64)).dequantise().astype(np.float32)
            for text in texts
        ]  # [tokens, hidden] of each text
        self._rotary = rotary_tables(checkpoint, longest)

    def cache(
        self, weights: LayerWeights, prefix: str, observe: Observe
    ) -> tuple[FloatArray, FloatArray]:
        """Observes ``key_rotated`` and ``value`` alone, and moves nothing.

        Returns the first text's key (rotated) and value of position 0, [kv_heads * head_dim].
        """
        sinks = []
        for stream in self._streams:
            observer = _Observer(observe, prefix)
            x = self._norm(stream, weights.norms["attention_norm"])
            key = self._rotate(self._heads(x @ weights.linears["key"]))
            observer.heads("key_rotated", key)
            value = observer("value", x @ weights.linears["value"])
            sinks.append((key[:, 0].reshape(-1), value[0]))
        return sinks[0]

    def layer(
        self,
        weights: LayerWeights,
        prefix: str,
        observe: Observe,
        key_centre: FloatArray | None = None,
    ) -> None:
        """Moves every text through one layer, observing its sites under ``prefix``.

        ``key_centre`` [kv_heads * head_dim] is subtracted from the rotated keys before they are
        multiplied, which moves the scores of a row alike and changes nothing else.

        Sites in order: ``attention_norm``; ``query``, ``key``, ``value`` (outputs of their
        linears); ``query_rotated``, ``key_rotated``; ``scores`` (visible ones) and
        ``highest_scores`` (of each row); ``attention``; ``attention_output``; ``middle`` (the
        residual stream between the two blocks); ``ffn_norm``; ``gate``, ``up``, ``silu``,
        ``gated``, ``down``; ``residual`` (the stream after the layer).
        """
        for index, stream in enumerate(self._streams):
            observer = _Observer(observe, prefix)
            middle = self._attention(weights, stream, observer, key_centre)
            self._streams[index] = self._feed_forward(weights, middle, observer)

    def head(self, gain: FloatArray, weights: FloatArray, observe: Observe) -> FloatArray:
        """Observes ``final_norm`` and ``logits``; returns the first text's logits of position 0."""
        observer, sinks = _Observer(observe, ""), []
        for stream in self._streams:
            x = observer("final_norm", self._norm(stream, gain))
            sinks.append(observer("logits", x @ weights)[0])
        first: FloatArray = sinks[0]
        return first

    def _attention(
        self,
        weights: LayerWeights,
        stream: FloatArray,
        observer: _Observer,
        key_centre: FloatArray | None,
    ) -> FloatArray:
        config, linears = self._config, weights.linears
        rows = len(stream)
        x = observer("attention_norm", self._norm(stream, weights.norms["attention_norm"]))
        query, key, value = (
            self._heads(observer(role, x @ linears[role])) for role in ("query", "key", "value")
        )  # each [heads, rows, head_dim]
        query = observer.heads("query_rotated", self._rotate(query))
        key = observer.heads("key_rotated", self._rotate(key))
        keys = key if key_centre is None else key - key_centre.reshape(len(key), 1, -1)
        mixed = np.empty((config.heads, rows, config.head_dim), np.float32)
        group = config.heads // config.kv_heads
        hidden_columns = np.triu(np.ones((rows, rows), bool), 1)
        for head in range(config.kv_heads):
            queries = slice(head * group, (head + 1) * group)
            scores = query[queries] @ keys[head].T  # [group, rows, rows]
            scores[:, hidden_columns] = -np.inf
            highest = scores.max(axis=-1, keepdims=True)
            observer.scores(scores, highest)
            scores = np.exp(scores - highest)
            scores /= scores.sum(axis=-1, keepdims=True)
            mixed[queries] = scores @ value[head]
        x = observer("attention", mixed.swapaxes(0, 1).reshape(rows, -1))
        update = observer("attention_output", x @ linears["attention_output"])
        return observer("middle", stream + update)

    def _feed_forward(
        self, weights: LayerWeights, stream: FloatArray, observer: _Observer
    ) -> FloatArray:
        linears = weights.linears
        x = observer("ffn_norm", self._norm(stream, weights.norms["ffn_norm"]))
        gate = observer("gate", x @ linears["gate"])
        up = observer("up", x @ linears["up"])
        with np.errstate(over="ignore"):  # exp of a very negative gate: the sigmoid is then 0
            silu = observer("silu", gate / (1 + np.exp(-gate)))
        gated = observer("gated", silu * up)
        update = observer("down", gated @ linears["down"])
        return observer("residual", stream + update)

    def _heads(self, x: FloatArray) -> FloatArray:
        """[rows, heads * head_dim] as [heads, rows, head_dim]."""
        return x.reshape(len(x), -1, self._config.head_dim).swapaxes(0, 1)

    def _rotate(self, x: FloatArray) -> FloatArray:
        rows = x.shape[1]
        cosine, sine = (table[:rows] for table in self._rotary)
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate(
            [first * cosine - second * sine, second * cosine + first * sine], axis=-1
        )

    def _norm(self, x: FloatArray, gain: FloatArray) -> FloatArray:
        mean = np.mean(np.square(x), axis=-1, keepdims=True)
        result: FloatArray = x / np.sqrt(mean + np.float32(self._config.norm_eps)) * gain
        return result


class _Observer:
    """Passes on every row but position 0's, and returns what it was given."""

    def __init__(self, observe: Observe, prefix: str) -> None:
        self._observe = observe
        self._prefix = prefix

    def __call__(self, site: str, values: FloatArray) -> FloatArray:
        if len(values) > 1:
            self._observe(self._prefix + site, values[1:])
        return values

    def heads(self, site: str, values: FloatArray) -> FloatArray:
        """The same for ``values`` [heads, rows, head_dim]."""
        self(site, values.swapaxes(0, 1).reshape(values.shape[1], -1))
        return values

    def scores(self, scores: FloatArray, highest: FloatArray) -> None:
        """``scores`` [group, rows, columns], minus infinity where hidden; ``highest`` of rows."""
        if scores.shape[1] > 1:
            rows = scores[:, 1:]
            self._observe(self._prefix + "scores", rows[np.isfinite(rows)][:, None])
            self._observe(self._prefix + "highest_scores", highest[:, 1:].reshape(-1, 1))
