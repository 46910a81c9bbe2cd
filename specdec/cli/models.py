"""Loads what ``--model`` and ``--draft`` name, with the progress of a first pull shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from specdec.cli.console import StageProgress

if TYPE_CHECKING:
    from specdec.generator import Ngram
    from specdec.model import Model
    from specdec.model_folder import ModelFolder

NGRAM = "ngram"
NONE = "none"


@dataclass(frozen=True)
class Pair:
    """A target and what drafts for it."""

    target: Model
    draft: Model | Ngram | None
    by_default: bool
    """Whether the drafter was chosen because nobody named one."""

    @property
    def drafter_name(self) -> str:
        """The drafter's name, for people."""
        if self.draft is None:
            return NONE
        return getattr(self.draft, "name", NGRAM)

    def __str__(self) -> str:
        if self.draft is None:
            return f"{self.target.name} without a drafter"
        chosen = " (its known drafter)" if self.by_default else ""
        return f"{self.target.name} drafted by {self.drafter_name}{chosen}"


def load_pair(
    model: str,
    draft: str | None,
    threads: int | None,
    *,
    backend: str = "auto",
    draft_backend: str = "auto",
    npu_options: list[str] | None = None,
) -> Pair:
    """The models that ``--model`` and ``--draft`` name; None takes the model's known drafter."""
    from specdec.generator import Ngram

    drafter = draft or known_drafter(model) or NONE
    target = load_model(model, threads, backend, npu_options)
    by_default = draft is None
    if drafter == NONE:
        return Pair(target, None, by_default)
    if drafter == NGRAM:
        return Pair(target, Ngram(), by_default)
    if drafter == model and draft_backend == backend:
        return Pair(target, target, by_default)
    return Pair(target, load_model(drafter, threads, draft_backend, npu_options), by_default)


def load_model(
    name_or_folder: str,
    threads: int | None = None,
    backend: str = "auto",
    npu_options: list[str] | None = None,
) -> Model:
    """A model by name, pulled first if need be, or from its folder."""
    from specdec.model import Model
    from specdec.qnn.options import QnnOptions

    options = QnnOptions.parse(npu_options or ())
    return Model(find_folder(name_or_folder), threads=threads, backend=backend, qnn=options)


def find_folder(name_or_folder: str) -> ModelFolder:
    """A model's folder by its name, pulled first if need be, or by its path."""
    from specdec.hub import resolve
    from specdec.model_folder import ModelFolder

    with StageProgress(name_or_folder) as progress:
        folder = resolve(name_or_folder, progress=progress)
    return ModelFolder.open(folder)


def known_drafter(model: str) -> str | None:
    """The name of a drafter that was made for a known model."""
    from specdec.hub import is_at_hand
    from specdec.recipe import known_models, load_recipe

    for name in known_models():
        if load_recipe(name).target == model and is_at_hand(name):
            return name
    return None
