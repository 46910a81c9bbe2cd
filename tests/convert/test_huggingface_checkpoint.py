"""Hugging Face folders: the same graph as from GGUF, bit for bit, and clear words for damage."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from specdec.convert import LAYOUTS, convert
from specdec.convert.huggingface_checkpoint import HuggingfaceCheckpoint
from specdec.errors import CheckpointError, InvalidInputError
from specdec.generator import Generator
from specdec.model_folder import ModelFolder
from tests.tiny_gguf import write_tiny_gguf
from tests.tiny_huggingface import huggingface_name, write_json, write_tiny_huggingface

QUERY = "model.layers.1.self_attn.q_proj.weight"


def graph_of(source: Path, destination: Path, layout: str) -> tuple[bytes, bytes]:
    folder = convert(source, destination, layout=layout, name="tiny")
    return (folder / "model.onnx").read_bytes(), (folder / "model.onnx.data").read_bytes()


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("tied", [True, False])
def test_the_graph_is_the_one_from_gguf(tied: bool, layout: str, tmp_path: Path) -> None:
    gguf = write_tiny_gguf(tmp_path / "t.gguf", tied=tied, quant="F32", embedding_quant="F32")
    folder = write_tiny_huggingface(tmp_path / "hf", tied=tied)
    assert graph_of(folder, tmp_path / "a", layout) == graph_of(gguf, tmp_path / "b", layout)
    ours, reference = ModelFolder.open(tmp_path / "a"), ModelFolder.open(tmp_path / "b")
    assert ours.config == reference.config
    assert ours.tokenizer == reference.tokenizer
    assert ours.chat_template_path is not None


def test_f16_is_the_gguf_in_f16(tmp_path: Path) -> None:
    gguf = write_tiny_gguf(tmp_path / "t.gguf", quant="F16", embedding_quant="F16")
    folder = write_tiny_huggingface(tmp_path / "hf", dtype="F16")
    # GGUF keeps vectors in float32, the folder has them in F16 as well.
    ours, reference = (HuggingfaceCheckpoint(folder), write_tiny_huggingface(tmp_path / "f32"))
    exact = HuggingfaceCheckpoint(reference)
    norm = exact.vector("final_norm")
    assert np.array_equal(ours.vector("final_norm"), norm.astype(np.float16).astype(np.float32))
    weights = load_file(folder / "model.safetensors")
    weights |= {
        name: value
        for name, value in load_file(reference / "model.safetensors").items()
        if value.ndim == 1
    }
    save_file(weights, folder / "model.safetensors")
    assert graph_of(folder, tmp_path / "a", "nbits8") == graph_of(gguf, tmp_path / "b", "nbits8")


def test_bf16_is_the_upper_half_of_float32(tmp_path: Path) -> None:
    checkpoint = HuggingfaceCheckpoint(write_tiny_huggingface(tmp_path / "b", dtype="BF16"))
    exact = HuggingfaceCheckpoint(write_tiny_huggingface(tmp_path / "f"))
    for name in ("embedding", "head", "layers.1.key", "layers.0.down"):
        values, wanted = checkpoint.matrix(name).dequantise(), exact.matrix(name).dequantise()
        assert values.dtype == np.float32
        assert not np.any(values.view(np.uint32) & 0xFFFF)
        assert np.allclose(values, wanted, rtol=2**-8, atol=0)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_shards_make_no_difference(dtype: str, tmp_path: Path) -> None:
    whole = write_tiny_huggingface(tmp_path / "whole", tied=False, dtype=dtype)
    parts = write_tiny_huggingface(tmp_path / "parts", tied=False, dtype=dtype, shards=3)
    assert graph_of(parts, tmp_path / "a", "nbits8") == graph_of(whole, tmp_path / "b", "nbits8")
    source = ModelFolder.open(tmp_path / "a").source
    assert (source["file"], source["format"]) == ("parts", "huggingface")
    assert source["sha256"] != ModelFolder.open(tmp_path / "b").source["sha256"]


def test_a_model_from_a_folder_writes_text(tmp_path: Path) -> None:
    folder = convert(write_tiny_huggingface(tmp_path / "hf"), tmp_path / "model")
    drafted = Generator(folder, folder, draft_length=3).generate("fox", temperature=0, max_tokens=8)
    plain = Generator(folder).generate("fox", temperature=0, max_tokens=8)
    assert drafted.tokens == plain.tokens


def test_a_tied_head_may_be_stored_all_the_same(tmp_path: Path) -> None:
    head = np.ones((300, 64), np.float32)
    folder = write_tiny_huggingface(
        tmp_path,
        tensors={
            "lm_head.weight": head,
            "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32),
        },
    )
    checkpoint = HuggingfaceCheckpoint(folder)
    embedding = checkpoint.matrix("embedding").dequantise()
    assert np.array_equal(checkpoint.matrix("head").dequantise(), embedding)


def test_defaults_of_config_json(tmp_path: Path) -> None:
    folder = write_tiny_huggingface(
        tmp_path,
        kv_heads=4,
        tied=False,
        config={"num_key_value_heads": None, "tie_word_embeddings": None},
    )
    config = HuggingfaceCheckpoint(folder).config
    assert (config.kv_heads, config.head_dim, config.rope_theta) == (4, 16, 10000.0)
    assert not config.tied_head


def test_a_head_dim_of_its_own_is_believed(tmp_path: Path) -> None:
    folder = write_tiny_huggingface(tmp_path, config={"head_dim": 32})
    with pytest.raises(CheckpointError, match=r"shape \(64, 64\), expected \(128, 64\)"):
        HuggingfaceCheckpoint(folder)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_rotary_scaling_of_llama_3(key: str, tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    folder = write_tiny_huggingface(tmp_path, config={"rope_theta": 500000.0, key: rope})
    factors = HuggingfaceCheckpoint(folder).rope_factors
    assert factors is not None
    assert factors.dtype == np.float32
    for index, factor in enumerate(factors):  # as the Llama 3.1 model card writes it
        frequency = 500000.0 ** (-2 * index / 16)
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            wanted = frequency
        elif wavelength > 8192 / 1:
            wanted = frequency / 8
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            wanted = (1 - smooth) * frequency / 8 + smooth * frequency
        assert frequency / factor == pytest.approx(wanted, rel=1e-6)
    assert {1.0, 8.0} < set(factors.tolist())


def test_linear_and_newer_rotary_settings(tmp_path: Path) -> None:
    linear = write_tiny_huggingface(
        tmp_path / "a", config={"rope_scaling": {"type": "linear", "factor": 4}}
    )
    assert np.array_equal(HuggingfaceCheckpoint(linear).rope_factors, np.full(8, 4, np.float32))
    newer = write_tiny_huggingface(
        tmp_path / "b", config={"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    )
    checkpoint = HuggingfaceCheckpoint(newer)
    assert checkpoint.rope_factors is None
    assert checkpoint.config.rope_theta == 5e5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures ['GPT2LMHeadModel'] are not"),
        ({"architectures": None}, "architectures None are not supported (known: LlamaForCausalLM)"),
        ({"hidden_size": None}, "'hidden_size' is missing, expected a whole number"),
        ({"num_hidden_layers": 0}, "'num_hidden_layers' is 0, expected a whole number"),
        ({"vocab_size": True}, "'vocab_size' is True, expected a whole number"),
        ({"num_key_value_heads": 3}, "4 heads over 3 key/value heads cannot be"),
        ({"head_dim": 12}, "heads of 12 values are not supported"),
        ({"rms_norm_eps": None}, "'rms_norm_eps' is missing, expected a positive number"),
        ({"rope_theta": "10000"}, "'rope_theta' is '10000', expected a positive number"),
        ({"tie_word_embeddings": "yes"}, "'tie_word_embeddings' is 'yes', expected true or false"),
        ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu', only 'silu' is supported"),
        ({"attention_bias": True}, "'attention_bias' is True, only False is supported"),
        ({"quantization_config": {"bits": 4}}, "the weights are quantised"),
        ({"rope_scaling": {"type": "yarn"}}, "rotary scaling of type 'yarn' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "rotary scaling's factor' is missing"),
        ({"rope_scaling": "linear"}, "the rotary scaling is 'linear', expected an object"),
        ({"hidden_size": 128, "head_dim": 16}, "expected (300, 128)"),
        ({"vocab_size": 301}, "has shape (300, 64), expected (301, 64)"),
        ({"num_hidden_layers": 10**9}, "tensor 'model.layers.2.input_layernorm.weight' is missing"),
        ({"num_hidden_layers": 3}, "tensor 'model.layers.2.input_layernorm.weight' is missing"),
        ({"num_hidden_layers": 1}, "9 tensor(s) that 'llama' does not have"),
        ({"tie_word_embeddings": False}, "tensor 'lm_head.weight' is missing"),
    ],
)
def test_configurations_that_cannot_be(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    said = refusal(write_tiny_huggingface(tmp_path / "hf", config=changes), tmp_path)
    assert message in said


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({QUERY: None}, f"tensor '{QUERY}' is missing: the checkpoint is incomplete"),
        ({QUERY: np.ones((64, 32), np.float32)}, f"'{QUERY}' has shape (64, 32), expected (64, 6"),
        ({QUERY: np.ones((64, 64), np.int8)}, f"tensor '{QUERY}' is of type I8, which is not"),
        ({"model.layers.0.self_attn.q_proj.bias": np.ones(64, np.float32)}, "1 tensor(s) that"),
    ],
)
def test_tensors_that_cannot_be(tensors: dict[str, Any], message: str, tmp_path: Path) -> None:
    said = refusal(write_tiny_huggingface(tmp_path / "hf", tensors=tensors), tmp_path)
    assert message in said


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda hf: (hf / "config.json").unlink(), "no config.json in it: give a Hugging Face"),
        (lambda hf: (hf / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda hf: (hf / "config.json").write_bytes(b"\xff{}"), "config.json: not valid JSON"),
        (lambda hf: (hf / "config.json").write_text("[]"), "config.json: not a JSON object"),
        (lambda hf: shard(hf).unlink(), "model-00002-of-00003.safetensors: missing"),
        (lambda hf: shard(hf).write_bytes(b""), "of-00003.safetensors: damaged or truncated"),
        (lambda hf: cut(shard(hf), -1), "of-00003.safetensors: damaged or truncated"),
        (lambda hf: cut(shard(hf), 100), "of-00003.safetensors: damaged or truncated"),
        (lambda hf: swap_shards(hf), "where it is not: the files do not belong together"),
        (lambda hf: write_json(index(hf), {}), "'weight_map' is missing or empty"),
        (lambda hf: write_json(index(hf), {"weight_map": {"a": "../b"}}), "'../b' is no file name"),
        (lambda hf: index(hf).unlink(), "no weights: neither model.safetensors nor"),
        (lambda hf: (hf / "tokenizer.json").unlink(), "no tokenizer: neither tokenizer.json nor"),
    ],
)
def test_damaged_folders(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    folder = write_tiny_huggingface(tmp_path / "hf", shards=3)
    damage(folder)
    assert message in refusal(folder, tmp_path)


def test_a_folder_takes_no_target(tmp_path: Path) -> None:
    folder = write_tiny_huggingface(tmp_path / "hf")
    with pytest.raises(InvalidInputError, match="holds a whole model; leave target_source out"):
        convert(folder, tmp_path / "model", target_source=tmp_path / "t.gguf")


def test_names_of_both_formats_belong_together() -> None:
    assert huggingface_name("blk.1.attn_q.weight") == QUERY


def refusal(folder: Path, tmp_path: Path) -> str:
    """What a conversion says; it is one line, and nothing is left behind."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError) as caught:
        convert(folder, tmp_path / "model")
    assert sorted(tmp_path.iterdir()) == before
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def shard(folder: Path) -> Path:
    return folder / "model-00002-of-00003.safetensors"


def index(folder: Path) -> Path:
    return folder / "model.safetensors.index.json"


def cut(path: Path, end: int) -> None:
    path.write_bytes(path.read_bytes()[:end])


def swap_shards(folder: Path) -> None:
    document = json.loads(index(folder).read_text())
    first = next(iter(document["weight_map"]))
    document["weight_map"][first] = shard(folder).name
    write_json(index(folder), document)
