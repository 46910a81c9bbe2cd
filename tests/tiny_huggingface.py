"""Writes tiny random Llama checkpoints as Hugging Face folders, for tests.

The weights are those that ``tiny_gguf`` writes for the same arguments.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import sentencepiece
from safetensors.numpy import save_file

from specdec.convert.gguf_tokenizer import write_tokenizer
from tests.tiny_gguf import (
    CHAT_TEMPLATE,
    DEFAULT_VOCAB,
    random_llama,
    tokenizer_fields,
)

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def write_tiny_huggingface(
    folder: Path,
    *,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    ffn: int = 128,
    vocab: int = DEFAULT_VOCAB,
    context: int = 256,
    tied: bool = True,
    dtype: str = "F32",
    shards: int = 1,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray | None] | None = None,
) -> Path:
    """Writes a random ``LlamaForCausalLM`` and returns ``folder``.

    ``config`` adds to or overrides ``config.json`` (None removes a key); ``tensors`` likewise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": float(np.float32(1e-5)),  # as GGUF holds it
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "model_type": "llama",
        "eos_token_id": 2,
    } | dict(config or {})
    write_json(folder / "config.json", {k: v for k, v in values.items() if v is not None})
    weights = {
        huggingface_name(name): half_split(name, tensor, hidden // heads).astype(DTYPES[dtype])
        for name, tensor in random_llama(
            layers, hidden, heads, kv_heads, ffn, vocab, tied, seed
        ).items()
    } | dict(tensors or {})
    write_weights(folder, {k: v for k, v in weights.items() if v is not None}, shards)
    write_byte_level_tokenizer(folder, vocab)
    return folder


def huggingface_name(gguf_name: str) -> str:
    match gguf_name.split("."):
        case ["blk", layer, role, "weight"]:
            return f"model.layers.{layer}.{NAMES[role]}.weight"
        case [role, "weight"]:
            return f"{NAMES[role]}.weight"
    raise KeyError(gguf_name)


def half_split(name: str, tensor: np.ndarray, head_dim: int) -> np.ndarray:
    """Queries and keys: even rows of each head first, then the odd ones."""
    if ".attn_q." not in name and ".attn_k." not in name:
        return tensor
    heads = tensor.reshape(-1, head_dim, tensor.shape[1])
    return np.concatenate([heads[:, 0::2], heads[:, 1::2]], axis=1).reshape(tensor.shape)


def write_weights(folder: Path, weights: Mapping[str, np.ndarray], shards: int) -> None:
    if shards == 1:
        save_file(dict(weights), folder / "model.safetensors")
        return
    index = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: weights[name] for name in list(weights)[shard::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    write_json(folder / "model.safetensors.index.json", {"weight_map": index})


def write_byte_level_tokenizer(folder: Path, vocab: int = DEFAULT_VOCAB) -> None:
    write_tokenizer(tokenizer_fields(vocab), folder)
    (folder / "chat_template.jinja").unlink()
    write_json(
        folder / "tokenizer_config.json",
        {
            "bos_token": "<|im_start|>",
            "eos_token": {"content": "<|im_end|>", "special": True},
            "add_bos_token": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def write_sentencepiece(
    path: Path, texts: Sequence[str], vocab: int = 700, **options: Any
) -> sentencepiece.SentencePieceProcessor:
    """Trains a small vocabulary with the settings of Llama 2's and writes it to ``path``."""
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            **{
                "sentence_iterator": iter(texts),
                "model_writer": file,
                "model_type": "bpe",
                "vocab_size": vocab,
                "byte_fallback": True,
                "normalization_rule_name": "identity",
                "remove_extra_whitespaces": False,
                "allow_whitespace_only_pieces": True,
                "split_digits": True,
                "hard_vocab_limit": False,
                "minloglevel": 2,
            }
            | options
        )
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document), encoding="utf-8")


def random_text(rng: random.Random, length: int) -> str:
    """Text that tokenizers cut in unusual places."""
    alphabets = (
        " \t\n\r\u00a0\u3000\u2581",
        "abcXYZ'stremvl",
        "0123456789½²٣Ⅷ",
        ".,!?-_<>|~$^+`\"'=#*",
        "äßéñΩжיةहिあ漢字가",
        "😀👩\u200d👩🏽🇩🇪\u0301\u200b\ufeff\U0010fffd\x00\x7f",
    )
    return "".join(rng.choice(rng.choice(alphabets)) for _ in range(length))
