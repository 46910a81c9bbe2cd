"""A Hugging Face folder (``config.json``, safetensors, tokenizer) as a ``Checkpoint``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specdec.convert.architectures import Tensor, sizes
from specdec.convert.huggingface_config import HuggingfaceConfig
from specdec.convert.huggingface_tokenizer import HuggingfaceTokenizer
from specdec.convert.matrix import DenseMatrix, FloatArray, IndexArray, Matrix
from specdec.convert.safetensors_reader import SafetensorsFolder
from specdec.errors import CheckpointError

# Some old checkpoints store the rotary frequencies, which follow from the configuration.
_DERIVED = ".rotary_emb.inv_freq"


class HuggingfaceCheckpoint:
    """Gives tensors under the graph writer's names, checked against the configuration.

    The folder holds a whole model: nothing comes from a target. Query and key rows are in the
    half-split rotary order there already.
    """

    is_drafter = False
    head_ids: IndexArray | None = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._config_file = HuggingfaceConfig(folder)
        self.architecture_name = self._config_file.architecture_name
        self.config = self._config_file.model
        self.rope_factors = self._config_file.rope_factors
        self._architecture = self._config_file.architecture
        self._weights = SafetensorsFolder(folder)
        self._check_tensors()
        self._tokenizer = HuggingfaceTokenizer(folder, self._config_file.values, self.config.vocab)

    @property
    def sampling(self) -> dict[str, Any]:
        return self._tokenizer.sampling

    def describe(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for path in (self._config_file.path, *self._weights.files):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.name} {content}\n".encode())
        return {
            "file": self.folder.absolute().name,
            "sha256": digest.hexdigest(),
            "format": "huggingface",
        }

    def write_tokenizer(self, folder: Path) -> dict[str, Any]:
        return self._tokenizer.write(folder)

    def vector(self, name: str) -> FloatArray:
        return self._weights.read(self._find(name))

    def matrix(self, name: str) -> Matrix:
        return DenseMatrix(self._weights.read(self._find(name)))

    def _find(self, name: str) -> str:
        """``embedding``, ``head``, ``final_norm`` or ``layers.{i}.{role}``."""
        architecture = self._architecture
        match name.split("."):
            case ["embedding"]:
                return architecture.embedding.huggingface_name
            case ["head"]:
                head = architecture.embedding if self.config.tied_head else architecture.head
                return head.huggingface_name
            case ["final_norm"]:
                return architecture.final_norm.huggingface_name
            case ["layers", layer, role]:
                return architecture.layer[role].huggingface_name.format(layer=layer)
        raise KeyError(name)

    def _check_tensors(self) -> None:
        """Every tensor is there, in the right shape, and none is left over."""
        architecture = self._architecture
        known = {architecture.head.huggingface_name}
        for name, tensor in self._expected_tensors():
            self._check_tensor(name, tensor)
            known.add(name)
        unknown = sorted(
            name for name in self._weights.tensors.keys() - known if not name.endswith(_DERIVED)
        )
        if unknown:
            raise CheckpointError(
                f"{self.folder}: {len(unknown)} tensor(s) that '{self.architecture_name}' does not "
                f"have, such as '{unknown[0]}': this variant is not supported"
            )

    def _expected_tensors(self) -> Iterator[tuple[str, Tensor]]:
        architecture = self._architecture
        ends = [architecture.embedding, architecture.final_norm]
        if not self.config.tied_head:
            ends.append(architecture.head)
        for tensor in ends:
            yield tensor.huggingface_name, tensor
        for layer in range(self.config.layers):
            for tensor in architecture.layer.values():
                yield tensor.huggingface_name.format(layer=layer), tensor

    def _check_tensor(self, name: str, tensor: Tensor) -> None:
        words = sizes(self.config)
        shape = tuple(words[word] for word in tensor.shape)
        found = self._weights.tensors.get(name)
        if found is None:
            raise CheckpointError(
                f"{self.folder}: tensor '{name}' is missing: the checkpoint is incomplete"
            )
        if found.shape != shape:
            raise CheckpointError(
                f"{found.file}: tensor '{name}' has shape {found.shape}, expected {shape}"
            )
        self._weights.check_type(name)
