"""How far a quantised model's distributions are from the float model's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdec import _core
from specdec.convert.checkpoint import Checkpoint
from specdec.convert.float_forward import FloatForward, LayerWeights, load_linear
from specdec.model import Model
from specdec.quantize.first_row import first_row_apart
from specdec.quantize.grid import FloatArray

_STEP = 32  # most tokens that a model is given at a time

Texts = Sequence[Sequence[int]]
Logits = Callable[[int], FloatArray]
"""Logits [tokens - 1, head_size] of text i: of every position but 0, whose results are given."""


@dataclass(frozen=True)
class Quality:
    """Over all positions but the first of each text."""

    choice: str
    positions: int
    top1: float
    """How often the most probable token is the float model's."""
    kl: float
    """Mean KL(float || choice) in nats."""
    kl_error: float
    """Its standard error."""
    perplexity: float
    perplexity_ratio: float
    """To the float model's."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class FloatReference:
    """The float model's results on texts; keeps what the head reads and not the logits."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        texts: Texts,
        replaced: Mapping[str, FloatArray] | None = None,
        progress: Callable[[float], None] = lambda fraction: None,
    ) -> None:
        """``replaced`` gives other weights [inputs, outputs] to some linears, by name.

        They act on all positions but 0, as in the graphs.
        """
        self.texts = texts
        self.head_ids = checkpoint.head_ids
        replaced = replaced or {}
        forward = FloatForward(checkpoint, texts)
        layers = checkpoint.config.layers
        for layer in range(layers):
            progress(layer / layers)
            weights = LayerWeights.load(checkpoint, layer)
            prefix = f"layers.{layer}."
            for role, exact in weights.linears.items():
                if prefix + role in replaced:
                    weights.linears[role] = first_row_apart(exact, replaced[prefix + role])
            forward.layer(weights, prefix, lambda site, values: None)
        head = replaced.get("head")
        self._head = load_linear(checkpoint, "head") if head is None else head
        self._inputs: list[FloatArray] = []
        forward.head(checkpoint.vector("final_norm"), self._head[:, :1], self._keep)
        progress(1.0)

    def logits(self, text: int) -> FloatArray:
        """As ``Logits``."""
        return self._inputs[text] @ self._head

    def _keep(self, site: str, values: FloatArray) -> None:
        if site == "final_norm":
            self._inputs.append(values)


def model_logits(model: Model, texts: Texts) -> Logits:
    """What a model folder's own graphs give, on the path that generation takes."""
    step = _STEP if model.plan is None else min(_STEP, model.plan.widths[-1])
    decoder = model.new_decoder(capacity=max(map(len, texts)), max_logit_rows=step)

    def logits(text: int) -> FloatArray:
        tokens = texts[text]
        decoder.truncate(0)
        rows = [_step(decoder, tokens[:1])]
        for first in range(1, len(tokens), step):
            rows.append(_step(decoder, tokens[first : first + step]))
        return np.concatenate(rows[1:])

    return logits


@dataclass(frozen=True)
class TextComparison:
    """What the positions of one text showed."""

    kl: FloatArray  # [positions]
    agreement: NDArray[np.bool_]  # [positions], of the most probable tokens
    losses: FloatArray  # of the tokens that follow, where the head can name them
    float_losses: FloatArray


def compare_texts(
    reference: FloatReference,
    logits: Logits,
    progress: Callable[[float], None] = lambda fraction: None,
) -> list[TextComparison]:
    """What ``logits`` gives for each of the reference's texts against what the reference gives."""
    comparisons = []
    for index, text in enumerate(reference.texts):
        progress(index / len(reference.texts))
        expected = _log_softmax(reference.logits(index))
        found = _log_softmax(logits(index))
        rows, columns = _following(text, reference.head_ids)
        comparisons.append(
            TextComparison(
                kl=(np.exp(expected) * (expected - found)).sum(axis=-1),
                agreement=expected.argmax(axis=-1) == found.argmax(axis=-1),
                losses=-found[rows, columns],
                float_losses=-expected[rows, columns],
            )
        )
    progress(1.0)
    return comparisons


def summarise(choice: str, comparisons: Sequence[TextComparison]) -> Quality:
    """The quality over the positions of several texts."""
    kl = np.concatenate([entry.kl for entry in comparisons]).astype(np.float64)
    agreement = np.concatenate([entry.agreement for entry in comparisons])
    loss = np.concatenate([entry.losses for entry in comparisons]).mean(dtype=np.float64)
    float_loss = np.concatenate([entry.float_losses for entry in comparisons]).mean(
        dtype=np.float64
    )
    return Quality(
        choice=choice,
        positions=len(kl),
        top1=float(agreement.mean()),
        kl=float(kl.mean()),
        kl_error=float(kl.std() / math.sqrt(len(kl))),
        perplexity=math.exp(loss),
        perplexity_ratio=math.exp(loss - float_loss),
    )


def compare(
    choice: str,
    reference: FloatReference,
    logits: Logits,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Quality:
    """The quality of what ``logits`` gives for the reference's texts."""
    return summarise(choice, compare_texts(reference, logits, progress))


def _step(decoder: _core.Decoder, tokens: Sequence[int]) -> FloatArray:
    rows = decoder.forward(tokens, len(tokens)).copy()
    decoder.commit(len(tokens))
    return rows


def _following(
    text: Sequence[int], head_ids: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows whose next token the head can name, and that token's column."""
    tokens = np.asarray(text[2:], np.int64)
    rows = np.arange(len(tokens))
    if head_ids is None:
        return rows, tokens
    columns = np.searchsorted(head_ids, tokens)
    columns[columns == len(head_ids)] = 0
    named = head_ids[columns] == tokens
    return rows[named], columns[named]


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
