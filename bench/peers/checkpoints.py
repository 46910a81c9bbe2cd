"""The one checkpoint in the forms that peers read: the GGUF file, and a Hugging Face folder of it.

Peers that take a draft model get the standalone drafter with the target's embedding and whole head
(none of them takes a trimmed one). Nothing is rounded on the way: a GGUF drafter keeps the
checkpoints' own blocks, and a Hugging Face folder holds their values in float32.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file

from bench.peers.install import STAMP, Report, made_once, peer_home
from bench.sources import gguf as gguf_of
from specdec.convert.architectures import LLAMA
from specdec.convert.gguf_checkpoint import GgufCheckpoint

TARGET = "smollm2-135m"
DRAFTER = "smollm2-135m-standalone-drafter"

_VERSION = 2  # of what is written here


@dataclass(frozen=True)
class Checkpoints:
    """Files of target and drafter, as peers want them."""

    target_gguf: Path
    drafter_gguf: Path
    """Complete: with embedding, head and tokenizer."""
    target_folder: Path
    """A Hugging Face folder; so is the next."""
    drafter_folder: Path
    stop_ids: tuple[int, ...]

    def stamp_of(self, path: Path) -> str:
        """What a conversion of one of these files was made of."""
        return (path.parent / STAMP).read_text(encoding="utf-8")

    def as_json(self) -> dict[str, Any]:
        """For a worker's configuration."""
        return {
            "target_gguf": str(self.target_gguf),
            "drafter_gguf": str(self.drafter_gguf),
            "target_folder": str(self.target_folder),
            "drafter_folder": str(self.drafter_folder),
            "stop_ids": list(self.stop_ids),
        }


def checkpoints(report: Report) -> Checkpoints:
    """All forms, made where they are missing."""
    home = peer_home("checkpoints")
    with ExitStack() as stack:
        target = stack.enter_context(gguf_of(TARGET))
        drafter = stack.enter_context(gguf_of(DRAFTER))
        whole_target = GgufCheckpoint(target)
        whole_drafter = GgufCheckpoint(drafter, target)
        of: dict[str, object] = {"version": _VERSION, "target": whole_target.file.sha256()}
        both = of | {"drafter": whole_drafter.file.sha256()}

        def make_target(folder: Path) -> None:
            report("writing the target as GGUF and as a Hugging Face folder")
            shutil.copyfile(target, folder / "target.gguf")
            _write_huggingface(whole_target, folder)

        def make_drafter(folder: Path) -> None:
            report("writing the drafter as GGUF and as a Hugging Face folder")
            _write_drafter_gguf(target, drafter, folder / "drafter.gguf")
            _write_huggingface(whole_drafter, folder)

        made_once(home / "target", of, make_target, report)
        made_once(home / "drafter", both, make_drafter, report)
    described = json.loads((home / "target" / "generation_config.json").read_text("utf-8"))
    return Checkpoints(
        target_gguf=home / "target" / "target.gguf",
        drafter_gguf=home / "drafter" / "drafter.gguf",
        target_folder=home / "target",
        drafter_folder=home / "drafter",
        stop_ids=tuple(described["eos_token_id"]),
    )


def _write_huggingface(checkpoint: GgufCheckpoint, folder: Path) -> None:
    config = checkpoint.config
    tensors: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {
        LLAMA.embedding.huggingface_name: checkpoint.matrix("embedding").dequantise(),
        LLAMA.final_norm.huggingface_name: checkpoint.vector("final_norm"),
    }
    for layer in range(config.layers):
        for role, tensor in LLAMA.layer.items():
            name = f"layers.{layer}.{role}"
            tensors[tensor.huggingface_name.format(layer=layer)] = (
                checkpoint.vector(name)
                if len(tensor.shape) == 1
                else checkpoint.matrix(name).dequantise()
            )
    save_file(
        {name: np.ascontiguousarray(values) for name, values in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    tokenizer = checkpoint.write_tokenizer(folder)
    fields = {
        "architectures": [LLAMA.huggingface_class],
        "model_type": "llama",
        "dtype": "float32",
        "torch_dtype": "float32",
        "bos_token_id": tokenizer["bos_id"],
        "eos_token_id": tokenizer["eos_id"],
        **LLAMA.huggingface_fixed,
        **{key: getattr(config, field) for field, key in LLAMA.huggingface_keys.items()},
    }
    _write_json(folder / "config.json", fields)
    _write_json(folder / "generation_config.json", {"eos_token_id": tokenizer["stop_ids"]})
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": _text_of(checkpoint, tokenizer["bos_id"]),
            "eos_token": _text_of(checkpoint, tokenizer["eos_id"]),
            "unk_token": _text_of(checkpoint, 0),
            "chat_template": checkpoint.vocabulary.fields["tokenizer.chat_template"],
            "model_max_length": config.context,
        },
    )


def _text_of(checkpoint: GgufCheckpoint, token: int) -> str:
    tokens: list[str] = checkpoint.vocabulary.fields["tokenizer.ggml.tokens"]
    return tokens[token]


def _write_json(path: Path, fields: Mapping[str, object]) -> None:
    path.write_text(json.dumps(fields, indent=1), encoding="utf-8")


def _write_drafter_gguf(target: Path, drafter: Path, destination: Path) -> None:
    """The drafter's layers; metadata, vocabulary and embedding are the target's."""
    vocabulary, layers = gguf.GGUFReader(target), gguf.GGUFReader(drafter)
    writer = gguf.GGUFWriter(destination, "llama")
    own = ("GGUF.", "general.", "llama.block_count")
    for name, field in vocabulary.fields.items():
        if not name.startswith(own):
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    writer.add_block_count(int(layers.fields["llama.block_count"].contents()))
    writer.add_name("drafter")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    tensors = [tensor for tensor in layers.tensors if not tensor.name.startswith("specdec.")]
    tensors += [tensor for tensor in vocabulary.tensors if tensor.name == "token_embd.weight"]
    for tensor in tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
