"""Tokenizers of Hugging Face folders: files as they are, special tokens, sampling, templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import processors

from specdec.convert.huggingface_tokenizer import HuggingfaceTokenizer
from specdec.errors import CheckpointError
from specdec.model_folder import TokenizerSection
from specdec.tokenizer import Tokenizer
from tests.tiny_gguf import CHAT_TEMPLATE, DEFAULT_VOCAB
from tests.tiny_huggingface import write_byte_level_tokenizer, write_json, write_sentencepiece

TEXTS = ["the quick brown fox jumps over the lazy dog", "漢字 and 😀"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a byte-level tokenizer."""
    path = tmp_path / "hf"
    path.mkdir()
    write_byte_level_tokenizer(path)
    return path


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    """A folder with SentencePiece's file alone."""
    path = tmp_path / "sp"
    path.mkdir()
    write_sentencepiece(path / "tokenizer.model", TEXTS, vocab=DEFAULT_VOCAB)
    return path


def section_of(folder: Path, vocab: int = DEFAULT_VOCAB, **config: Any) -> dict[str, Any]:
    out = folder.parent / "out"
    out.mkdir(exist_ok=True)
    return HuggingfaceTokenizer(folder, config, vocab).write(out)


def load(folder: Path, vocab: int = DEFAULT_VOCAB) -> Tokenizer:
    section = section_of(folder, vocab)
    backend = tokenizers.Tokenizer.from_file(str(folder.parent / "out" / section["file"]))
    stops = {"stop_ids": tuple(section["stop_ids"])}
    return Tokenizer(backend, TokenizerSection(**section | stops), vocab=vocab)


def change(path: Path, **values: Any) -> None:
    document = json.loads(path.read_text()) if path.is_file() else {}
    write_json(path, {k: v for k, v in (document | values).items() if v is not None})


def test_tokenizer_json_is_taken_as_it_is(folder: Path) -> None:
    tokenizer = load(folder)
    reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "the quick brown 漢字\n"
    assert tokenizer.encode(text) == reference.encode(text).ids
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (1, 2, False)
    assert not tokenizer.leading_space


def test_padding_and_truncation_are_dropped(folder: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_padding(length=50)
    backend.enable_truncation(3)
    backend.save(str(folder / "tokenizer.json"))
    assert 3 < len(load(folder).encode("a b c d e")) < 20


def test_ends_are_gathered_from_everywhere(folder: Path) -> None:
    write_json(folder / "generation_config.json", {"eos_token_id": [5, 2]})
    assert section_of(folder, eos_token_id=7)["stop_ids"] == [0, 2, 5, 7]
    write_json(folder / "generation_config.json", {"eos_token_id": 6})
    assert section_of(folder, eos_token_id=None)["stop_ids"] == [0, 2, 6]


@pytest.mark.parametrize(
    ("generation", "sampling"),
    [
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 4096},
            {"temperature": 0.6, "top_p": 0.9},
        ),
        ({"do_sample": True, "top_k": 20, "min_p": None}, {"top_k": 20}),
        ({"do_sample": False, "temperature": 0.6}, {}),
        ({"temperature": 0.6}, {}),
        (None, {}),
    ],
)
def test_recommended_sampling(
    generation: dict[str, Any] | None, sampling: dict[str, Any], folder: Path
) -> None:
    if generation is not None:
        write_json(folder / "generation_config.json", generation)
    assert HuggingfaceTokenizer(folder, {}, DEFAULT_VOCAB).sampling == sampling


def test_chat_templates(folder: Path) -> None:
    config = folder / "tokenizer_config.json"
    written = folder.parent / "out" / "chat_template.jinja"
    section_of(folder)
    assert written.read_text() == CHAT_TEMPLATE
    named = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    change(config, chat_template=named)
    section_of(folder)
    assert written.read_text() == "D"
    (folder / "chat_template.jinja").write_text("J")
    section_of(folder)
    assert written.read_text() == "J"
    (folder / "chat_template.jinja").unlink()
    change(config, chat_template=None)
    assert section_of(folder)["chat_template"] is None


def test_bos_as_the_file_adds_it(folder: Path) -> None:
    change(folder / "tokenizer_config.json", add_bos_token=None)
    assert not section_of(folder)["add_bos"]
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    backend.save(str(folder / "tokenizer.json"))
    assert section_of(folder)["add_bos"]
    change(folder / "tokenizer_config.json", add_bos_token=False)
    assert not section_of(folder)["add_bos"]


def test_names_of_special_tokens_from_the_older_file(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    assert (section_of(folder)["bos_id"], section_of(folder)["eos_id"]) == (None, None)
    write_json(folder / "special_tokens_map.json", {"bos_token": "<|im_start|>"})
    assert section_of(folder)["bos_id"] == 1


def test_sentencepiece_alone(pieces: Path) -> None:
    tokenizer = load(pieces)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (1, 2, True)
    assert tokenizer.leading_space
    assert tokenizer.decode(tokenizer.encode("the 龘")) == "the 龘"


def test_tokenizer_json_of_sentencepieces_kind(pieces: Path) -> None:
    """What a conversion writes is again a ``tokenizer.json`` to take as it is."""
    section = section_of(pieces)
    (pieces.parent / "out" / "tokenizer.json").rename(pieces / "tokenizer.json")
    (pieces / "tokenizer.model").unlink()
    write_json(pieces / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"})
    assert section_of(pieces) == section
    assert load(pieces).token_bytes(3 + 10) == b"\n"


def test_ids_beyond_the_tokenizer_have_no_text(folder: Path) -> None:
    tokenizer = load(folder, vocab=320)
    assert tokenizer.vocabulary_size == 320
    assert tokenizer.token_bytes(319) == b""
    assert tokenizer.vocabulary_sha256 == section_of(folder)["vocabulary_sha256"]


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("tokenizer.json", {"model": None}, "tokenizer.json: not a tokenizer"),
        ("tokenizer.json", {"decoder": {"type": "WordPiece", "prefix": "#", "cleanup": False}},
         "neither byte-level nor of SentencePiece's kind"),
        ("tokenizer_config.json", {"bos_token": "<bos>"}, "its bos_token is '<bos>', which is not"),
        ("tokenizer_config.json", {"eos_token": 7}, "its eos_token is 7, which is not"),
        ("tokenizer_config.json", {"chat_template": 7}, "its chat template is not a text"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(
    file: str, values: dict[str, Any], message: str, folder: Path
) -> None:
    change(folder / file, **values)
    assert message in refusal(folder)


def test_more_tokens_than_the_model_has(folder: Path) -> None:
    assert "the tokenizer has 300 tokens and the model 299" in refusal(folder, 299)


def test_files_that_are_no_json(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{")
    assert "generation_config.json: not valid JSON" in refusal(folder)


def refusal(folder: Path, vocab: int = DEFAULT_VOCAB) -> str:
    with pytest.raises(CheckpointError) as caught:
        HuggingfaceTokenizer(folder, {}, vocab)
    assert "\n" not in str(caught.value)
    return str(caught.value)
