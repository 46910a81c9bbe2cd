"""The state of a training run on disk: written aside, flushed, renamed."""

from __future__ import annotations

import os
import pickle
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from specdec.errors import InvalidInputError

FORMAT = 1


@dataclass
class Position:
    """How far a run has come; with the seed and the text it gives all that comes next."""

    step: int = 0
    """Optimizer steps."""
    tokens: int = 0
    """Tokens of text seen, padding not counted."""
    epoch: int = 0
    batch: int = 0
    """Batches of the epoch that were taken."""
    seconds: float = 0.0
    """Time spent in training, for people; nothing is decided by it."""


def save(
    path: Path,
    *,
    plan: str,
    position: Position,
    model: dict[str, torch.Tensor],
    optimizer: dict[str, Any],
    generator: torch.Tensor,
    extra: dict[str, Any],
) -> None:
    """Replace the checkpoint in one step; a reader sees the old one or the new one, whole.

    Args:
        path: The checkpoint.
        plan: Digest of what is being trained; ``load`` takes no other.
        position: Where the run stands.
        model: Weights that are trained.
        optimizer: Their optimizer's ``state_dict()``.
        generator: State of the random numbers.
        extra: Anything else of numbers, texts, lists and dictionaries.

    Raises:
        InvalidInputError: It cannot be written.
    """
    document = {
        "format": FORMAT,
        "plan": plan,
        "position": asdict(position),
        "model": model,
        "optimizer": optimizer,
        "generator": generator,
        "extra": extra,
    }
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f".{path.name}.*"):  # of a killed run: there is one only
            leftover.unlink(missing_ok=True)
        with partial.open("wb") as stream:
            torch.save(document, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        raise InvalidInputError(f"{path}: cannot be written ({error})") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def load(path: Path, *, plan: str | None) -> dict[str, Any] | None:
    """What ``save`` wrote, with ``position`` as a Position; None where there is nothing yet.

    Raises:
        InvalidInputError: It is damaged, or was written for another ``plan`` (None takes any).
    """
    if not path.exists():
        return None
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
        position = Position(**document["position"])
        known = document["format"] == FORMAT
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInputError(
            f"{path}: not a readable checkpoint ({reason}); remove it to train from the start"
        ) from error
    if not known:
        raise InvalidInputError(
            f"{path}: was written by another version of specdec; remove it to train from the start"
        )
    if plan is not None and document["plan"] != plan:
        raise InvalidInputError(
            f"{path}: belongs to another plan; remove it to train from the start, or name another "
            "output"
        )
    return {**document, "position": position}
