"""``config.json`` of a Hugging Face folder: the architecture, its sizes, its rotary frequencies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from specdec.convert.architectures import ARCHITECTURES, Architecture
from specdec.convert.checkpoint import ModelConfig
from specdec.convert.json_file import read_json
from specdec.convert.matrix import FloatArray
from specdec.errors import CheckpointError

CONFIG_FILE = "config.json"


class HuggingfaceConfig:
    """What ``config.json`` says, checked."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / CONFIG_FILE
        if not self.path.is_file():
            raise CheckpointError(
                f"{folder}: no {CONFIG_FILE} in it: give a Hugging Face folder, or a GGUF file"
            )
        self.values: Mapping[str, Any] = read_json(self.path)
        self.architecture_name, self.architecture = self._find_architecture()
        self._check_variant()
        rope = self.values.get("rope_parameters") or self.values.get("rope_scaling") or {}
        if not isinstance(rope, dict):
            raise self._error(f"the rotary scaling is {rope!r}, expected an object")
        self._rope: Mapping[str, Any] = rope
        self.model = self._read_model()
        self.rope_factors = self._read_rope_factors()

    def _find_architecture(self) -> tuple[str, Architecture]:
        declared = self.values.get("architectures")
        for name, architecture in ARCHITECTURES.items():
            if declared == [architecture.huggingface_class]:
                return name, architecture
        known = ", ".join(a.huggingface_class for a in ARCHITECTURES.values())
        raise self._error(f"architectures {declared!r} are not supported (known: {known})")

    def _check_variant(self) -> None:
        if self.values.get("quantization_config"):
            raise self._error(
                "the weights are quantised, which is not supported: use the checkpoint in F32, "
                "F16 or BF16"
            )
        for key, expected in self.architecture.huggingface_fixed.items():
            if (value := self.values.get(key, expected)) != expected:
                raise self._error(f"'{key}' is {value!r}, only {expected!r} is supported")

    def _read_model(self) -> ModelConfig:
        count = {
            field: self._count(field) for field in ("layers", "hidden", "heads", "ffn", "vocab")
        }
        kv_heads = self._count("kv_heads", default=count["heads"])
        if count["heads"] % kv_heads:
            raise self._error(f"{count['heads']} heads over {kv_heads} key/value heads cannot be")
        head_dim = self._count("head_dim", default=count["hidden"] // count["heads"])
        if head_dim % 16:
            raise self._error(
                f"heads of {head_dim} values are not supported (a multiple of 16 is needed)"
            )
        tied = self._value("tied_head")
        if not isinstance(tied, bool | None):
            raise self._expected("tied_head", tied, "true or false")
        return ModelConfig(
            layers=count["layers"],
            hidden=count["hidden"],
            heads=count["heads"],
            kv_heads=kv_heads,
            head_dim=head_dim,
            ffn=count["ffn"],
            vocab=count["vocab"],
            context=self._count("context"),
            rope_theta=self._read_rope_theta(),
            norm_eps=self._positive("norm_eps", self._value("norm_eps")),
            tied_head=bool(tied),
        )

    def _read_rope_theta(self) -> float:
        theta = self._value("rope_theta")
        if theta is None:  # where newer files have it
            theta = self._rope.get("rope_theta", self.architecture.defaults["rope_theta"])
        return self._positive("rope_theta", theta)

    def _read_rope_factors(self) -> FloatArray | None:
        kind = self._rope.get("rope_type", self._rope.get("type", "default"))
        half = self.model.head_dim // 2
        if kind == "default":
            return None
        if kind == "linear":
            return np.full(half, self._scaling("factor"), np.float32)
        if kind == "llama3":
            return self._llama3_factors(half)
        raise self._error(
            f"rotary scaling of type {kind!r} is not supported (default, linear and llama3 are)"
        )

    def _llama3_factors(self, half: int) -> FloatArray:
        """Llama 3.1's rule: slow frequencies are divided by ``factor``, fast ones are kept.

        Between the two, the share of the divided one falls linearly with the number of turns that
        the frequency makes over the original context.
        """
        factor, low, high, context = map(
            self._scaling,
            ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        )
        if low >= high:
            raise self._error(f"low_freq_factor {low} is not below high_freq_factor {high}")
        frequencies = self.model.rope_theta ** -(np.arange(half) / half)
        turns = context * frequencies / (2 * math.pi)
        kept = np.clip((turns - low) / (high - low), 0, 1)
        factors: FloatArray = (1 / ((1 - kept) / factor + kept)).astype(np.float32)
        return factors

    def _scaling(self, key: str) -> float:
        return self._positive(f"rotary scaling's {key}", self._rope.get(key))

    def _value(self, field: str) -> Any:
        return self.values.get(self.architecture.huggingface_keys[field])

    def _count(self, field: str, default: int | None = None) -> int:
        value = self._value(field)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._expected(field, value, "a whole number of at least 1")
        return value

    def _positive(self, what: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise self._expected(what, value, "a positive number")
        return float(value)

    def _expected(self, what: str, value: Any, expected: str) -> CheckpointError:
        key = self.architecture.huggingface_keys.get(what, what)
        found = "is missing" if value is None else f"is {value!r}"
        return self._error(f"'{key}' {found}, expected {expected}")

    def _error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {what}")
