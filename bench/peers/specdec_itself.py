"""specdec: plain, with a drafter at fixed and chosen draft lengths, and with n-grams."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.peers.protocol import Emit, Engine, Request, serve

if TYPE_CHECKING:
    from bench.peers.checkpoints import Checkpoints
    from bench.peers.install import Report

NAME = "specdec"
REQUIREMENTS: tuple[str, ...] = ()  # its environment is the one that runs all this
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    **{f"k={k}": {"draft": True, "draft_length": k} for k in (1, 2, 3, 4)},
    "auto": {"draft": True, "draft_length": "auto"},
    "auto, tree": {"draft": True, "draft_length": "auto", "draft_width": "auto"},
    "n-gram": {"ngram": True},
}


def prepare(python: Path, checkpoints: Checkpoints, report: Report) -> dict[str, Any]:
    """Nothing: the models come by name."""
    return {}


class Itself:
    """One Generator."""

    def __init__(self, config: dict[str, Any]) -> None:
        from specdec import Generator, Model

        mode: dict[str, Any] = config["mode"]
        self.pid = os.getpid()
        self.versions = {name: version(name) for name in ("specdec", "onnxruntime")}
        target = Model.load(config["specdec_target"], threads=config["threads"])
        draft: Any = "ngram" if mode.get("ngram") else None
        if mode.get("draft"):
            draft = Model.load(config["specdec_draft"], threads=config["threads"])
        self._generator = Generator(
            target,
            draft,
            draft_length=mode.get("draft_length", "auto"),
            max_context=config["context"],
        )
        if "draft_width" in mode:
            if not hasattr(Generator, "draft_width"):
                raise ValueError("this specdec drafts no trees")
            self._generator.draft_width = mode["draft_width"]
        self._ignore_eos: bool = mode.get("ignore_eos", False)
        self.versions["layout"] = target.folder.layout

    def generate(self, request: Request, emit: Emit) -> dict[str, float]:
        stream = self._generator.stream(
            request.tokens,
            temperature=request.temperature,
            top_p=1.0,
            top_k=0,
            min_p=0.0,
            seed=request.seed,
            max_tokens=request.max_tokens,
            ignore_eos=self._ignore_eos,
        )
        for chunk in stream:
            emit(chunk.tokens)
        stats = self._generator.stats
        self._forget()
        return {
            "rounds": stats.rounds,
            "drafted": stats.drafted,
            "accepted": stats.accepted,
            "prefill_seconds": stats.seconds["prefill"],
            "draft_seconds": stats.seconds["draft"],
            "verify_seconds": stats.seconds["verify"],
        }

    def _forget(self) -> None:
        """Empty the caches, so that the next text pays for its whole prompt."""
        self._generator.generate([0], max_tokens=1, temperature=0)


def open_engine(config: dict[str, Any]) -> Engine:
    return Itself(config)


if __name__ == "__main__":
    serve(open_engine)
