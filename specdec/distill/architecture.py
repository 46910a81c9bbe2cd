"""What shape of drafter fits a budget, and which ids its head holds.

Three forms: some of the target's own layers, attached to it or standing alone (embedding and head
are the target's), or, where not one of those fits, a small Llama of its own width.

A drafter's cost is counted in the weights that one step reads, as decoding is bound by memory; the
embedding is no part of it, since a step reads one row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from specdec.convert.checkpoint import BLOCK, ModelConfig
from specdec.convert.matrix import IndexArray
from specdec.cost_model import DecoderShape
from specdec.distill.students import KINDS
from specdec.errors import InvalidInputError

TRIMMED_HEAD = 8192
"""Rows of a trimmed head unless asked otherwise (FR-Spec, 2502.14856, and VocabTrim, 2506.22694,
keep about a quarter to a tenth)."""

WIDTH_PER_LAYER = 256
"""Hidden size over layers that a drafter of its own width aims at: shallow, as its layers run one
after the other for each drafted token. The Llama 2 drafter of 2403.00858 has 1024 over 4."""

_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


@dataclass(frozen=True)
class Plan:
    """A drafter's shape, and where its first weights come from."""

    kind: str
    """``attached`` or ``standalone``."""
    config: ModelConfig
    """The drafter's own."""
    target: ModelConfig
    target_layers: tuple[int, ...] | None
    """Which of the target's layers it starts as; None: it has a width and an embedding of its
    own."""
    head_size: int
    """Rows of the head; the vocabulary's size where it is not trimmed."""
    cost_correction: float = 1.0
    """What counted costs are multiplied by."""

    @property
    def own_embedding(self) -> bool:
        """Whether embedding and head are the drafter's, not the target's."""
        return self.target_layers is None

    @property
    def parameters(self) -> int:
        """Weights that the drafter brings: layers, bridges, norms, and its own embedding and
        head."""
        config = self.config
        norms = (2 * config.layers + 1) * config.hidden
        count = DecoderShape.of(config).layer_weights * config.layers + norms
        if self.own_embedding:
            return count + config.vocab * config.hidden * (1 if config.tied_head else 2)
        return count + len(self.config.bridges) * (2 * config.hidden**2 + 2 * config.hidden)

    @property
    def step_weights(self) -> int:
        """Weights of matrices that one step reads, the head included."""
        shape = DecoderShape.of(self.config, self.head_size)
        bridges = len(self.config.bridges) * 2 * self.config.hidden**2
        return shape.layers * shape.layer_weights + bridges + shape.head_weights

    @property
    def cost(self) -> float:
        """A step's weights over those of a step of the target, corrected."""
        return self.cost_correction * self.step_weights / step_weights(self.target)

    def rows(self) -> list[tuple[str, str]]:
        """The plan as a table: what, and its value."""
        config, target = self.config, self.target
        layers, width = f"{config.layers}", f"{config.hidden}"
        if self.target_layers is not None:
            numbers = ", ".join(map(str, self.target_layers))
            layers += f" of the target's {target.layers}: {numbers}"
            width += " (the target's)"
        else:
            width += f" (the target's: {target.hidden})"
        ends = "its own" + (", tied" if config.tied_head else "")
        rows = [
            ("kind", self.kind),
            ("layers", layers),
            ("width", width),
            (
                "heads",
                f"{config.heads} over {config.kv_heads} key/value heads of {config.head_dim}",
            ),
            ("feed-forward", f"{config.ffn}"),
            ("embedding and head", ends if self.own_embedding else "the target's"),
            ("rows of the head", f"{self.head_size:,} of {config.vocab:,}"),
            ("parameters", f"{self.parameters / 1e6:.1f} M"),
            ("step", f"{self.cost:.1%} of the weights a step of the target reads"),
        ]
        if config.bridges:
            rows.insert(2, ("bridges", f"{len(config.bridges)}"))
        return rows

    def as_json(self) -> dict[str, Any]:
        """For a plan's file; ``from_json`` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Plan:
        """The plan that ``as_json`` wrote; InvalidInputError where it is not one."""
        try:
            values = dict(document)
            for name in ("config", "target"):
                values[name] = ModelConfig(**_with_tuple(values[name]))
            return cls(**_with_tuple(values))
        except (KeyError, TypeError) as error:
            raise InvalidInputError(f"this is no drafter's plan: {error}") from None


def plan_drafter(
    target: ModelConfig,
    *,
    kind: str = "attached",
    size: int | None = None,
    cost: float | None = None,
    layers: Sequence[int] | None = None,
    head_size: int | None = None,
    cost_correction: float = 1.0,
) -> Plan:
    """The largest drafter within a budget.

    Args:
        target: the target's shape.
        kind: ``attached`` or ``standalone``.
        size: parameters that the drafter may bring (see ``Plan.parameters``); a standalone drafter
            of its own width is the one closest to it.
        cost: fraction of a target's step that a step may cost, 0 to 1.
        layers: the target's layers to start as, instead of a budget.
        head_size: rows of the head (None: the most frequent ``TRIMMED_HEAD``, or all of a
            vocabulary less than twice that, or of a drafter with its own embedding).
        cost_correction: a measured fraction over the counted one, of a drafter like this.

    Raises InvalidInputError where no drafter fits, or not exactly one budget is given.
    """
    if kind not in KINDS:
        raise InvalidInputError(f"no kind of drafter '{kind}': choose one of {', '.join(KINDS)}")
    if sum(budget is not None for budget in (size, cost, layers)) != 1:
        raise InvalidInputError("give one of a size, a cost and a list of layers")
    if head_size is not None and not 1 <= head_size <= target.vocab:
        raise InvalidInputError(
            f"a head of {head_size} rows: the target's vocabulary has 1 to {target.vocab}"
        )
    if not cost_correction > 0 or (cost is not None and not 0 < cost < 1):
        raise InvalidInputError(
            f"cost {cost} with correction {cost_correction}: a cost is a fraction of a target's "
            "step, between 0 and 1, and its correction a factor above 0"
        )
    make = _Maker(target, kind, head_size, cost_correction)
    if layers is not None:
        return make.of_layers(layers)

    def fits(plan: Plan) -> bool:
        return plan.parameters <= size if size is not None else plan.cost <= (cost or 0)

    for count in range(target.layers - 1, 0, -1):
        if fits(plan := make.of_layers(chosen_layers(target.layers, count, kind))):
            return plan
    if kind == "attached":
        smallest = make.of_layers(chosen_layers(target.layers, 1, kind))
        raise InvalidInputError(
            f"an attached drafter of one of the target's layers has "
            f"{smallest.parameters / 1e6:.1f} M parameters and costs {smallest.cost:.1%} of a "
            "step: give more, or choose a standalone one"
        )
    return make.of_own_width(size, cost)


def chosen_layers(layers: int, count: int, kind: str) -> tuple[int, ...]:
    """Which ``count`` of a target's ``layers`` a drafter starts as.

    Evenly spread from first to last for an attached one, whose layers need the target's K/V of
    about their own depth. One that stands alone takes the first two, which read the tokens, and
    spreads the rest up to the last. A single layer: the last of an attached drafter, which reads
    the target's final state, else the first.
    """
    if count == 1:
        return (layers - 1,) if kind == "attached" else (0,)
    if kind == "attached" or count == 2:
        return tuple(-(-i * (layers - 1) // (count - 1)) for i in range(count))
    rest = count - 1
    return (0, *(1 + (i * (layers - 2)) // (rest - 1) for i in range(rest)))


def step_weights(config: ModelConfig) -> int:
    """Weights of matrices that a step of a whole model reads."""
    shape = DecoderShape.of(config)
    return shape.layers * shape.layer_weights + shape.head_weights


def parse_size(text: str) -> int:
    """A number of parameters: ``115m``, ``1.1B``, ``500k`` or digits.

    Raises InvalidInputError for anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmb]?)\s*", text.lower())
    if match is None or float(match[1]) == 0:
        raise InvalidInputError(f"'{text}' is no size: write it as 115m, 1.1b or 500k")
    return round(float(match[1]) * _SUFFIXES[match[2]])


def frequent_ids(counts: IndexArray, size: int, always: Sequence[int] = ()) -> IndexArray:
    """The ``size`` most frequent ids and ``always`` among them, int64 ascending.

    ``counts`` [V]: how often each id followed. Of equally frequent ids the lower comes first:
    vocabularies of byte pairs are in the order of their merges. InvalidInputError where they do not
    fit.
    """
    kept = np.unique(np.asarray(always, np.int64))
    if not len(kept) <= size <= len(counts) or (len(kept) and kept[-1] >= len(counts)):
        raise InvalidInputError(
            f"a head of {size} rows for a vocabulary of {len(counts)} with {len(kept)} to keep"
        )
    order = np.argsort(-counts, kind="stable")
    others = order[~np.isin(order, kept)]
    return np.sort(np.concatenate([kept, others[: size - len(kept)]])).astype(np.int64)


def coverage(counts: IndexArray, ids: IndexArray) -> float:
    """The share of all counted tokens that are in ``ids``; 0 of none."""
    return float(counts[ids].sum() / max(1, counts.sum()))


@dataclass(frozen=True)
class _Maker:
    """Plans for one target."""

    target: ModelConfig
    kind: str
    head_size: int | None
    correction: float

    def of_layers(self, layers: Sequence[int]) -> Plan:
        """Of some of the target's layers."""
        target, chosen = self.target, tuple(layers)
        inside = all(0 <= layer < target.layers for layer in chosen)
        if not chosen or not inside or sorted(set(chosen)) != list(chosen):
            raise InvalidInputError(
                f"layers {list(layers)}: give some of 0 to {target.layers - 1} in ascending order"
            )
        small = target.vocab < 2 * TRIMMED_HEAD
        head = self.head_size or (target.vocab if small else TRIMMED_HEAD)
        attached = chosen if self.kind == "attached" else None
        config = replace(target, layers=len(chosen), target_layers=attached)
        return Plan(self.kind, config, target, chosen, head, self.correction)

    def of_own_width(self, size: int | None, cost: float | None) -> Plan:
        """Closest to the budget, at a price for being deeper or shallower than aimed at."""
        best: tuple[float, Plan] | None = None
        for plan in self._candidates():
            if size is not None:
                off = abs(math.log(plan.parameters / size))
            elif plan.cost <= (cost or 0):
                off = math.log((cost or 0) / plan.cost)
            else:
                continue
            config = plan.config
            shape = abs(math.log(config.hidden / (WIDTH_PER_LAYER * config.layers)))
            if best is None or off + shape / 4 < best[0]:
                best = off + shape / 4, plan
        if best is None or (size is not None and best[1].parameters > 2 * size):
            raise InvalidInputError(
                f"not even the smallest drafter for a vocabulary of {self.target.vocab} tokens "
                "fits: give more"
            )
        return best[1]

    def _candidates(self) -> Iterator[Plan]:
        """Every sane shape narrower than the target.

        Heads are of the target's size and shared as there; the feed-forward is Llama's 8/3 of the
        width, rounded up to a multiple of 256, or of 64 where narrow.
        """
        target = self.target
        unit = math.lcm(target.head_dim, BLOCK)
        for hidden in range(unit, target.hidden, unit):
            heads = hidden // target.head_dim
            repeats = target.heads // target.kv_heads
            if heads % repeats:
                continue
            multiple = 256 if hidden >= 768 else 64
            for layers in range(1, max(2, target.layers)):
                config = replace(
                    target,
                    layers=layers,
                    hidden=hidden,
                    heads=heads,
                    kv_heads=heads // repeats,
                    ffn=multiple * math.ceil(8 * hidden / 3 / multiple),
                )
                head = self.head_size or target.vocab
                yield Plan(self.kind, config, target, None, head, self.correction)


def _with_tuple(values: dict[str, Any]) -> dict[str, Any]:
    """JSON's list of layers as the tuple that it was."""
    layers = values["target_layers"]
    return {**values, "target_layers": None if layers is None else tuple(layers)}
