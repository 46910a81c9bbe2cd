"""One toy target, toy drafters of every kind for it, and engines of the two."""

from __future__ import annotations

from typing import Any

import numpy as np
from attached_toy import AttachedToy, TargetToy
from toy import Table, Toy, near, random_table, run_stream

from specdec import _core

V = 12
TABLE = random_table(21, V)
HEAD = [0, 2, 3, 5, 8, 9, 11]
PROMPT = [1, 2, 3, 1, 2]
PENALTIES = {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2}
KINDS = ["near", "random", "trimmed", "constant", "short context"]
DRAFTERS = [*KINDS, "ngram"]


class Broken(Exception):
    """What a toy is made to raise."""


def drafter_table(kind: str) -> tuple[Table, list[int] | None]:
    """A drafter's table, and its head's ids where it is trimmed."""
    if kind == "near":
        return near(TABLE, 1), None
    if kind == "random":
        return random_table(77, V), None
    if kind == "trimmed":
        return near(TABLE, 2)[:, :, HEAD], HEAD
    if kind == "constant":
        return np.zeros((V, V, 1), np.float32), [7]
    assert kind == "short context"
    return near(TABLE, 3), None


def drafter_toy(kind: str, min_width: int = 1) -> Toy:
    table, head_ids = drafter_table(kind)
    capacity = 40 if kind == "short context" else 512
    return Toy(table, head_ids=head_ids, min_width=min_width, capacity=capacity)


def drafter_of(kind: str, min_width: int = 1) -> Any:
    if kind == "ngram":
        return _core.NgramDrafter(min_match=1, max_match=3)
    return _core.ModelDrafter(drafter_toy(kind, min_width).decoder)


def speculative(
    kind: str, k: int, options: Any, *, min_width: int = 1, prompt: list[int] = PROMPT
) -> list[int]:
    """The text of a standalone drafter's stream."""
    engine = _core.Engine(Toy(TABLE, min_width=min_width).decoder, drafter_of(kind, min_width))
    engine.set_draft_length(k)
    return run_stream(engine, prompt, options)


def attached_pair(kind: str = "near", **target: Any) -> tuple[TargetToy, AttachedToy, Any]:
    """A target, the drafter attached to it, and an engine of the two."""
    toy = TargetToy(TABLE, **target)
    table, head_ids = drafter_table(kind)
    context = 40 if kind == "short context" else 1 << 20
    draft = AttachedToy(table, toy, head_ids=head_ids, context=context)
    return toy, draft, _core.Engine(toy.decoder, _core.AttachedDrafter(draft.decoder))
