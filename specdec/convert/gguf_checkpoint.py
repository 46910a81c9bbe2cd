"""A GGUF file, or a drafter's file together with its target's, as a ``Checkpoint``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from specdec.convert.architectures import (
    ARCHITECTURES,
    BRIDGE,
    ROPE_FACTORS,
    Architecture,
    Tensor,
    sizes,
)
from specdec.convert.checkpoint import ModelConfig
from specdec.convert.gguf_reader import GgufFile, round_to_4_bits
from specdec.convert.gguf_tokenizer import write_tokenizer
from specdec.convert.matrix import FloatArray, IndexArray, Matrix
from specdec.errors import CheckpointError
from specdec.model_shape import target_layers_problem

TARGET_KEY = "specdec.target"  # metadata of a drafter: the name of its target
DRAFTER_KIND = "specdec.drafter_kind"  # metadata of a drafter, one of DRAFTER_KINDS
DRAFTER_KINDS = ("standalone", "attached")  # the first is that of a drafter that does not say
TARGET_LAYERS = "specdec.target_layers"  # metadata of an attached drafter: as in ModelShape
HEAD_BITS = "specdec.head_bits"  # metadata of a drafter: 4 where the target's rows are rounded
HEAD_IDS = "specdec.head_ids"  # tensor of a drafter with a trimmed head


class GgufCheckpoint:
    """Gives tensors under the graph writer's names, checked against the configuration.

    ``vocabulary`` is the file that holds embedding, head and tokenizer: the checkpoint's own, or
    for a drafter (its metadata names a target) the target's. An attached drafter's sizes are
    checked against its target's.
    """

    def __init__(self, source: Path, target_source: Path | None = None) -> None:
        self.file = GgufFile(source)
        self.architecture_name, self._architecture = _architecture(self.file)
        self.target_name: str | None = self.file.fields.get(TARGET_KEY)
        self.vocabulary = self.file
        if self.target_name is not None:
            if target_source is None:
                raise CheckpointError(
                    f"{source}: this is a drafter for '{self.target_name}', whose embedding, head "
                    "and tokenizer it uses: give that target's GGUF file as target_source"
                )
            self.vocabulary = GgufFile(target_source)
            _architecture(self.vocabulary)
        self.head_ids = self._read_head_ids()
        self._head_bits = self._read_head_bits()
        self.config = self._read_config()
        self.rope_factors = self._read_rope_factors()
        if self.config.target_layers is not None and target_source is not None:
            self._check_target(GgufCheckpoint(target_source))
        self._check_tensors()

    @property
    def is_drafter(self) -> bool:
        return self.target_name is not None

    @property
    def sampling(self) -> dict[str, Any]:
        return {}  # GGUF has no place for it

    def describe(self) -> dict[str, Any]:
        section = {
            "file": self.file.path.name,
            "sha256": self.file.sha256(),
            "format": "gguf",
        }
        if self.target_name is not None:
            section["target"] = self.target_name
            section["target_sha256"] = self.vocabulary.sha256()
        return section

    def write_tokenizer(self, folder: Path) -> dict[str, Any]:
        return write_tokenizer(self.vocabulary.fields, folder)

    def vector(self, name: str) -> FloatArray:
        tensor, file = self._find(name)
        return file.vector(tensor)

    def matrix(self, name: str) -> Matrix:
        tensor, file = self._find(name)
        matrix = file.matrix(tensor)
        role = name.rpartition(".")[2]
        if role in self._architecture.interleaved_rotary:
            return matrix.take_rows(_half_split_order(matrix.shape[0], self.config.head_dim))
        if role == "head" and self.head_ids is not None:
            matrix = matrix.take_rows(self.head_ids)
        if role == "head" and self._head_bits == 4:
            matrix = round_to_4_bits(matrix)
        return matrix

    def _find(self, name: str) -> tuple[str, GgufFile]:
        """``embedding``, ``head``, ``final_norm`` or ``layers.{i}.{role}``."""
        architecture = self._architecture
        match name.split("."):
            case ["embedding"]:
                return architecture.embedding.gguf_name, self.vocabulary
            case ["head"]:
                head = architecture.embedding if self.config.tied_head else architecture.head
                return head.gguf_name, self.vocabulary
            case ["final_norm"]:
                return architecture.final_norm.gguf_name, self.file
            case ["layers", layer, role]:
                tensor = BRIDGE.get(role) or architecture.layer[role]
                return tensor.gguf_name.format(layer=layer), self.file
        raise KeyError(name)

    def _read_config(self) -> ModelConfig:
        keys = self._architecture.gguf_keys
        count = {field: self._number(keys[field]) for field in ("layers", "hidden", "heads", "ffn")}
        target_layers = self._read_target_layers(count["layers"])
        kv_heads = self._number(keys["kv_heads"], default=count["heads"])
        if min(*count.values(), kv_heads) < 1 or count["heads"] % kv_heads:
            raise self._damaged(f"{count['heads']} heads over {kv_heads} key/value heads")
        head_dim = self._number(keys["head_dim"], default=count["hidden"] // count["heads"])
        rotary = self._number(keys["rotary"], default=head_dim)
        if rotary != head_dim or head_dim % 16:
            raise CheckpointError(
                f"{self.file.path}: heads of {head_dim} values of which {rotary} rotate are not "
                "supported (all must rotate, in a multiple of 16)"
            )
        scaling = self.file.fields.get(f"{self.architecture_name}.rope.scaling.type", "none")
        if scaling != "none":
            raise CheckpointError(
                f"{self.file.path}: rotary scaling of type '{scaling}' is not supported"
            )
        embedding = self.vocabulary.tensors.get(self._architecture.embedding.gguf_name)
        if embedding is None:
            raise CheckpointError(
                f"{self.vocabulary.path}: tensor '{self._architecture.embedding.gguf_name}' is "
                "missing: the checkpoint is incomplete"
            )
        return ModelConfig(
            layers=count["layers"],
            hidden=count["hidden"],
            heads=count["heads"],
            kv_heads=kv_heads,
            head_dim=head_dim,
            ffn=count["ffn"],
            vocab=embedding.shape[0],
            context=self._number(keys["context"]),
            rope_theta=self._real(keys["rope_theta"], self._architecture.defaults["rope_theta"]),
            norm_eps=self._real(keys["norm_eps"]),
            tied_head=self._architecture.head.gguf_name not in self.vocabulary.tensors,
            target_layers=target_layers,
        )

    def _read_target_layers(self, layers: int) -> tuple[int, ...] | None:
        kind = self.file.fields.get(DRAFTER_KIND, DRAFTER_KINDS[0])
        if kind not in DRAFTER_KINDS:
            raise self._bad_metadata(DRAFTER_KIND, kind, f"one of {', '.join(DRAFTER_KINDS)}")
        if kind == DRAFTER_KINDS[0]:
            return None
        if self.target_name is None:
            raise self._bad_metadata(TARGET_KEY, None, "the name of an attached drafter's target")
        found = self.file.fields.get(TARGET_LAYERS)
        if not isinstance(found, list):
            raise self._bad_metadata(TARGET_LAYERS, found, "the numbers of the target's layers")
        if (problem := target_layers_problem(found, layers)) is not None:
            raise CheckpointError(f"{self.file.path}: metadata '{TARGET_LAYERS}' {problem}")
        return tuple(found)

    def _number(self, key: str, default: int | None = None) -> int:
        value = self.file.fields.get(key, default)
        if isinstance(value, list) and len(set(value)) == 1:  # one entry per layer, all equal
            value = value[0]
        if not isinstance(value, int):
            raise self._bad_metadata(key, value, "a whole number")
        return value

    def _real(self, key: str, default: float | None = None) -> float:
        value = self.file.fields.get(key, default)
        if not isinstance(value, float):
            raise self._bad_metadata(key, value, "a number")
        return value

    def _bad_metadata(self, key: str, value: Any, expected: str) -> CheckpointError:
        found = "is missing" if value is None else f"is {value!r}"
        return CheckpointError(f"{self.file.path}: metadata '{key}' {found}, expected {expected}")

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.file.path}: the metadata says {what}, which cannot be")

    def _read_head_ids(self) -> IndexArray | None:
        if HEAD_IDS not in self.file.tensors:
            return None
        ids = self.file.integers(HEAD_IDS)
        embedding = self.vocabulary.tensors.get(self._architecture.embedding.gguf_name)
        vocab = embedding.shape[0] if embedding else 0
        if ids.size == 0 or np.any(np.diff(ids) <= 0) or ids[0] < 0 or ids[-1] >= vocab:
            raise CheckpointError(
                f"{self.file.path}: '{HEAD_IDS}' must hold ascending ids below the target's "
                f"vocabulary size {vocab}"
            )
        return ids

    def _read_head_bits(self) -> int | None:
        bits = self.file.fields.get(HEAD_BITS)
        if bits is not None and (bits != 4 or self.target_name is None):
            raise self._bad_metadata(HEAD_BITS, bits, "4, in a drafter's file")
        return bits

    def _read_rope_factors(self) -> FloatArray | None:
        return self.file.vector(ROPE_FACTORS) if ROPE_FACTORS in self.file.tensors else None

    def _check_target(self, target: GgufCheckpoint) -> None:
        """What an attached drafter reads of its target is as the drafter expects it."""
        problem = self.config.attachment_problem(target.config)
        own, other = (
            np.ones(1, np.float32) if each.rope_factors is None else each.rope_factors
            for each in (self, target)
        )
        if problem is None and not np.array_equal(own, other):
            problem = f"its '{ROPE_FACTORS}' are not the target's"
        if problem is not None:
            raise CheckpointError(
                f"{self.file.path}: {problem} ({target.file.path}); give the target that the "
                "drafter was trained with"
            )

    def _check_tensors(self) -> None:
        """Every tensor is there, in the right shape, and none is left over."""
        words = sizes(self.config)

        def check(tensor: Tensor, file: GgufFile, name: str) -> None:
            expected = tuple(words[word] for word in tensor.shape)
            found = file.tensors.get(name)
            if found is None:
                raise CheckpointError(
                    f"{file.path}: tensor '{name}' is missing: the checkpoint is incomplete"
                )
            if found.shape != expected:
                raise CheckpointError(
                    f"{file.path}: tensor '{name}' has shape {found.shape}, expected {expected}"
                )

        architecture = self._architecture
        known = {ROPE_FACTORS, HEAD_IDS, architecture.embedding.gguf_name}
        known |= {architecture.head.gguf_name, architecture.final_norm.gguf_name}
        check(architecture.embedding, self.vocabulary, architecture.embedding.gguf_name)
        check(architecture.final_norm, self.file, architecture.final_norm.gguf_name)
        if not self.config.tied_head:
            check(architecture.head, self.vocabulary, architecture.head.gguf_name)
        for layer in range(self.config.layers):
            bridge = BRIDGE.values() if layer in self.config.bridges else ()
            for tensor in (*architecture.layer.values(), *bridge):
                name = tensor.gguf_name.format(layer=layer)
                check(tensor, self.file, name)
                known.add(name)
        if unknown := sorted(self.file.tensors.keys() - known):
            raise CheckpointError(
                f"{self.file.path}: {len(unknown)} tensor(s) that '{self.architecture_name}' does "
                f"not have, such as '{unknown[0]}': this variant is not supported"
            )


def _architecture(file: GgufFile) -> tuple[str, Architecture]:
    name = file.fields.get("general.architecture")
    architecture = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if architecture is None:
        raise CheckpointError(
            f"{file.path}: architecture {name!r} is not supported (known: "
            f"{', '.join(ARCHITECTURES)})"
        )
    return str(name), architecture


def _half_split_order(rows: int, head_dim: int) -> IndexArray:
    """For each row of the half-split rotary order, the row of the interleaved order to take."""
    order = np.arange(rows, dtype=np.int64).reshape(-1, head_dim // 2, 2)
    return order.transpose(0, 2, 1).reshape(-1)
