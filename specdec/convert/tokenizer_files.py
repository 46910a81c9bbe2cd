"""What all kinds of checkpoints have in common when they write a tokenizer to a model folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from specdec.model_folder import TOKENIZER_KINDS

TOKENIZER_FILE = "tokenizer.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"

BYTE_LEVEL, SENTENCEPIECE = TOKENIZER_KINDS

# A turn or a text ends at one of these, whatever the checkpoint calls its end-of-sequence token.
END_TOKENS = frozenset(
    {
        "<|im_end|>",
        "<|endoftext|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<|end|>",
        "<end_of_turn>",
        "</s>",
    }
)


def write_tokenizer_files(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    kind: str,
    leading_space: bool,
    tokens: Sequence[str],
    bos: int | None,
    eos: int | None,
    ends: Iterable[int | None],
    add_bos: bool,
    chat_template: str | None,
) -> dict[str, Any]:
    """Writes the files and returns the manifest's ``"tokenizer"`` section.

    ``tokens`` is the vocabulary by id. ``ends`` are the tokens that the checkpoint says end a text;
    control tokens whose names say so are added. ``leading_space`` tells that the tokenizer puts a
    space of its own in front of a text.
    """
    stop_ids = {token for token in ends if token is not None}
    stop_ids |= {
        token
        for token, added in tokenizer.get_added_tokens_decoder().items()
        if added.special and added.content in END_TOKENS
    }
    tokenizer.save(str(folder / TOKENIZER_FILE), pretty=False)
    return {
        "file": TOKENIZER_FILE,
        "kind": kind,
        "leading_space": leading_space,
        "chat_template": None
        if chat_template is None
        else write_chat_template(chat_template, folder),
        "bos_id": bos,
        "eos_id": eos,
        "stop_ids": sorted(stop_ids),
        "add_bos": bos is not None and add_bos,
        "vocabulary_sha256": vocabulary_sha256(tokens),
    }


def write_chat_template(template: str, folder: Path) -> str:
    """Writes the template and returns the name of its file."""
    (folder / CHAT_TEMPLATE_FILE).write_text(template, encoding="utf-8", newline="")
    return CHAT_TEMPLATE_FILE


def vocabulary_sha256(tokens: Sequence[str]) -> str:
    """SHA-256 over the list id -> token: equal for two models exactly if they share ids."""
    digest = hashlib.sha256()
    for token in tokens:
        text = token.encode()
        digest.update(len(text).to_bytes(4, "little") + text)
    return digest.hexdigest()
