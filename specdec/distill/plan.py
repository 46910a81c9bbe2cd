"""What a run will do, written down once as ``plan.json`` and kept to from then on."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from specdec.distill.losses import Loss
from specdec.distill.optim import OptimizerSettings
from specdec.distill.train import Schedule
from specdec.errors import InvalidInputError

PLAN = "plan.json"
FORMAT = 1


@dataclass
class RunPlan:
    """All that decides a drafter's weights, but the text itself; None is not decided yet."""

    options: dict[str, Any]
    """As asked for."""
    target: dict[str, Any]
    """Name and SHA-256."""
    text_tokens: int | None = None
    """How much the target is to write; None for text that was there, too."""
    manifest_sha256: str | None = None
    shards: list[str] = field(default_factory=list)
    """The text that head, initial weights and, if it is not followed, the training are made of."""
    architecture: dict[str, Any] | None = None
    head: dict[str, Any] | None = None
    """Rows of the head, the share of held-out text that they cover, and a digest of their ids."""
    schedule: dict[str, Any] | None = None
    measured: dict[str, float] = field(default_factory=dict)
    """Speeds that tokens were chosen by."""

    def digest(self) -> str:
        """SHA-256 of what decides: a checkpoint belongs to one plan."""
        content = asdict(self)
        for name in ("measured", "options"):  # what was decided by them is there
            del content[name]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def write(self, work: Path) -> None:
        """Replace ``plan.json``.

        Raises:
            InvalidInputError: It cannot be written.
        """
        write_json(work / PLAN, {"format": FORMAT, **asdict(self)})

    @classmethod
    def read(cls, work: Path) -> RunPlan | None:
        """The plan of a run that was begun; None where there is none.

        Raises:
            InvalidInputError: It is damaged.
        """
        path = work / PLAN
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise InvalidInputError(
                    f"{path}: was written by another version of specdec; remove {work}"
                )
            return cls(**{f.name: content[f.name] for f in fields(cls)})
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, InvalidInputError):
                raise
            raise InvalidInputError(f"{path}: cannot be read ({error}); remove {work}") from error


def schedule_of(values: dict[str, Any]) -> Schedule:
    """The inverse of ``asdict``."""
    optimizer = dict(values["optimizer"])
    optimizer["betas"] = tuple(optimizer["betas"])
    settings = OptimizerSettings(**optimizer)
    return Schedule(**{**values, "loss": Loss(**values["loss"]), "optimizer": settings})


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Replace a JSON file in one step.

    Raises:
        InvalidInputError: It cannot be written.
    """
    partial = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be written ({error.strerror})") from error
