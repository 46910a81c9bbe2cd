"""OpenVINO GenAI: plain, with a draft model, and with prompt lookup.

It reads the GGUF file itself and saves it in its own format, once: draft models must be in that.
The pipeline is the one with a paged cache: its default on x86-64, and the one that speculates.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.peers.protocol import Emit, Engine, Request, serve

if TYPE_CHECKING:
    from bench.peers.checkpoints import Checkpoints
    from bench.peers.install import Report

NAME = "OpenVINO GenAI"
REQUIREMENTS = ("openvino-genai==2026.4.1.0",)
MODES = {
    "plain": {},
    "draft k=2": {"draft": True, "num_assistant_tokens": 2},
    "draft k=4": {"draft": True, "num_assistant_tokens": 4},
    "prompt lookup": {"prompt_lookup": True, "num_assistant_tokens": 4, "max_ngram_size": 4},
}


def prepare(python: Path, checkpoints: Checkpoints, report: Report) -> dict[str, Any]:
    """Both models in OpenVINO's format."""
    from bench.peers.install import made_once, peer_home, run_quietly

    home = peer_home("openvino-genai")
    paths = {}
    for role, source in (
        ("target", checkpoints.target_gguf),
        ("drafter", checkpoints.drafter_gguf),
    ):

        def make(folder: Path, source: Path = source) -> None:
            report(f"{NAME}: saving {source.name} in its format")
            run_quietly(
                [str(python), "-m", __name__, str(source), str(folder)], log=home / "convert.log"
            )

        of = {"requirements": REQUIREMENTS, "made of": checkpoints.stamp_of(source)}
        paths[role] = str(made_once(home / role, of, make, report))
    return paths


def convert(source: Path, folder: Path) -> None:
    """Save a GGUF file in OpenVINO's format; it goes where the GGUF file lies."""
    import openvino_genai

    gguf = folder / source.name
    shutil.copyfile(source, gguf)
    openvino_genai.LLMPipeline(str(gguf), "CPU", enable_save_ov_model=True)
    gguf.unlink()


class OpenVino:
    """One pipeline."""

    def __init__(self, config: dict[str, Any]) -> None:
        import numpy
        import openvino
        import openvino_genai

        self._numpy, self._openvino, self._genai = numpy, openvino, openvino_genai
        self.pid = os.getpid()
        self.versions = {name: version(name) for name in ("openvino", "openvino-genai")}
        self._mode: dict[str, Any] = config["mode"]
        self._stop_ids = set(config["stop_ids"])
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False  # every text pays for its whole prompt
        scheduler.max_num_batched_tokens = config["context"]
        scheduler.num_kv_blocks = config["context"] // 32 + 8
        options: dict[str, Any] = {
            "scheduler_config": scheduler,
            "INFERENCE_NUM_THREADS": config["threads"],
        }
        if self._mode.get("draft"):
            options["draft_model"] = openvino_genai.draft_model(
                config["drafter"], "CPU", INFERENCE_NUM_THREADS=config["threads"]
            )
        if self._mode.get("prompt_lookup"):
            options["prompt_lookup"] = True
        self._pipeline = openvino_genai.LLMPipeline(config["target"], "CPU", **options)

    def generate(self, request: Request, emit: Emit) -> dict[str, float]:
        numpy, genai = self._numpy, self._genai
        settings = genai.GenerationConfig()
        settings.max_new_tokens = request.max_tokens
        settings.stop_token_ids = self._stop_ids
        settings.do_sample = request.temperature > 0
        if settings.do_sample:
            settings.temperature = request.temperature
            settings.top_p = 1.0
            settings.rng_seed = request.seed
        for name in ("num_assistant_tokens", "max_ngram_size"):
            if name in self._mode:
                setattr(settings, name, self._mode[name])
        ids = numpy.array([request.tokens], dtype=numpy.int64)
        prompt = genai.TokenizedInputs(
            self._openvino.Tensor(ids), self._openvino.Tensor(numpy.ones_like(ids))
        )

        class Streamer(genai.StreamerBase):  # type: ignore[misc, name-defined]
            def write(self, tokens: int | list[int]) -> Any:
                emit([tokens] if isinstance(tokens, int) else tokens)
                return genai.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        begun = time.perf_counter()
        self._pipeline.generate(prompt, settings, Streamer())
        return {"call_seconds": time.perf_counter() - begun}


def open_engine(config: dict[str, Any]) -> Engine:
    return OpenVino(config)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        serve(open_engine)
