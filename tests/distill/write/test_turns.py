"""Where turns begin and end, found from the template alone."""

from __future__ import annotations

import pytest

from specdec.distill.write.turns import ChatTurns, common_prefix
from specdec.errors import InvalidInputError


def _text(turns: ChatTurns, tokens: list[int]) -> str:
    tokenizer = turns.tokenizer
    return "".join(tokenizer.token_bytes(t).decode() or tokenizer.token_text(t) for t in tokens)


def test_the_prefix_of_chatml_ends_where_the_user_begins(turns: ChatTurns) -> None:
    assert _text(turns, turns.prefix) == "<|im_start|>user\n"
    assert turns.closing_text == ""


def test_a_turn_that_ends_in_text_is_closed_by_that_text(llama_2_turns: ChatTurns) -> None:
    assert llama_2_turns.closing_text == "[/INST]"
    assert _text(llama_2_turns, llama_2_turns.prefix).startswith("<|im_start|>[INST]")


def test_an_opening_leaves_out_what_may_still_change(turns: ChatTurns) -> None:
    opened = turns.opened("the quick")
    assert _text(turns, opened) == "<|im_start|>user\nthe quick"
    whole = turns.answer_start([{"role": "user", "content": "the quick fox"}])
    assert common_prefix(opened, whole) == len(opened)


def test_a_second_turn_follows_the_answer(turns: ChatTurns) -> None:
    messages = [{"role": "user", "content": "dog"}, {"role": "assistant", "content": "fox"}]
    assert _text(turns, turns.user_start(messages)) == (
        "<|im_start|>user\ndog<|im_end|>\n<|im_start|>assistant\nfox<|im_end|>\n<|im_start|>user\n"
    )


def test_no_template_is_one_clear_error(turns: ChatTurns) -> None:
    with pytest.raises(InvalidInputError, match="the target has no chat template"):
        ChatTurns(turns.tokenizer, None)


def test_a_template_without_the_users_text_is_refused(turns: ChatTurns) -> None:
    with pytest.raises(InvalidInputError, match="leaves out what the user says"):
        ChatTurns(turns.tokenizer, "hello")
