"""Writes tiny random Llama checkpoints (GGUF) with a working byte-level tokenizer, for tests.

Everything is a pure function of the arguments, so two calls with the same arguments write files
with the same content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BYTES = 256
DEFAULT_VOCAB = 300
SMALLEST_VOCAB = len(SPECIAL_TOKENS) + BYTES

# ChatML, with a system turn only where the conversation has one.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Text from which the merges are learned; any English will do.
_MERGE_TEXT = (
    "the quick brown fox jumps over the lazy dog and then the other dog thinks that this is "
    "the thing that it wanted to do all along; in the end there are no more words to say "
)

_NORMAL, _CONTROL = 1, 3  # gguf token types


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-in for each of the 256 bytes, in byte order."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    symbols, moved = [], 0
    for byte in range(BYTES):
        if byte in printable:
            symbols.append(chr(byte))
        else:
            symbols.append(chr(256 + moved))
            moved += 1
    return symbols


def tokenizer_fields(vocab: int = DEFAULT_VOCAB) -> dict[str, Any]:
    """The ``tokenizer.*`` metadata of a byte-level BPE tokenizer of exactly ``vocab`` tokens."""
    if vocab < SMALLEST_VOCAB:
        raise ValueError(
            f"a byte-level vocabulary has at least {SMALLEST_VOCAB} tokens, not {vocab}"
        )
    symbols = byte_symbols()
    tokens = [*SPECIAL_TOKENS, *symbols]
    merges: list[str] = []
    words = [
        [symbols[byte] for byte in piece.encode()]
        for piece in (" " + _MERGE_TEXT).replace(" ", "\0 ").split("\0")
        if piece
    ]
    while len(tokens) < vocab:
        counts: dict[tuple[str, str], int] = {}
        for word in words:
            for pair in pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        if not counts:
            break
        left, right = max(counts, key=lambda pair: (counts[pair], pair))
        tokens.append(left + right)
        merges.append(f"{left} {right}")
        words = [_merge(word, left, right) for word in words]
    special = list(SPECIAL_TOKENS)
    while len(tokens) < vocab:  # more ids than the text has pairs: unused special tokens
        special.append(f"<|unused_{len(tokens)}|>")
        tokens.append(special[-1])
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [_CONTROL if t in special else _NORMAL for t in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _merge(word: list[str], left: str, right: str) -> list[str]:
    merged: list[str] = []
    for symbol in word:
        if merged and merged[-1] == left and symbol == right:
            merged[-1] = left + right
        else:
            merged.append(symbol)
    return merged


def write_tiny_gguf(
    path: Path,
    *,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    ffn: int = 128,
    vocab: int = DEFAULT_VOCAB,
    context: int = 256,
    tied: bool = True,
    quant: str = "Q4_1",
    embedding_quant: str = "Q8_0",
    seed: int = 0,
    tokenizer: bool = True,
    metadata: Mapping[str, Any] | None = None,
    without: Sequence[str] = (),
) -> Path:
    """Writes a random ``llama`` checkpoint and returns ``path``.

    ``quant`` is the ggml type of the linears (``"Q4_1"``, ``"Q8_0"``, ``"F16"``, ``"F32"``...).
    ``metadata`` adds to or overrides the metadata; ``without`` names metadata keys and tensors to
    leave out (to test what a converter says about it).
    """
    fields = {
        **_llama_fields(layers, hidden, heads, kv_heads, ffn, context),
        "llama.rope.dimension_count": hidden // heads,
        "llama.vocab_size": vocab,
        "general.name": "tiny",
        **(tokenizer_fields(vocab) if tokenizer else {}),
        **(metadata or {}),
    }
    tensors = random_llama(layers, hidden, heads, kv_heads, ffn, vocab, tied, seed)
    return write_gguf(path, fields, tensors, quant, embedding_quant, without)


def write_tiny_drafter(
    path: Path,
    *,
    target: str = "tiny",
    head_ids: Sequence[int] | None = None,
    layers: int = 1,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    ffn: int = 128,
    vocab: int = DEFAULT_VOCAB,
    context: int = 256,
    quant: str = "Q8_0",
    seed: int = 1,
    target_layers: Sequence[int] | None = None,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    without: Sequence[str] = (),
) -> Path:
    """Writes a drafter checkpoint: layers and final norm only; the rest comes from its target.

    With ``target_layers`` it is an attached one, of that many layers. ``metadata`` and ``tensors``
    add to or override what is written.
    """
    if target_layers is not None:
        layers = len(target_layers)
    fields = {
        **_llama_fields(layers, hidden, heads, kv_heads, ffn, context),
        "general.name": "tiny-drafter",
        "specdec.target": target,
    }
    weights = random_llama(layers, hidden, heads, kv_heads, ffn, vocab, True, seed)
    del weights["token_embd.weight"]
    if head_ids is not None:
        weights["specdec.head_ids"] = np.asarray(head_ids, np.int32)
    if target_layers is not None:
        fields["specdec.drafter_kind"] = "attached"
        fields["specdec.target_layers"] = [int(layer) for layer in target_layers]
        weights |= random_bridges(target_layers, hidden, seed)
    fields |= metadata or {}
    weights |= tensors or {}
    return write_gguf(path, fields, weights, quant, quant, without)


def _llama_fields(
    layers: int, hidden: int, heads: int, kv_heads: int, ffn: int, context: int
) -> dict[str, Any]:
    return {
        "llama.block_count": layers,
        "llama.context_length": context,
        "llama.embedding_length": hidden,
        "llama.feed_forward_length": ffn,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
    }


def random_bridges(target_layers: Sequence[int], hidden: int, seed: int) -> dict[str, np.ndarray]:
    """The bridges of an attached drafter: one where a layer of the target is left out."""
    rng = np.random.default_rng(seed + 1000)
    tensors: dict[str, np.ndarray] = {}
    for j, layer in enumerate(target_layers):
        if layer != (target_layers[j - 1] + 1 if j else 0):
            weight = rng.standard_normal((hidden, 2 * hidden)) / np.sqrt(2 * hidden)
            tensors |= {
                f"blk.{j}.bridge.weight": weight.astype(np.float32),
                f"blk.{j}.bridge.scale": rng.uniform(0.5, 1.5, hidden).astype(np.float32),
                f"blk.{j}.bridge.bias": rng.uniform(-0.5, 0.5, hidden).astype(np.float32),
            }
    return tensors


def random_llama(
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    ffn: int,
    vocab: int,
    tied: bool,
    seed: int,
) -> dict[str, np.ndarray]:
    """Random weights by tensor name, each float32 [out, in], scaled so that logits have spread."""
    rng = np.random.default_rng(seed)
    kv_size = hidden // heads * kv_heads

    def linear(rows: int, columns: int) -> np.ndarray:
        values: np.ndarray = (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(
            np.float32
        )
        return values

    def norm() -> np.ndarray:
        return rng.uniform(0.5, 1.5, hidden).astype(np.float32)

    tensors = {"token_embd.weight": linear(vocab, hidden) * 3}
    for layer in range(layers):
        prefix = f"blk.{layer}."
        tensors |= {
            prefix + "attn_norm.weight": norm(),
            prefix + "attn_q.weight": linear(hidden, hidden),
            prefix + "attn_k.weight": linear(kv_size, hidden),
            prefix + "attn_v.weight": linear(kv_size, hidden),
            prefix + "attn_output.weight": linear(hidden, hidden),
            prefix + "ffn_norm.weight": norm(),
            prefix + "ffn_gate.weight": linear(ffn, hidden),
            prefix + "ffn_up.weight": linear(ffn, hidden),
            prefix + "ffn_down.weight": linear(hidden, ffn),
        }
    tensors["output_norm.weight"] = norm()
    if not tied:
        tensors["output.weight"] = linear(vocab, hidden) * 3
    return tensors


def write_gguf(
    path: Path,
    fields: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    quant: str,
    embedding_quant: str,
    without: Sequence[str] = (),
) -> Path:
    """Writes metadata and tensors; matrices in ``quant``, vectors as they are."""
    fields = dict(fields)
    writer = gguf.GGUFWriter(path, str(fields.pop("general.architecture", "llama")))
    for key, value in fields.items():
        if key not in without:
            _add_field(writer, key, value)
    for name, tensor in tensors.items():
        if name in without:
            continue
        kind = embedding_quant if name in ("token_embd.weight", "output.weight") else quant
        if tensor.ndim == 1 or kind == "F32":
            writer.add_tensor(name, tensor)
        else:
            ggml_type = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quantize(tensor, ggml_type), raw_dtype=ggml_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_field(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)
