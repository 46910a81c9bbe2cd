"""Tokenizers from GGUF metadata: token-exact, and clear about what they cannot read."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import pre_tokenizers

from specdec.convert.gguf_tokenizer import PRE_TOKENIZERS, vocabulary_sha256, write_tokenizer
from specdec.errors import CheckpointError
from specdec.model_folder import TokenizerSection
from specdec.tokenizer import Tokenizer
from tests.tiny_gguf import tokenizer_fields

# A folder with ggml-vocab-*.gguf and their .inp / .out, as in llama.cpp's source (models/).
VECTORS = os.environ.get("SPECDEC_TOKENIZER_VECTORS")


def build(fields: dict[str, Any], folder: Path) -> Tokenizer:
    section = write_tokenizer(fields, folder)
    backend = tokenizers.Tokenizer.from_file(str(folder / section["file"]))
    return Tokenizer(
        backend, TokenizerSection(**section | {"stop_ids": tuple(section["stop_ids"])})
    )


def random_text(rng: random.Random, length: int) -> str:
    alphabets = (
        " \t\n\r\u00a0\u3000",
        "abcXYZ'stremvl",
        "0123456789½²٣Ⅷ",
        ".,!?-_<>|~$^+`\"'",
        "äßéñΩжיةहिあ漢字가",
        "😀👩\u200d👩🏽🇩🇪\u0301\u200b\ufeff\U0010fffd",
    )
    return "".join(rng.choice(rng.choice(alphabets)) for _ in range(length))


def test_section_and_files(tmp_path: Path) -> None:
    fields = tokenizer_fields()
    section = write_tokenizer(fields, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "chat_template.jinja",
        "tokenizer.json",
    ]
    assert section == {
        "file": "tokenizer.json",
        "kind": "byte-level",
        "leading_space": False,
        "chat_template": "chat_template.jinja",
        "bos_id": 1,
        "eos_id": 2,
        "stop_ids": [0, 2],
        "add_bos": False,
        "vocabulary_sha256": vocabulary_sha256(fields["tokenizer.ggml.tokens"]),
    }
    template = (tmp_path / "chat_template.jinja").read_bytes().decode()
    assert template == fields["tokenizer.chat_template"]


def test_without_a_chat_template_or_eos(tmp_path: Path) -> None:
    fields = tokenizer_fields()
    for key in ("tokenizer.chat_template", "tokenizer.ggml.eos_token_id"):
        del fields[key]
    section = write_tokenizer(fields, tmp_path)
    assert section["chat_template"] is None
    assert section["eos_id"] is None
    assert section["stop_ids"] == [0, 2]  # by name
    assert not (tmp_path / "chat_template.jinja").exists()


def test_ids_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    fields = tokenizer_fields()
    build(fields, tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokens = fields["tokenizer.ggml.tokens"]
    assert [backend.id_to_token(index) for index in range(len(tokens))] == tokens
    assert backend.get_vocab_size() == len(tokens)


def test_add_bos_follows_the_checkpoint_then_the_pre_tokenizer(tmp_path: Path) -> None:
    fields = tokenizer_fields()
    fields["tokenizer.ggml.pre"] = "llama-bpe"
    assert write_tokenizer(fields, tmp_path)["add_bos"] is False
    del fields["tokenizer.ggml.add_bos_token"]
    assert write_tokenizer(fields, tmp_path)["add_bos"] is True
    del fields["tokenizer.ggml.bos_token_id"]
    assert write_tokenizer(fields, tmp_path)["add_bos"] is False


def test_vocabulary_hash_depends_on_every_boundary() -> None:
    hashes = {vocabulary_sha256(v) for v in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"])}
    assert len(hashes) == 4


@pytest.mark.parametrize(("pre", "digits"), [("gpt-2", False), ("smollm", True)])
def test_words_are_cut_as_the_reference_steps_cut_them(
    pre: str, digits: bool, tmp_path: Path
) -> None:
    """The library has the GPT-2 rule and the single digits built in: both ways must agree."""
    build(tokenizer_fields() | {"tokenizer.ggml.pre": pre}, tmp_path)
    ours = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).pre_tokenizer
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    single = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    reference = pre_tokenizers.Sequence([*single, byte_level])
    rng = random.Random(0)
    for _ in range(2000):
        text = random_text(rng, rng.randint(1, 40))
        assert ours.pre_tokenize_str(text) == reference.pre_tokenize_str(text)


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "it's 1234  ok\n\n", ["it", "'s", "Ġ1234", "Ġ", "Ġok", "ĊĊ"]),
        ("smollm", "a 123b", ["a", "Ġ", "1", "2", "3", "b"]),
        ("llama-bpe", "IT'S 12345!\n\nx", ["IT", "'S", "Ġ", "123", "45", "!ĊĊ", "x"]),
        ("qwen2", "IT'S 123 \n x", ["IT", "'S", "Ġ", "1", "2", "3", "ĠĊ", "Ġx"]),
        ("default", "a-b 12345", ["a", "-", "b", "Ġ", "123", "45"]),
    ],
)
def test_words(pre: str, text: str, words: list[str], tmp_path: Path) -> None:
    build(tokenizer_fields() | {"tokenizer.ggml.pre": pre}, tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)] == words


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_any_text_comes_back(pre: str, tmp_path: Path) -> None:
    tokenizer = build(tokenizer_fields() | {"tokenizer.ggml.pre": pre}, tmp_path)
    rng = random.Random(1)
    for _ in range(200):
        text = random_text(rng, rng.randint(0, 60))
        if PRE_TOKENIZERS[pre].compose:
            continue
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_user_defined_tokens_are_text_and_control_tokens_are_not(tmp_path: Path) -> None:
    fields = tokenizer_fields()
    fields["tokenizer.ggml.tokens"] = [
        *fields["tokenizer.ggml.tokens"],
        "<think>",
        "<|sent as user-defined|>",
    ]
    fields["tokenizer.ggml.token_type"] = [*fields["tokenizer.ggml.token_type"], 4, 4]
    tokenizer = build(fields, tmp_path)
    think, control = len(fields["tokenizer.ggml.tokens"]) - 2, tokenizer.vocabulary_size - 1
    assert tokenizer.encode("<think>") == [think]
    assert tokenizer.token_bytes(think) == b"<think>"
    assert control not in tokenizer.encode("<|sent as user-defined|>")
    assert tokenizer.encode("<|sent as user-defined|>", special=True) == [control]
    assert tokenizer.token_bytes(control) == b""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model is 'bert'; supported: 'gpt2'"),
        ({"tokenizer.ggml.pre": "klingon"}, "tokenizer.ggml.pre is 'klingon'; supported: default"),
        ({"tokenizer.ggml.model": None}, "no tokenizer.ggml.model"),
        ({"tokenizer.ggml.pre": None}, "no tokenizer.ggml.pre"),
        ({"tokenizer.ggml.tokens": None}, "no tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.merges": None}, "no tokenizer.ggml.merges"),
        ({"tokenizer.ggml.token_type": None}, "no tokenizer.ggml.token_type"),
        ({"tokenizer.ggml.token_type": [1]}, "has 1 entries for 300 tokens"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "has 'a' twice"),
        ({"tokenizer.ggml.tokens": [1]}, "is not a list of strings"),
        ({"tokenizer.ggml.merges": ["nowhere near"]}, "merges does not fit the tokens"),
        ({"tokenizer.ggml.eos_token_id": 300}, "eos_token_id is 300, but there are 300 tokens"),
    ],
)
def test_what_cannot_be_read_is_named(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as caught:
        write_tokenizer(tokenizer_fields() | changes, tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def sentencepiece_fields() -> dict[str, Any]:
    """A vocabulary of SentencePiece's kind, as GGUF holds it."""
    pieces = ["\u2581", "a", "b", "\u2581a", "ab", "\u2581ab", "\u2581b"]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [
            *("<unk>", "<s>", "</s>"),
            *(f"<0x{byte:02X}>" for byte in range(256)),
            *pieces,
        ],
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(pieces))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def test_sentencepiece_in_gguf(tmp_path: Path) -> None:
    tokenizer = build(sentencepiece_fields(), tmp_path)
    names = [tokenizer.token_text(token) for token in tokenizer.encode("ab b<s>\n")]
    assert names == ["\u2581ab", "\u2581b", "<0x3C>", "<0x73>", "<0x3E>", "<0x0A>"]
    assert tokenizer.decode(tokenizer.encode("ab b<s>\n")) == "ab b<s>\n"
    assert (tokenizer.add_bos, tokenizer.leading_space) == (True, True)
    assert tokenizer.stop_ids == {2}


def test_sentencepiece_in_gguf_without_the_space_in_front(tmp_path: Path) -> None:
    fields = sentencepiece_fields() | {
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_bos_token": False,
    }
    tokenizer = build(fields, tmp_path)
    assert [tokenizer.token_text(token) for token in tokenizer.encode("ab a")] == [
        "ab",
        "\u2581a",
    ]
    assert (tokenizer.add_bos, tokenizer.leading_space) == (False, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.scores": None}, "no tokenizer.ggml.scores"),
        ({"tokenizer.ggml.scores": [0.0]}, "266 pieces with 1 scores and 266 types"),
        ({"tokenizer.ggml.token_type": [1] * 266}, "no piece for each of the 256 bytes"),
    ],
)
def test_sentencepiece_in_gguf_that_cannot_be_read(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as caught:
        write_tokenizer(sentencepiece_fields() | changes, tmp_path)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.skipif(VECTORS is None, reason="SPECDEC_TOKENIZER_VECTORS is not set")
@pytest.mark.parametrize(
    ("vocabulary", "pre"),
    [
        ("gpt-2", "gpt-2"),
        ("mpt", "mpt"),
        ("starcoder", "starcoder"),
        ("refact", "refact"),
        ("command-r", "smollm"),  # the same rule under another name
        ("llama-bpe", "llama-bpe"),
        ("qwen2", "qwen2"),
        ("llama-spm", "default"),  # SentencePiece: the name of a rule means nothing
        ("phi-3", "default"),
    ],
)
def test_reference_vectors(vocabulary: str, pre: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = Path(str(VECTORS)) / f"ggml-vocab-{vocabulary}.gguf"
    reader = gguf.GGUFReader(path)
    fields = {
        key: field.contents()
        for key, field in reader.fields.items()
        if key.startswith("tokenizer.")
    }
    tokenizer = build(fields | {"tokenizer.ggml.pre": pre}, tmp_path)
    texts = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    expected = Path(f"{path}.out").read_text().split("\n")
    assert len(texts) > 40
    for text, ids in zip(texts, expected[: len(texts)], strict=True):
        assert tokenizer.encode(text) == [int(token) for token in ids.split()], repr(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
