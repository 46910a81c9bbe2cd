"""Prompts by kind: those that come with specdec, or the user's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from specdec.errors import InvalidInputError


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one kind; each is one user message."""

    name: str
    prompts: tuple[str, ...]


def shipped_kinds() -> list[str]:
    """The kinds that come with specdec."""
    return list(_shipped())


def load_prompts(names: Sequence[str]) -> list[PromptSet]:
    """Prompts by kind, or from files; no names take all kinds that come with specdec.

    A ``.json`` file holds ``{kind: [prompt, ...]}``; of any other file each line that is not empty
    is a prompt, and the file's name is the kind.

    Raises:
        InvalidInputError: Neither a kind nor a readable file of prompts.
    """
    shipped = _shipped()
    sets: list[PromptSet] = []
    for name in names or shipped:
        if name in shipped:
            sets.append(PromptSet(name, tuple(shipped[name])))
        else:
            sets += _read(Path(name), list(shipped))
    kinds = [kind.name for kind in sets]
    if len(set(kinds)) != len(kinds):
        raise InvalidInputError(f"a kind of prompts is named twice: {', '.join(kinds)}")
    return sets


def _shipped() -> dict[str, list[str]]:
    text = resources.files("specdec.benchmark").joinpath("prompts.json").read_text("utf-8")
    shipped: dict[str, list[str]] = json.loads(text)
    return shipped


def _read(path: Path, kinds: Sequence[str]) -> list[PromptSet]:
    try:
        text = path.read_text(encoding="utf-8")
        content: Any = json.loads(text) if path.suffix == ".json" else {path.stem: _lines(text)}
    except OSError as error:
        raise InvalidInputError(
            f"{path}: neither a kind of prompts ({', '.join(kinds)}) nor a readable file "
            f"({error.strerror})"
        ) from error
    except ValueError as error:
        raise InvalidInputError(f"{path}: not readable as prompts ({error})") from error
    if not isinstance(content, dict) or not content or not all(map(_are_prompts, content.values())):
        raise InvalidInputError(
            f"{path}: must hold prompts by kind, as in {{'chat': ['Tell me...', ...]}}"
            if path.suffix == ".json"
            else f"{path}: holds no prompts"
        )
    return [PromptSet(name, tuple(prompts)) for name, prompts in content.items()]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _are_prompts(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(prompt, str) and prompt for prompt in value)
    )
