"""Checkpoints for benchmarks, by file or by the name of a model that specdec can pull."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from specdec.checkpoint_source import checkpoint
from specdec.hub import known_models, models_home
from specdec.recipe import load_recipe


@contextmanager
def gguf(name_or_file: str) -> Iterator[Path]:
    """The GGUF file of a known model (fetched if need be), or the file itself."""
    if name_or_file not in known_models():
        yield Path(name_or_file)
        return
    recipe = load_recipe(name_or_file)
    with checkpoint(recipe, models_home() / "downloads", lambda stage, fraction: None) as source:
        yield source
