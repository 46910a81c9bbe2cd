"""The tokenizer of a Hugging Face folder, its chat template and its recommended sampling.

``tokenizer.json`` is taken as it is; a folder that has only SentencePiece's ``tokenizer.model``
gets one that gives the same tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from specdec.convert.json_file import read_optional_json
from specdec.convert.sentencepiece_tokenizer import read_sentencepiece
from specdec.convert.tokenizer_files import (
    BYTE_LEVEL,
    CHAT_TEMPLATE_FILE,
    SENTENCEPIECE,
    TOKENIZER_FILE,
    write_tokenizer_files,
)
from specdec.errors import CheckpointError

SENTENCEPIECE_FILE = "tokenizer.model"

# Keys of generation_config.json that have the same meaning here.
_SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class HuggingfaceTokenizer:
    """Read and checked when made, so that a conversion fails before its long part."""

    def __init__(self, folder: Path, config: Mapping[str, Any], vocab: int) -> None:
        self._folder = folder
        self._options = read_optional_json(folder / "tokenizer_config.json")
        self._names = read_optional_json(folder / "special_tokens_map.json") | self._options
        generation = read_optional_json(folder / "generation_config.json")
        self.sampling = _recommended_sampling(generation)
        self._tokenizer, self._kind, self._leading_space = self._read()
        self._bos = self._special("bos_token")
        self._eos = self._special("eos_token")
        self._ends = [self._eos, *_ids(generation, "eos_token_id"), *_ids(config, "eos_token_id")]
        self._add_bos = self._find_add_bos()
        self._chat_template = self._find_chat_template()
        self._tokens = self._list_tokens(vocab)

    def write(self, folder: Path) -> dict[str, Any]:
        """Writes the files and returns the manifest's section."""
        return write_tokenizer_files(
            folder,
            self._tokenizer,
            kind=self._kind,
            leading_space=self._leading_space,
            tokens=self._tokens,
            bos=self._bos,
            eos=self._eos,
            ends=[token for token in self._ends if token in range(len(self._tokens))],
            add_bos=self._add_bos,
            chat_template=self._chat_template,
        )

    def _read(self) -> tuple[Tokenizer, str, bool]:
        """The tokenizer, its kind, and whether it puts a space in front of a text."""
        path = self._folder / TOKENIZER_FILE
        if path.is_file():
            try:
                tokenizer = Tokenizer.from_file(str(path))
            except Exception as error:  # the library raises no narrower type
                raise CheckpointError(f"{path}: not a tokenizer ({error}); fetch it again") from (
                    error
                )
            tokenizer.no_padding()
            tokenizer.no_truncation()
            kind = _kind_of(tokenizer, path)
            first = tokenizer.encode("a", add_special_tokens=False).tokens[:1]
            return tokenizer, kind, kind == SENTENCEPIECE and first[0].startswith("\u2581")
        path = self._folder / SENTENCEPIECE_FILE
        if path.is_file():
            tokenizer, pieces = read_sentencepiece(path)
            return tokenizer, SENTENCEPIECE, pieces.leading_space
        raise CheckpointError(
            f"{self._folder}: no tokenizer: neither {TOKENIZER_FILE} nor {SENTENCEPIECE_FILE}"
        )

    def _special(self, key: str) -> int | None:
        entry = self._names.get(key)
        name = entry.get("content") if isinstance(entry, dict) else entry
        if name is None and self._kind == SENTENCEPIECE and not self._names:
            name = {"bos_token": "<s>", "eos_token": "</s>"}[key]
        if name is None:
            return None
        token = self._tokenizer.token_to_id(name) if isinstance(name, str) else None
        if token is None:
            raise CheckpointError(
                f"{self._folder}: its {key} is {name!r}, which is not in the vocabulary"
            )
        return int(token)

    def _find_add_bos(self) -> bool:
        option = self._options.get("add_bos_token")
        if isinstance(option, bool):
            return option
        if self._tokenizer.post_processor is None:
            return self._kind == SENTENCEPIECE
        return self._bos in self._tokenizer.encode("a").ids[:1]

    def _find_chat_template(self) -> str | None:
        path = self._folder / CHAT_TEMPLATE_FILE
        if path.is_file():
            try:
                return path.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{path}: cannot be read: {error}") from error
        template = self._options.get("chat_template")
        if isinstance(template, list):  # several, each with a name
            named = [entry for entry in template if isinstance(entry, dict)]
            template = {e.get("name"): e.get("template") for e in named}.get("default")
        if template is not None and not isinstance(template, str):
            raise CheckpointError(f"{self._folder}: its chat template is not a text")
        return template

    def _list_tokens(self, vocab: int) -> list[str]:
        """The token of every id; ids that the embedding has beyond the tokenizer get none."""
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        tokens = [""] * (max(ids.values(), default=-1) + 1)
        for token, index in ids.items():
            tokens[index] = token
        if not tokens or len(tokens) > vocab:
            raise CheckpointError(
                f"{self._folder}: the tokenizer has {len(tokens)} tokens and the model {vocab}: "
                "the files do not belong together"
            )
        return tokens


def _kind_of(tokenizer: Tokenizer, path: Path) -> str:
    """How the names of tokens stand for bytes, from the steps that undo them."""
    decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
    steps = {step.get("type") for step in decoder.get("decoders", [decoder])}
    if "ByteLevel" in steps:
        return BYTE_LEVEL
    if steps & {"ByteFallback", "Metaspace"}:
        return SENTENCEPIECE
    raise CheckpointError(
        f"{path}: a tokenizer that is neither byte-level nor of SentencePiece's kind is not "
        "supported"
    )


def _recommended_sampling(generation: Mapping[str, Any]) -> dict[str, Any]:
    if generation.get("do_sample") is not True:
        return {}
    return {
        key: value
        for key in _SAMPLING_KEYS
        if isinstance(value := generation.get(key), int | float) and not isinstance(value, bool)
    }


def _ids(section: Mapping[str, Any], key: str) -> list[int]:
    value = section.get(key)
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, int) and not isinstance(item, bool)]
