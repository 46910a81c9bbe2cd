"""Who takes part: peers by name, and their workers in the modes that are wanted."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from bench.peers.checkpoints import Checkpoints
from bench.peers.install import PeerUnavailableError, Report, environment, peer_home
from bench.peers.process import Worker

OWN = "specdec"

PEERS: dict[str, str] = {
    OWN: "bench.peers.specdec_itself",
    "onnxruntime-genai": "bench.peers.onnxruntime_genai",
    "llama-cpp": "bench.peers.llama_cpp",
    "transformers": "bench.peers.transformers_assisted",
    "openvino-genai": "bench.peers.openvino_genai",
}
"""Module by name. A new peer is a new module and a line here."""


class Peer(Protocol):
    """What a peer's module offers to the orchestrator."""

    NAME: str
    REQUIREMENTS: Sequence[str]
    """For pip; none for a peer that needs no environment of its own."""
    MODES: Mapping[str, dict[str, Any]]
    """What the worker is told, by the mode's name."""

    # A peer that is compiled also has is_built() -> bool.
    def prepare(self, python: Path, checkpoints: Checkpoints, report: Report) -> dict[str, Any]:
        """Convert or build what the peer needs; what comes back goes into the configuration."""


@dataclass(frozen=True)
class Absent:
    """A peer, or one of its modes, that did not take part."""

    name: str
    reason: str


@dataclass
class Roster:
    """The contestants that were brought up."""

    workers: dict[str, Worker]
    absent: list[Absent]
    versions: dict[str, dict[str, str]]
    """By contestant."""
    own: list[str]
    """Contestants that are specdec."""


def peer(name: str) -> Peer:
    """A peer's module."""
    return cast(Peer, importlib.import_module(PEERS[name]))


def python_of(name: str, report: Report, make_missing: bool) -> Path:
    """The Python that runs a peer's worker; its environment is made if it has to be."""
    if requirements := peer(name).REQUIREMENTS:
        return environment(name, requirements, report, make_missing=make_missing)
    return Path(sys.executable)


def prepare(
    names: Iterable[str], checkpoints: Checkpoints, report: Report, *, make_missing: bool = True
) -> tuple[dict[str, tuple[Path, dict[str, Any]]], list[Absent]]:
    """Python and configuration of each peer; the slow part, once on a machine.

    Without ``make_missing`` nothing is installed or built: a peer that needs it is absent.
    """
    ready: dict[str, tuple[Path, dict[str, Any]]] = {}
    absent = []
    for name in names:
        try:
            if not make_missing and not getattr(peer(name), "is_built", lambda: True)():
                raise PeerUnavailableError("it is not built (python -m bench.peers --install)")
            python = python_of(name, report, make_missing)
            ready[name] = python, peer(name).prepare(python, checkpoints, report)
        except PeerUnavailableError as error:
            absent.append(Absent(peer(name).NAME, str(error)))
    return ready, absent


def bring_up(
    ready: Mapping[str, tuple[Path, dict[str, Any]]],
    common: Mapping[str, Any],
    wanted: Callable[[str, str], bool],
    stack: ExitStack,
    report: Report,
) -> Roster:
    """One worker for each peer and mode for which ``wanted(peer, mode)``; ``stack`` ends them."""
    roster = Roster({}, [], {}, [])
    for name, (python, config) in ready.items():
        for mode, told in peer(name).MODES.items():
            if not wanted(name, mode):
                continue
            contestant = f"{peer(name).NAME}, {mode}"
            report(f"loading {contestant}")
            log = peer_home(name) / "logs" / f"{''.join(filter(str.isalnum, mode))}.log"
            try:
                worker = Worker(python, PEERS[name], {**common, **config, "mode": told}, log)
            except PeerUnavailableError as error:
                roster.absent.append(Absent(contestant, str(error)))
                continue
            roster.workers[contestant] = stack.enter_context(worker)
            roster.versions[contestant] = worker.versions
            if name == OWN:
                roster.own.append(contestant)
    return roster
