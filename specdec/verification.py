"""The core's acceptance rules, one round at a time, for tests and for the curious."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from specdec import _core
from specdec.checks import check_whole
from specdec.errors import InvalidInputError

RULES = ("greedy", "token", "block", "coupled")


def verify(
    rule: str,
    target_probs: npt.ArrayLike,
    draft_probs: npt.ArrayLike,
    draft_tokens: Sequence[int] | npt.NDArray[Any],
    seed: int,
) -> tuple[int, int]:
    """Run one round of an acceptance rule, the very code that the engine runs.

    Args:
        rule: ``"greedy"``, ``"token"`` (Leviathan et al. 2211.17192, algorithm 1), ``"block"``
            (Sun et al. 2403.10444, algorithm 2) or ``"coupled"`` (Daliri et al. 2408.07978).
        target_probs: float ``[k+1, V]``; row i is the target's distribution after i drafts.
        draft_probs: float ``[k, V]``; row i is what draft i was drawn from.
        draft_tokens: int ``[k]``. For ``"coupled"`` they have to come from ``coupled_draft`` at
            the same seed.
        seed: In 0..2**64-1.

    Returns:
        How many drafts are accepted, 0..k, and the token that follows them.

    Raises:
        InvalidInputError: Unknown rule, shapes that do not fit together, rows that are no
            distributions, or a draft token that has no draft probability.
    """
    check_whole("seed", seed, 0, 2**64 - 1, "a whole number in 0..2**64-1")
    p, q = _floats("target_probs", target_probs), _floats("draft_probs", draft_probs)
    if p.ndim != 2 or 0 in p.shape:
        raise InvalidInputError(f"target_probs has shape {p.shape}; it must be [k+1, V]")
    if q.size == 0:  # plain decoding, k = 0: nothing to check, only a token to draw
        q = q.reshape(0, p.shape[1])
    accepted, following = verify_batch(
        rule, p[None], q[None], np.asarray(draft_tokens, dtype=np.int32)[None], [seed]
    )
    return int(accepted[0]), int(following[0])


def verify_batch(
    rule: str,
    target_probs: npt.ArrayLike,
    draft_probs: npt.ArrayLike,
    draft_tokens: npt.ArrayLike,
    seeds: npt.ArrayLike,
    *,
    position: int = 0,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Run n independent rounds of an acceptance rule.

    Args:
        rule: As for ``verify``.
        target_probs: float ``[n, k+1, V]``.
        draft_probs: float ``[n, k, V]``.
        draft_tokens: int ``[n, k]``.
        seeds: uint64 ``[n]``.
        position: Tokens before the round; a further round of one text needs a further position.

    Returns:
        int32 ``[n]`` accepted drafts and int32 ``[n]`` following tokens.

    Raises:
        InvalidInputError: As for ``verify``.
    """
    p, q = _floats("target_probs", target_probs), _floats("draft_probs", draft_probs)
    tokens = np.ascontiguousarray(draft_tokens, dtype=np.int32)
    _check_rows("target_probs", p)
    _check_rows("draft_probs", q)
    if tokens.size and (tokens.min() < 0 or tokens.max() >= q.shape[-1]):
        raise InvalidInputError(f"a draft token is outside the vocabulary of {q.shape[-1]}")
    if tokens.shape == q.shape[:-1] and tokens.size:
        drawn = np.take_along_axis(q, tokens[..., None].astype(np.int64), axis=-1)
        if (drawn <= 0).any():
            raise InvalidInputError(
                "a draft token has draft probability 0: it was not drawn from q"
            )
    return _core.verify_batch(rule, p, q, tokens, np.asarray(seeds, dtype=np.uint64), position)


def coupled_draft(probs: npt.ArrayLike, seeds: npt.ArrayLike, *, position: int) -> Any:
    """Draw drafts with the noise that the ``coupled`` rule shares: float ``[n, V]`` -> ``[n]``.

    Draft i of a round (counted from 0) has the position of the round plus i.
    """
    p = _floats("probs", probs)
    _check_rows("probs", p)
    return _core.race_batch(p, np.asarray(seeds, dtype=np.uint64), position)


def _floats(name: str, values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    try:
        return np.ascontiguousarray(values, dtype=np.float32)
    except (TypeError, ValueError):
        raise InvalidInputError(f"{name} is no array of numbers") from None


def _check_rows(name: str, rows: npt.NDArray[np.float32]) -> None:
    if rows.size == 0:
        return
    if not np.isfinite(rows).all() or (rows < 0).any():
        raise InvalidInputError(f"{name} holds values that are no probabilities")
    if (abs(rows.sum(axis=-1) - 1) > 1e-3).any():
        raise InvalidInputError(f"a row of {name} does not add up to 1")
