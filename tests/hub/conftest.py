"""A world of its own for each test of models by name."""

from __future__ import annotations

from pathlib import Path

import pytest

import specdec.convert
from specdec import recipe
from tests.hub.world import World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    monkeypatch.setenv("SPECDEC_HOME", str(world.home))
    monkeypatch.setenv("PYTHONPATH", str(world.pip.parent))  # for the subprocess
    monkeypatch.setattr(recipe, "_recipes_root", lambda: world.recipes)
    monkeypatch.setattr(specdec.convert, "convert", world.convert)
    return world
