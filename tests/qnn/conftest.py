"""Tiny models of fixed shape, made once: two layers, steps of 4 or 8 tokens, a past of 64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from specdec import Model
from specdec.convert.htp.folder import convert_htp
from specdec.qnn.compile import compile_model
from tests.cli.conftest import cli

__all__ = ["cli"]

FIRST = 1
"""The first token of the tiny chat template, and so of every text."""
WIDTHS = (4, 8)
PAST = 64


def texts() -> list[list[int]]:
    """What the ranges of activations come from."""
    generator = np.random.default_rng(5)
    return [[FIRST, *map(int, generator.integers(3, 300, 40))] for _ in range(4)]


@pytest.fixture(scope="session")
def fixed_target(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of quantised graphs of ``tiny_target``. Do not change."""
    folder = tmp_path_factory.mktemp("fixed") / "tiny-w8a16"
    return convert_htp(
        tiny_gguf, folder, layout="w8a16", widths=WIDTHS, context=PAST, calibration=texts()
    )


@pytest.fixture(scope="session")
def fixed_drafter(
    tiny_gguf: Path, tiny_drafter_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder of quantised graphs of ``tiny_drafter``, whose head is trimmed. Do not change."""
    folder = tmp_path_factory.mktemp("fixed") / "tiny-drafter-w8a16"
    return convert_htp(
        tiny_drafter_gguf,
        folder,
        layout="w8a16",
        widths=WIDTHS,
        context=PAST,
        calibration=texts(),
        target_source=tiny_gguf,
    )


@pytest.fixture(scope="session")
def half_target(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of float16 graphs of ``tiny_target``: no sink, one width, one head."""
    folder = tmp_path_factory.mktemp("fixed") / "tiny-fp16"
    return convert_htp(tiny_gguf, folder, layout="fp16", widths=(8,), context=PAST, best_head=False)


@pytest.fixture(scope="session")
def qnn_target(fixed_target: Path) -> Model:
    """``fixed_target`` in the simulator."""
    return Model.load(fixed_target, backend="qnn")


@pytest.fixture(scope="session")
def qnn_drafter(fixed_drafter: Path) -> Model:
    """``fixed_drafter`` in the simulator."""
    return Model.load(fixed_drafter, backend="qnn")


@pytest.fixture(scope="session")
def compiled_target(fixed_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``fixed_target`` compiled for the simulator. Do not change."""
    folder = tmp_path_factory.mktemp("compiled") / "tiny-simulator"
    return compile_model(fixed_target, folder, "simulator")


@pytest.fixture(scope="session")
def shared_target(fixed_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``fixed_target`` compiled for a chip, with weights shared. Do not change."""
    folder = tmp_path_factory.mktemp("compiled") / "tiny-sm8650"
    return compile_model(fixed_target, folder, "sm8650")
