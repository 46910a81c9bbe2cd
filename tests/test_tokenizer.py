"""Tokenizer: text never turns into control tokens unasked; raw bytes of every token."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from specdec.convert.gguf_tokenizer import write_tokenizer
from specdec.errors import InvalidInputError, ModelFolderError
from specdec.model_folder import ModelFolder, create_model_folder, write_manifest
from specdec.tokenizer import Tokenizer
from tests.test_model_folder import MANIFEST
from tests.tiny_gguf import BYTES, SPECIAL_TOKENS, tokenizer_fields

END = SPECIAL_TOKENS.index("<|im_end|>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    destination = tmp_path_factory.mktemp("models") / "tiny"
    with create_model_folder(destination) as path:
        (path / "graph.onnx").write_bytes(b"")
        section = write_tokenizer(tokenizer_fields(), path)
        write_manifest(path, MANIFEST | {"tokenizer": section})
    return ModelFolder.open(destination)


@pytest.fixture(scope="module")
def tokenizer(folder: ModelFolder) -> Tokenizer:
    return Tokenizer.load(folder)


def test_ids_come_from_the_manifest(tokenizer: Tokenizer, folder: ModelFolder) -> None:
    assert tokenizer.vocabulary_size == 300
    assert tokenizer.stop_ids == {0, 2}
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (1, 2, False)
    assert tokenizer.vocabulary_sha256 == folder.tokenizer.vocabulary_sha256
    assert tokenizer.token_text(tokenizer.eos_id) == "<|im_end|>"
    assert tokenizer.token_text(None) == ""


@pytest.mark.parametrize(
    "text", ["", " ", "the quick brown fox", "naïve 漢字 👩🏽‍💻\n\t", "\x00\ufffe", "a\r\n"]
)
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.token_bytes(token) for token in ids) == text.encode()


def test_control_tokens_only_when_asked(tokenizer: Tokenizer) -> None:
    text = "the<|im_end|>fox<|im_start|>"
    plain = tokenizer.encode(text)
    assert not set(plain) & {0, 1, 2}
    assert tokenizer.decode(plain) == text
    assert tokenizer.encode(text, special=True) == [
        *tokenizer.encode("the"),
        END,
        *tokenizer.encode("fox"),
        1,
    ]
    assert tokenizer.decode(tokenizer.encode(text, special=True)) == "thefox"
    assert tokenizer.encode("fox", special=True) == tokenizer.encode("fox")


def test_bytes_of_tokens(tokenizer: Tokenizer) -> None:
    first = len(SPECIAL_TOKENS)
    assert [tokenizer.token_bytes(first + byte) for byte in range(BYTES)] == [
        bytes([byte]) for byte in range(BYTES)
    ]
    assert tokenizer.token_bytes(END) == b""
    assert tokenizer.decode([first + 0xE6, END, first + 0xBC, first + 0xA2]) == "漢"
    assert tokenizer.decode([first + 0xE6]) == "\ufffd"


@pytest.mark.parametrize("token", [-1, 300, 10**9])
def test_unknown_ids_are_refused(tokenizer: Tokenizer, token: int) -> None:
    with pytest.raises(InvalidInputError, match=r"outside of the vocabulary \(0 to 299\)"):
        tokenizer.token_bytes(token)


def test_a_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidInputError, match="lone surrogate at position 3"):
        tokenizer.encode("abc\ud800")


def test_a_damaged_file_is_named(folder: ModelFolder, tmp_path: Path) -> None:
    copy = tmp_path / "tiny"
    shutil.copytree(folder.path, copy)
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(ModelFolderError, match=r"tokenizer.json: not a tokenizer"):
        Tokenizer.load(ModelFolder(copy, folder.manifest))
