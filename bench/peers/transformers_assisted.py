"""Hugging Face transformers: plain, with assisted generation, and with prompt lookup; bfloat16."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.peers.protocol import Emit, Engine, Request, serve

if TYPE_CHECKING:
    from bench.peers.checkpoints import Checkpoints
    from bench.peers.install import Report

NAME = "transformers"
REQUIREMENTS = ("torch==2.13.0", "transformers==5.23.0")
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "assisted": {"draft": True},
    "prompt lookup": {"options": {"prompt_lookup_num_tokens": 4}},
}


def prepare(python: Path, checkpoints: Checkpoints, report: Report) -> dict[str, Any]:
    """Nothing: the Hugging Face folders are there."""
    return {}


class Transformers:
    """One model, with its assistant if the mode has one."""

    def __init__(self, config: dict[str, Any]) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch
        import transformers

        torch.set_num_threads(config["threads"])
        self._torch, self._transformers = torch, transformers
        self.pid = os.getpid()
        self.versions = {name: version(name) for name in ("transformers", "torch")}
        self._mode: dict[str, Any] = config["mode"]
        self._stop_ids: list[int] = config["stop_ids"]

        def load(folder: str) -> Any:
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
            return model.eval()

        self._model = load(config["target_folder"])
        self._assistant = load(config["drafter_folder"]) if self._mode.get("draft") else None

    def generate(self, request: Request, emit: Emit) -> dict[str, float]:
        torch = self._torch
        torch.manual_seed(request.seed)
        length = len(request.tokens)

        class Streamer(self._transformers.generation.streamers.BaseStreamer):  # type: ignore[misc, name-defined]
            skip = length  # the prompt comes first

            def put(self, value: Any) -> None:
                tokens = value.flatten().tolist()
                skipped = min(self.skip, len(tokens))
                self.skip -= skipped
                emit(tokens[skipped:])

            def end(self) -> None:
                pass

        sampling: dict[str, Any] = {"do_sample": False}
        if request.temperature > 0:
            sampling = {
                "do_sample": True,
                "temperature": request.temperature,
                "top_k": 0,
                "top_p": 1.0,
            }
        ids = torch.tensor([request.tokens])
        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=request.max_tokens,
                eos_token_id=self._stop_ids,
                pad_token_id=self._stop_ids[0],
                assistant_model=self._assistant,
                streamer=Streamer(),
                **sampling,
                **self._mode.get("options", {}),
            )
        return {}


def open_engine(config: dict[str, Any]) -> Engine:
    return Transformers(config)


if __name__ == "__main__":
    serve(open_engine)
