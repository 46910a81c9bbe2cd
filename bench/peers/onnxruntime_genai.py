"""ONNX Runtime GenAI: plain, with a draft model, and with n-grams.

Its model builder makes INT4 weights in blocks of 32 (it takes no quantised GGUF file, so they are
rounded anew from the checkpoint's values), for kernels that compute in 8 bits, its fastest here.
"""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.peers.protocol import Emit, Engine, Request, serve

if TYPE_CHECKING:
    from bench.peers.checkpoints import Checkpoints
    from bench.peers.install import Report

NAME = "ONNX Runtime GenAI"
REQUIREMENTS = (
    "onnxruntime-genai==0.18.0",
    "torch==2.13.0",
    "transformers==5.23.0",
    "onnx",
    "onnx-ir",
)
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "draft k=2": {"draft": True, "options": {"max_draft_tokens": 2}},
    "draft k=4": {"draft": True, "options": {"max_draft_tokens": 4}},
    "draft, adaptive": {"draft": True, "options": {"min_adaptive_k": 2}},
    "n-gram": {"options": {"ngram_size": 3, "max_draft_tokens": 4}},
}
_BUILDER = ("-p", "int4", "-e", "cpu")
_EXTRA = ("int4_block_size=32", "int4_accuracy_level=4")


def prepare(python: Path, checkpoints: Checkpoints, report: Report) -> dict[str, Any]:
    """Target and drafter from the model builder, and a folder that joins them."""
    from bench.peers.install import made_once, peer_home, run_quietly

    home = peer_home("onnxruntime-genai")
    for role, source in (
        ("target", checkpoints.target_folder),
        ("drafter", checkpoints.drafter_folder),
    ):

        def make(folder: Path, source: Path = source) -> None:
            report(f"{NAME}: its builder makes {folder.name}")
            run_quietly(
                [
                    *(str(python), "-m", "onnxruntime_genai.models.builder", *_BUILDER),
                    *("-i", str(source), "-o", str(folder), "-c", str(home / "builder-cache")),
                    *("--extra_options", *_EXTRA),
                ],
                log=home / "builder.log",
                environment={"HF_HUB_OFFLINE": "1"},
            )

        of = {
            "requirements": REQUIREMENTS,
            "options": (*_BUILDER, *_EXTRA),
            "made of": checkpoints.stamp_of(source / "config.json"),
        }
        made_once(home / role, of, make, report)
    return {"plain": str(home / "target"), "draft": str(_joined(home))}


class OnnxRuntimeGenai:
    """One model, with its draft model if the mode has one."""

    def __init__(self, config: dict[str, Any]) -> None:
        import onnxruntime_genai

        self._genai = onnxruntime_genai
        self.pid = os.getpid()
        packages = ("onnxruntime-genai", "onnxruntime")
        self.versions = {name: version(name) for name in packages}
        self._mode: dict[str, Any] = config["mode"]
        self._context: int = config["context"]
        self._stop_ids = set(config["stop_ids"])
        kind = "draft" if self._mode.get("draft") else "plain"
        model = onnxruntime_genai.Config(config[kind])
        threads = {"intra_op_num_threads": config["threads"]}
        overlay: dict[str, Any] = {"decoder": {"session_options": threads}}
        if self._mode.get("draft"):
            overlay["draft"] = {"session_options": threads}
        model.overlay(json.dumps({"model": overlay}))
        self._model = onnxruntime_genai.Model(model)

    def generate(self, request: Request, emit: Emit) -> dict[str, float]:
        params = self._genai.GeneratorParams(self._model)
        sampling: dict[str, Any] = {"do_sample": False}
        if request.temperature > 0:
            sampling = {
                "do_sample": True,
                "temperature": request.temperature,
                "top_k": 0,
                "top_p": 1.0,
                "random_seed": request.seed,
            }
        params.set_search_options(max_length=self._context, **sampling)
        if options := self._mode.get("options"):
            params.set_speculative_options(**options)
        generator = self._genai.Generator(self._model, params)
        generator.append_tokens(request.tokens)
        for _ in range(request.max_tokens):
            generator.generate_next_token()
            token = int(generator.get_next_tokens()[0])
            emit([token])
            if token in self._stop_ids or generator.is_done():
                break
        if not options:
            return {}
        stats = generator.get_speculative_stats()
        names = ("draft_tokens_evaluated", "draft_tokens_accepted", "target_forward_passes")
        return {name: float(stats[name]) for name in names if name in stats}


def _joined(home: Path) -> Path:
    """A folder whose configuration has both decoders, with both models below it."""
    folder = home / "joined"
    for role in ("target", "drafter"):
        (folder / role).mkdir(parents=True, exist_ok=True)
        for path in (home / role).iterdir():
            beside = path.suffix in (".json", ".jinja") and role == "target"
            link = folder / path.name if beside else folder / role / path.name
            if path.name != "genai_config.json":
                link.unlink(missing_ok=True)
                os.link(path, link)
    joined, draft = (
        json.loads((home / role / "genai_config.json").read_text("utf-8"))
        for role in ("target", "drafter")
    )
    joined["model"]["draft"] = draft["model"]["decoder"]
    joined["model"]["decoder"]["filename"] = "target/model.onnx"
    joined["model"]["draft"]["filename"] = "drafter/model.onnx"
    (folder / "genai_config.json").write_text(json.dumps(joined, indent=1), encoding="utf-8")
    return folder


def open_engine(config: dict[str, Any]) -> Engine:
    return OnnxRuntimeGenai(config)


if __name__ == "__main__":
    serve(open_engine)
