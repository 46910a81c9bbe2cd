"""The target of a run: a known model, a GGUF file or a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specdec.checkpoint_source import checkpoint
from specdec.convert.checkpoint import ModelSource
from specdec.convert.source import open_source
from specdec.errors import InvalidInputError
from specdec.hub import models_home
from specdec.recipe import UserSource, known_models, load_recipe

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class TargetModel:
    """A target's checkpoint."""

    name: str
    """A known model's name, or that of the file or folder."""
    path: Path
    source: ModelSource = field(repr=False)
    sha256: str
    known: bool
    """Whether ``name`` is one that ``pull`` knows."""

    @property
    def is_gguf(self) -> bool:
        """Whether a drafter's file can leave its embedding and head to the target's."""
        return not self.path.is_dir()

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self.sha256}


@contextmanager
def open_target(name: str, progress: Progress) -> Iterator[TargetModel]:
    """The target, fetched where it has to be.

    Raises:
        PullError: It cannot be fetched.
        CheckpointError: It cannot be read.
        InvalidInputError: It is not a name or path, a drafter, or a model that its users bring.
    """
    path = Path(name)
    if path.exists():
        yield _opened(path.absolute().name if path.is_dir() else path.stem, path, known=False)
        return
    if name not in known_models():
        raise InvalidInputError(
            f"{name}: no such file or folder, and no known model ({', '.join(known_models())})"
        )
    recipe = load_recipe(name)
    if isinstance(recipe.source, UserSource):
        raise InvalidInputError(
            f"{name} is yours to bring: get {recipe.source.folder} and name that folder"
        )
    if recipe.role == "drafter":
        raise InvalidInputError(f"{name} is a drafter; name its target, {recipe.target}")
    with checkpoint(recipe, models_home() / "downloads", progress) as file:
        yield _opened(name, file, known=True)


def _opened(name: str, path: Path, *, known: bool) -> TargetModel:
    source = open_source(path, None)
    if source.is_drafter:
        raise InvalidInputError(f"{path}: is a drafter; name its target")
    return TargetModel(name, path, source, str(source.describe()["sha256"]), known)
