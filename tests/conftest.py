"""Shared fixtures: tiny models for fast tests, and the real one for the tests that need it."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

# The repository's root, so that tests can import ``tests.tiny_gguf`` however pytest was started;
# last, so that it is the installed specdec that is tested.
sys.path.append(str(Path(__file__).parent.parent))

# A shell that runs the tests in the background has them ignore Ctrl-C, which some of them send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from specdec import Model
from specdec.convert import convert
from specdec.hub import pull
from tests.tiny_gguf import DEFAULT_VOCAB, write_tiny_drafter, write_tiny_gguf


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF checkpoint of ``tiny_target``."""
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny_drafter_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF checkpoint of ``tiny_drafter``: one layer, and a head without every third id."""
    head_ids = [token for token in range(DEFAULT_VOCAB) if token % 3]
    path = tmp_path_factory.mktemp("gguf") / "tiny-drafter.gguf"
    return write_tiny_drafter(path, head_ids=head_ids)


@pytest.fixture(scope="session")
def tiny_target(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: 2 random layers, hidden 64, 300 tokens, a context of 256. Do not change."""
    return convert(tiny_gguf, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_drafter(
    tiny_gguf: Path, tiny_drafter_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model folder: a drafter for ``tiny_target`` with a trimmed head. Do not change."""
    folder = tmp_path_factory.mktemp("models") / "tiny-drafter"
    return convert(tiny_drafter_gguf, folder, target_source=tiny_gguf)


@pytest.fixture(scope="session")
def tiny_attached_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF checkpoint of ``tiny_attached``."""
    head_ids = [token for token in range(DEFAULT_VOCAB) if token % 3]
    path = tmp_path_factory.mktemp("gguf") / "tiny-attached.gguf"
    return write_tiny_drafter(path, head_ids=head_ids, target_layers=[1])


@pytest.fixture(scope="session")
def tiny_attached(
    tiny_gguf: Path, tiny_attached_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model folder: a drafter on layer 1 of ``tiny_target``, trimmed head. Do not change."""
    folder = tmp_path_factory.mktemp("models") / "tiny-attached"
    return convert(tiny_attached_gguf, folder, target_source=tiny_gguf)


@pytest.fixture(scope="module")
def target(tiny_target: Path) -> Model:
    """``tiny_target``, loaded."""
    return Model.load(tiny_target)


@pytest.fixture(scope="module")
def drafter(tiny_drafter: Path) -> Model:
    """``tiny_drafter``, loaded."""
    return Model.load(tiny_drafter)


@pytest.fixture
def specdec_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for models, for this test alone."""
    home = tmp_path / "specdec-home"
    monkeypatch.setenv("SPECDEC_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real model's folder; the first use on a machine downloads 93 MB and converts them.

    It lives in the user's own cache folder (``SPECDEC_HOME``), as after ``specdec pull``.
    """
    return pull("smollm2-135m")
