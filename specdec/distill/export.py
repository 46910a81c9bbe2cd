"""A student's weights as a checkpoint on disk: a drafter's GGUF file, or a Hugging Face folder.

Weights go by the names that ``specdec.convert.checkpoint.Checkpoint`` gives them: ``final_norm``,
``layers.{i}.{role}``; matrices are [outputs, inputs] with query and key rows in the half-split
rotary order.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from specdec.convert.architectures import BRIDGE, LLAMA, ROPE_FACTORS
from specdec.convert.checkpoint import ModelSource
from specdec.convert.gguf_checkpoint import (
    DRAFTER_KIND,
    HEAD_BITS,
    HEAD_IDS,
    TARGET_KEY,
    TARGET_LAYERS,
)
from specdec.convert.matrix import FloatArray, IndexArray
from specdec.distill.rounding import BITS, TYPES, WEIGHTS, rounded
from specdec.errors import InvalidInputError
from specdec.model_shape import ModelShape

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)

Weights = Mapping[str, FloatArray]


def weights_of(state: Mapping[str, Tensor]) -> dict[str, FloatArray]:
    """A student's ``state_dict`` as float32 weights by a checkpoint's names."""
    weights: dict[str, FloatArray] = {}
    for key, values in state.items():
        match key.split("."):
            case ["bridges", layer, "weight"]:
                name = f"layers.{layer}.bridge"
            case ["bridges", layer, part]:
                name = f"layers.{layer}.bridge_{part}"
            case ["head_rows"]:
                name = "head"
            case _:
                name = key
        weights[name] = values.detach().float().cpu().numpy()
    return weights


def state_of(weights: Weights) -> dict[str, Tensor]:
    """The inverse of ``weights_of``."""
    state: dict[str, Tensor] = {}
    for name, values in weights.items():
        match name.split("."):
            case ["layers", layer, "bridge"]:
                key = f"bridges.{layer}.weight"
            case ["layers", layer, "bridge_scale" | "bridge_bias" as role]:
                key = f"bridges.{layer}.{role.removeprefix('bridge_')}"
            case ["head"]:
                key = "head_rows"
            case _:
                key = name
        state[key] = torch.from_numpy(np.array(values, np.float32))
    return state


def write_gguf(
    path: Path,
    shape: ModelShape,
    weights: Weights,
    *,
    name: str,
    target: str,
    head_ids: IndexArray | None,
    rope_factors: FloatArray | None = None,
    held_as: str = WEIGHTS[0],
) -> None:
    """Write a drafter whose embedding and head rows are its target's.

    Args:
        path: The file, which appears when it is whole.
        shape: Of the drafter's layers.
        weights: Everything but embedding and head.
        name: The drafter's name.
        target: Its target's name.
        head_ids: Ids of the head's rows, ascending; None: all.
        rope_factors: What each rotary frequency is divided by, [head_dim / 2]; None: by one.
        held_as: How matrices are held, one of ``rounding.WEIGHTS``. With 4 bits, the head's rows
            are rounded to 4 bits too when the drafter is converted.

    Raises:
        InvalidInputError: It cannot be written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(partial, "llama")
        writer.add_name(name)
        _add_shape(writer, shape)
        writer.add_string(TARGET_KEY, target)
        if shape.target_layers is not None:
            writer.add_string(DRAFTER_KIND, "attached")
            writer.add_array(TARGET_LAYERS, list(shape.target_layers))
        for key, values in weights.items():
            _add_tensor(writer, key, values, shape.head_dim, TYPES[held_as])
        if held_as != WEIGHTS[0]:
            writer.add_uint32(HEAD_BITS, BITS[held_as])
        if rope_factors is not None:
            writer.add_tensor(ROPE_FACTORS, rope_factors.astype(np.float32))
        if head_ids is not None:
            writer.add_tensor(HEAD_IDS, head_ids.astype(np.int32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(partial, path)
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def as_exported(weights: Weights, held_as: str) -> dict[str, FloatArray]:
    """The weights as they come back from ``write_gguf``."""
    return {key: rounded(values, held_as) for key, values in weights.items()}


def write_huggingface(
    folder: Path,
    shape: ModelShape,
    weights: Weights,
    *,
    target: ModelSource,
    target_folder: Path | None,
) -> None:
    """Write a drafter with its own embedding and head: a LlamaForCausalLM folder in bfloat16.

    Args:
        folder: Appears when it is whole; one that is there is replaced.
        shape: Of the drafter.
        weights: All of them: ``embedding``, and ``head`` unless the shape ties it.
        target: Whose tokenizer it has.
        target_folder: The target's Hugging Face folder, whose tokenizer files are copied; None:
            they are made from the checkpoint.

    Raises:
        InvalidInputError: It cannot be written.
    """
    from safetensors.numpy import save_file

    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        keys = LLAMA.huggingface_keys
        config: dict[str, Any] = {keys[field]: getattr(shape, field) for field in keys}
        config |= {
            "architectures": [LLAMA.huggingface_class],
            "model_type": "llama",
            "torch_dtype": "bfloat16",
            **LLAMA.huggingface_fixed,
        }
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        tensors = {
            _huggingface_name(key): values.astype(ml_dtypes.bfloat16)
            for key, values in weights.items()
        }
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        if target_folder is None:
            _write_tokenizer(target, partial)
        else:
            for name in _TOKENIZER_FILES:
                if (target_folder / name).is_file():
                    shutil.copyfile(target_folder / name, partial / name)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    except OSError as error:
        raise InvalidInputError(f"{folder}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _add_shape(writer: gguf.GGUFWriter, shape: ModelShape) -> None:
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_vocab_size(shape.vocab)


def _add_tensor(
    writer: gguf.GGUFWriter,
    key: str,
    values: FloatArray,
    head_dim: int,
    kind: gguf.GGMLQuantizationType,
) -> None:
    values = np.ascontiguousarray(values, dtype=np.float32)
    role = key.rpartition(".")[2]
    if role in LLAMA.interleaved_rotary:
        values = _interleaved(values, head_dim)
    if values.ndim == 1:
        writer.add_tensor(_gguf_name(key), values)
    else:
        writer.add_tensor(_gguf_name(key), gguf.quantize(values, kind), raw_dtype=kind)


def _interleaved(values: FloatArray, head_dim: int) -> FloatArray:
    """Rows in the half-split rotary order to rows in llama.cpp's interleaved one."""
    heads = values.reshape(-1, 2, head_dim // 2, values.shape[1])
    return np.ascontiguousarray(heads.transpose(0, 2, 1, 3)).reshape(values.shape)


def _gguf_name(key: str) -> str:
    match key.split("."):
        case ["final_norm"]:
            return LLAMA.final_norm.gguf_name
        case ["layers", layer, role]:
            return (BRIDGE.get(role) or LLAMA.layer[role]).gguf_name.format(layer=layer)
    raise KeyError(key)


def _huggingface_name(key: str) -> str:
    match key.split("."):
        case ["embedding"]:
            return LLAMA.embedding.huggingface_name
        case ["head"]:
            return LLAMA.head.huggingface_name
        case ["final_norm"]:
            return LLAMA.final_norm.huggingface_name
        case ["layers", layer, role]:
            return LLAMA.layer[role].huggingface_name.format(layer=layer)
    raise KeyError(key)


def _write_tokenizer(target: ModelSource, folder: Path) -> None:
    """The tokenizer's files as the readers of a Hugging Face folder expect them."""
    account = target.write_tokenizer(folder)
    tokens = json.loads((folder / account["file"]).read_text(encoding="utf-8"))
    names = {index: token for token, index in tokens["model"]["vocab"].items()}
    names |= {entry["id"]: entry["content"] for entry in tokens.get("added_tokens", [])}
    options: dict[str, Any] = {"add_bos_token": account["add_bos"]}
    for key in ("bos", "eos"):
        if account[f"{key}_id"] is not None:
            options[f"{key}_token"] = names[account[f"{key}_id"]]
    text = json.dumps(options, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
