"""The GGUF reader: what it reads is what ggml would, and damage gives one clear line."""

from __future__ import annotations

import contextlib
import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from specdec.convert import convert
from specdec.convert.gguf_checkpoint import GgufCheckpoint
from specdec.convert.gguf_reader import GgufFile
from specdec.errors import CheckpointError
from tests.tiny_gguf import tokenizer_fields, write_tiny_drafter, write_tiny_gguf

KINDS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
DOWN = "blk.1.ffn_down.weight"


def error_of(source: Path, target_source: Path | None = None) -> str:
    """The one line that opening ``source`` fails with."""
    with pytest.raises(CheckpointError) as caught:
        GgufCheckpoint(source, target_source)
    message = str(caught.value)
    assert "\n" not in message
    assert str(source) in message or str(target_source) in message
    return message


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_dequantise_as_ggml_does(tmp_path: Path, kind: str) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", quant=kind)
    expected = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}[DOWN]
    matrix = GgufFile(path).matrix(DOWN)
    assert matrix.shape == (64, 128)
    values = gguf.dequantize(expected.data, expected.tensor_type)
    np.testing.assert_allclose(matrix.dequantise(), values, rtol=1e-6, atol=1e-7)


def test_metadata_is_read_as_the_gguf_package_reads_it(tiny_gguf: Path) -> None:
    fields = GgufFile(tiny_gguf).fields
    reader = gguf.GGUFReader(tiny_gguf).fields
    expected = {name: f.contents() for name, f in reader.items() if not name.startswith("GGUF.")}
    assert dict(fields) == expected
    assert fields["tokenizer.ggml.tokens"] == tokenizer_fields()["tokenizer.ggml.tokens"]


def test_whatever_is_cut_off_is_noticed(tiny_gguf: Path, tmp_path: Path) -> None:
    whole = tiny_gguf.read_bytes()
    cut = tmp_path / "cut.gguf"
    draw = random.Random(0)
    for size in [0, 3, 4, 8, 23, len(whole) - 1, *draw.sample(range(len(whole)), 60)]:
        cut.write_bytes(whole[:size])
        message = error_of(cut)
        assert ("truncated" in message) == (size >= 4), message


def test_damaged_headers_never_give_another_error(tiny_gguf: Path, tmp_path: Path) -> None:
    whole = tiny_gguf.read_bytes()
    header_end = min(t.data_offset for t in gguf.GGUFReader(tiny_gguf).tensors)
    damaged = tmp_path / "damaged.gguf"
    draw = random.Random(1)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 1, 4, 16])):
            data[draw.randrange(header_end)] = draw.randrange(256)
        damaged.write_bytes(data)
        with contextlib.suppress(CheckpointError):
            GgufCheckpoint(damaged)


def test_files_that_are_not_gguf(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    assert "cannot be read" in error_of(path)
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    assert "not a GGUF file" in error_of(path)
    path.write_bytes(b"GGUF" + struct.pack(">I", 3) + bytes(100))
    assert "little-endian" in error_of(path)


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("llama.block_count", "metadata 'llama.block_count' is missing"),
        ("llama.attention.layer_norm_rms_epsilon", "layer_norm_rms_epsilon' is missing"),
        (DOWN, f"tensor '{DOWN}' is missing"),
        ("token_embd.weight", "tensor 'token_embd.weight' is missing"),
        ("output_norm.weight", "tensor 'output_norm.weight' is missing"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, missing: str, expected: str) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", without=[missing])
    assert expected in error_of(path)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("general.architecture", "mamba", "architecture 'mamba' is not supported"),
        ("llama.block_count", 3, "tensor 'blk.2."),
        ("llama.block_count", 1, "tensor(s) that 'llama' does not have, such as 'blk.1."),
        ("llama.block_count", "two", "expected a whole number"),
        ("llama.feed_forward_length", 256, "has shape (128, 64), expected (256, 64)"),
        ("llama.attention.head_count_kv", 3, "4 heads over 3 key/value heads"),
        ("llama.rope.dimension_count", 8, "of which 8 rotate"),
        ("llama.rope.scaling.type", "yarn", "'yarn' is not supported"),
    ],
)
def test_what_cannot_be_is_named(tmp_path: Path, key: str, value: object, expected: str) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", metadata={key: value})
    assert expected in error_of(path)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"ffn": 48}, "a ffn size of 48"),
        ({"context": 2**30}, "a context of 1073741824 tokens"),
    ],
)
def test_shapes_that_cannot_be_converted(
    tmp_path: Path, sizes: dict[str, int], expected: str
) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", quant="F16", **sizes)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=expected):
        convert(path, tmp_path / "model")
    assert list(tmp_path.iterdir()) == [path]


def test_a_drafter_takes_its_vocabulary_from_its_target(tmp_path: Path, tiny_gguf: Path) -> None:
    ids = [0, 2, 5, 299]
    drafter = write_tiny_drafter(tmp_path / "drafter.gguf", head_ids=ids)
    assert "'tiny'" in error_of(drafter)
    checkpoint = GgufCheckpoint(drafter, tiny_gguf)
    target = GgufFile(tiny_gguf).matrix("token_embd.weight").dequantise()
    assert checkpoint.is_drafter
    np.testing.assert_array_equal(checkpoint.matrix("embedding").dequantise(), target)
    np.testing.assert_array_equal(checkpoint.matrix("head").dequantise(), target[ids])
    for wrong in ([], [3, 3], [5, 2], [-1, 4], [1, 300]):
        drafter = write_tiny_drafter(tmp_path / "wrong.gguf", head_ids=wrong)
        assert "ascending ids" in error_of(drafter, tiny_gguf)
    other = write_tiny_gguf(tmp_path / "other.gguf", hidden=128)
    drafter = write_tiny_drafter(tmp_path / "drafter.gguf", head_ids=ids)
    assert "expected (300, 64)" in error_of(drafter, other)
