"""Hugging Face folders of Llama shape with random weights, streamed to disk.

    python -m bench.random_llama FOLDER [--shape llama-2-7b-chat] [--layers 2] [--seed 0]

For measuring how large, slow and hungry a conversion is: what the weights say is noise. They are
bfloat16, of the size and spread of trained ones (each row has a scale of its own), and the same for
the same arguments. One tensor is in memory at a time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from specdec.convert.architectures import LLAMA, Tensor, sizes
from specdec.convert.checkpoint import ModelConfig
from specdec.recipe import UserSource, load_recipe

SHARD_BYTES = 4 << 30
_SPACE = "\u2581"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SPECIAL = ("<unk>", "<s>", "</s>")
SMALLEST_VOCAB = len(_SPECIAL) + 256 + 1 + len(_LETTERS)


def recipe_config(name: str, *, layers: int | None = None, context: int = 4096) -> ModelConfig:
    """The shape of a known model that users bring themselves."""
    source = load_recipe(name).source
    if not isinstance(source, UserSource):
        raise SystemExit(f"{name}: its recipe has no shape")
    shape = {"tied_head": False, "rope_theta": 10000.0, "norm_eps": 1e-5} | dict(source.shape)
    shape["layers"] = layers or shape["layers"]
    return ModelConfig(context=context, **shape)


def write_random_llama(
    folder: Path,
    config: ModelConfig,
    *,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[float], None] | None = None,
) -> Path:
    """Writes ``config.json``, weights and a synthetic tokenizer to ``folder``; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = LLAMA.huggingface_keys
    values = {keys[field]: getattr(config, field) for field in keys}
    values |= {
        "architectures": [LLAMA.huggingface_class],
        "model_type": "llama",
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    _write_json(folder / "config.json", values)
    _write_weights(folder, config, seed, shard_bytes, progress or (lambda fraction: None))
    _write_tokenizer(folder, config.vocab)
    return folder


def _tensors(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    words = sizes(config)

    def entry(tensor: Tensor, layer: int = 0) -> tuple[str, tuple[int, ...]]:
        shape = tuple(words[word] for word in tensor.shape)
        return tensor.huggingface_name.format(layer=layer), shape

    yield entry(LLAMA.embedding)
    for layer in range(config.layers):
        for tensor in LLAMA.layer.values():
            yield entry(tensor, layer)
    yield entry(LLAMA.final_norm)
    if not config.tied_head:
        yield entry(LLAMA.head)


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if len(shape) == 1:  # a norm's gains
        return rng.uniform(0.3, 0.6, shape).astype(np.float32)
    values = rng.standard_normal(shape, dtype=np.float32)
    values *= np.float32(0.02) * np.exp(0.2 * rng.standard_normal((shape[0], 1), dtype=np.float32))
    return values


def _write_weights(
    folder: Path,
    config: ModelConfig,
    seed: int,
    shard_bytes: int,
    progress: Callable[[float], None],
) -> None:
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in _tensors(config):
        size = 2 * int(np.prod(shape))
        if shards[-1] and filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    whole, done = sum(len(shard) for shard in shards), 0
    weight_map: dict[str, str] = {}
    generators = iter(np.random.default_rng(seed).spawn(whole))
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        with (folder / file).open("wb") as stream:
            stream.write(_header(shard))
            for name, shape in shard.items():
                _random(next(generators), shape).astype(ml_dtypes.bfloat16).tofile(stream)
                weight_map[name] = file
                done += 1
                progress(done / whole)
    _write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})


def _header(shard: Mapping[str, tuple[int, ...]]) -> bytes:
    """What a safetensors file begins with: its length, then names, types and places as JSON."""
    entries, offset = {}, 0
    for name, shape in shard.items():
        end = offset + 2 * int(np.prod(shape))
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_tokenizer(folder: Path, vocab: int) -> None:
    """A vocabulary of SentencePiece's kind: bytes, letters, and all pieces of letters in turn."""
    if vocab < SMALLEST_VOCAB:
        raise SystemExit(f"a vocabulary has at least {SMALLEST_VOCAB} tokens, not {vocab}")
    pieces = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), _SPACE, *_LETTERS]
    merges: list[tuple[str, str]] = []
    longest = [_SPACE, *_LETTERS]
    while len(pieces) < vocab:
        pairs = [(left, right) for left in longest for right in _LETTERS]
        pairs = pairs[: vocab - len(pieces)]
        longest = [left + right for left, right in pairs]
        merges += pairs
        pieces += longest
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: token for token, piece in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in _SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    options = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    _write_json(folder / "tokenizer_config.json", options)


def _write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", default="llama-2-7b-chat", help="a known model's name")
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = recipe_config(arguments.shape, layers=arguments.layers)
    write_random_llama(arguments.folder, config, seed=arguments.seed)


if __name__ == "__main__":
    main()
