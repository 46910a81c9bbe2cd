"""What a prompt may be, and its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specdec.checks import is_whole, shown
from specdec.errors import InvalidInputError
from specdec.model import Model

Prompt = str | Sequence[Mapping[str, str]] | Sequence[int]

_FORMS = "a prompt is a str, a list of messages or a list of token ids"


def prompt_tokens(target: Model, prompt: Prompt, *, raw: bool) -> list[int]:
    """The prompt's token ids: as ``Generator.stream`` takes it, for ``target``.

    Raises:
        InvalidInputError: It is empty, of no form that a prompt may have, or has ids that the
            target does not.
    """
    tokenizer = target.tokenizer
    if isinstance(prompt, str):
        if not prompt:
            raise InvalidInputError("the prompt is empty")
        if raw:
            tokens = tokenizer.encode(prompt)
            if tokenizer.add_bos and tokenizer.bos_id is not None:
                tokens.insert(0, tokenizer.bos_id)
            return tokens
        return _encode_chat(target, [{"role": "user", "content": prompt}])
    if isinstance(prompt, (bytes, Mapping)) or not hasattr(prompt, "__getitem__"):
        raise InvalidInputError(f"the prompt is {shown(prompt)}; {_FORMS}")
    if len(prompt) == 0:
        raise InvalidInputError("the prompt is empty")
    if all(isinstance(item, Mapping) for item in prompt):
        return _encode_chat(target, prompt)  # type: ignore[arg-type]
    vocabulary = target.config.vocab
    for index, token in enumerate(prompt):
        if not is_whole(token):
            raise InvalidInputError(f"prompt item {index} is {shown(token)}; {_FORMS}")
        if not 0 <= int(token) < vocabulary:
            raise InvalidInputError(
                f"prompt token {index} is {token}, outside the vocabulary of {vocabulary}"
            )
    return [int(token) for token in prompt]  # type: ignore[arg-type]


def _encode_chat(target: Model, messages: Sequence[Mapping[str, str]]) -> list[int]:
    from specdec.chat import encode_chat  # its template engine is not needed for other prompts

    return encode_chat(target.tokenizer, target.chat_template, messages)
