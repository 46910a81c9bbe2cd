"""Conversations to tokens: renders a model's chat template and keeps messages from forging turns.

The template comes with a model that somebody else made, so it runs sandboxed. The text of a message
may come from anybody, so the names of control tokens in it stay text: they are marked before
rendering, are not recognised while marked, and lose the mark again before they are encoded.
Everything else about a message reaches the template unchanged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from specdec.errors import InvalidInputError
from specdec.tokenizer import Tokenizer

# Supplementary private use area B: no character of any script, none that a tokenizer knows.
_MARKS = range(0x100000, 0x10FFFE)


def encode_chat(
    tokenizer: Tokenizer,
    template: str | None,
    messages: Sequence[Mapping[str, str]],
    *,
    add_generation_prompt: bool = True,
) -> list[int]:
    """Token ids of a conversation, up to where the model's answer begins.

    Args:
        tokenizer: The model's tokenizer; its BOS is put in front if it asks for one and the
            template writes none.
        template: The model's Jinja chat template, or None if it has none.
        messages: ``{"role", "content"}`` each. Control tokens in them are taken as text.
        add_generation_prompt: Open the assistant's turn at the end.

    Raises:
        InvalidInputError: No template, malformed messages, or a template that refuses them.
    """
    if template is None:
        raise InvalidInputError(
            "the model has no chat template; pass raw=True to continue the prompt as plain text"
        )
    check_messages(messages)
    mark = _unused_mark(template, messages)
    guarded = [
        {key: _guard(value, tokenizer.control_pattern, mark) for key, value in message.items()}
        for message in messages
    ]
    text = render_chat(
        template,
        guarded,
        bos=tokenizer.token_text(tokenizer.bos_id),
        eos=tokenizer.token_text(tokenizer.eos_id),
        add_generation_prompt=add_generation_prompt,
    )
    ids: list[int] = []
    for piece, control in tokenizer.split_control(text):
        if control is None:
            ids += tokenizer.encode(piece.replace(mark, ""))
        else:
            ids.append(control)
    if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        ids.insert(0, tokenizer.bos_id)
    return ids


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    bos: str,
    eos: str,
    add_generation_prompt: bool = True,
) -> str:
    """Render a conversation as text, with the environment that chat templates expect.

    Raises:
        InvalidInputError: Malformed messages, or a template that is faulty or refuses them.
    """
    check_messages(messages)
    try:
        return _compile(template).render(
            messages=[dict(message) for message in messages],
            bos_token=bos,
            eos_token=eos,
            add_generation_prompt=add_generation_prompt,
        )
    except Exception as error:  # a template can raise whatever an expression can
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InvalidInputError(f"the model's chat template failed: {reason}") from error


def check_messages(messages: Sequence[Mapping[str, str]]) -> None:
    """Raise InvalidInputError unless each message has a role and a content, strings, not empty."""
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise InvalidInputError('a conversation is a list of {"role", "content"} messages')
    if not messages:
        raise InvalidInputError("the conversation is empty; pass at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InvalidInputError(f"message {index} is not a mapping with 'role' and 'content'")
        if unknown := sorted(set(map(str, message)) - {"role", "content"}):
            raise InvalidInputError(f"message {index} has unknown keys: {', '.join(unknown)}")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise InvalidInputError(f"message {index}: {key!r} is missing or not a string")
            if not message[key]:
                raise InvalidInputError(f"message {index}: {key!r} is empty")


def _unused_mark(template: str, messages: Sequence[Mapping[str, str]]) -> str:
    used = set(template).union(*(message["role"] + message["content"] for message in messages))
    for code in _MARKS:
        if chr(code) not in used:
            return chr(code)
    raise InvalidInputError("the conversation uses every private-use character")


def _guard(text: str, controls: re.Pattern[str], mark: str) -> str:
    # Breaking one name up can leave a shorter one inside it: go on until none is left.
    while controls.search(text):
        text = controls.sub(lambda match: match[0][0] + mark + match[0][1:], text)
    return text


@lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[jinja2.ext.loopcontrols, _GenerationBlock],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


class _GenerationBlock(jinja2.ext.Extension):
    """Templates made for training wrap the answers in this block; here it means nothing."""

    tags = {"generation"}  # noqa: RUF012  # the base class's own form

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes for HTML, which would put \u0027 into prompts.
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
