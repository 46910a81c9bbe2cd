"""A target's graph and an attached drafter's on the same K/V, run without the core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bench.graph_runner import new_cache, positions, session_options
from specdec.model_folder import ModelFolder

Floats = NDArray[np.float32]


class GraphPair:
    """The K/V of ``capacity`` positions begin as ``garbage``, which nobody may read."""

    def __init__(
        self, target: Path, drafter: Path, capacity: int = 64, garbage: float = 9.5
    ) -> None:
        folder = ModelFolder.open(drafter)
        assert folder.config.target_layers is not None
        self.target_layers = folder.config.target_layers
        self._target = session(target / "model.onnx")
        self._drafter = session(drafter / "model.onnx")
        config = ModelFolder.open(target).config
        self.cache = {
            value.name.removeprefix("past"): new_cache(value.shape, value.type, capacity, garbage)
            for value in self._target.get_inputs()
            if value.name.startswith("past")
        }
        self._layers = range(config.layers)

    def target(self, tokens: list[int], past: int) -> tuple[Floats, Floats]:
        """Logits [S, head_size] and hidden states [S, hidden] (zeros, where there are none)."""
        return self._run(self._target, tokens, past, list(self._layers), None)

    def draft(self, tokens: list[int], past: int, features: Floats) -> tuple[Floats, Floats]:
        """The same of the drafter; ``features`` [S, hidden] belong to ``tokens``."""
        return self._run(self._drafter, tokens, past, list(self.target_layers), features)

    def _run(
        self,
        model: ort.InferenceSession,
        tokens: list[int],
        past: int,
        layers: list[int],
        features: Floats | None,
    ) -> tuple[Floats, Floats]:
        inputs: dict[str, NDArray[Any]] = {
            "tokens": np.array([tokens], np.int64),
            "first_logit_row": np.array([0], np.int64),
            **positions(past, len(tokens)),
        }
        if features is not None:
            inputs["features"] = np.asarray(features, np.float32)[None]
        binding = model.io_binding()
        declared = {value.name for value in model.get_inputs()}
        for name in inputs.keys() & declared:
            binding.bind_cpu_input(name, inputs[name])
        caches = {
            f"_{part}.{index}": self.cache[f"_{part}.{layer}"]
            for index, layer in enumerate(layers)
            for part in ("key", "value")
            if "past" not in declared
        }
        for name, buffer in (caches or self.cache).items():
            binding.bind_ortvalue_input(f"past{name}", buffer)
            binding.bind_ortvalue_output(f"present{name}", buffer)
        sizes = {output.name: output.shape[-1] for output in model.get_outputs()}
        results = {
            name: np.zeros((1, len(tokens), sizes.get(name, 1)), np.float32)
            for name in ("logits", "hidden")
        }
        for name in results.keys() & sizes.keys():
            value = ort.OrtValue.ortvalue_from_numpy(results[name])
            binding.bind_ortvalue_output(name, value)
        model.run_with_iobinding(binding)
        return results["logits"][0], results["hidden"][0]


def session(graph: Path) -> ort.InferenceSession:
    """On one thread: these graphs are tiny."""
    return ort.InferenceSession(
        str(graph), session_options(threads=1), providers=["CPUExecutionProvider"]
    )
