"""A tiny target that writes, and the fakes that stand in for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from specdec.convert.source import open_source
from specdec.distill.write import WriteOptions
from specdec.distill.write.text import open_turns
from specdec.distill.write.turns import ChatTurns

LLAMA_2 = (
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)


@pytest.fixture(scope="session")
def turns(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> ChatTurns:
    """The tiny target's ChatML turns."""
    return open_turns(open_source(tiny_gguf, None), WriteOptions(), tmp_path_factory.mktemp("t"))


@pytest.fixture(scope="session")
def llama_2_turns(turns: ChatTurns) -> ChatTurns:
    """The same tokenizer with a template whose user's turns end in text."""
    return ChatTurns(turns.tokenizer, LLAMA_2)
