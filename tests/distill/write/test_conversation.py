"""A conversation, driven by chosen tokens instead of a target."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from specdec.distill.write import WriteOptions
from specdec.distill.write.conversation import ANSWER, TEMPLATE, USER, Conversation, Prompt, spans
from specdec.distill.write.openings import KINDS
from specdec.distill.write.turns import ChatTurns

ONE_TURN = WriteOptions(openings=0, second_turn=0)
OPENINGS = [opening for kind in KINDS.values() for opening in kind.openings]
TWO_TURNS = replace(ONE_TURN, second_turn=1)


def _start(turns: ChatTurns, options: WriteOptions, prompt: Prompt | None = None) -> Conversation:
    return Conversation(turns, options, np.random.default_rng(0), prompt)


def _say(conversation: Conversation, turns: ChatTurns, text: str) -> None:
    for token in turns.tokenizer.encode(text, special=True):
        if conversation.finished:
            break
        conversation.fed = len(conversation.tokens)  # as after a step
        conversation.take(token)


def _shown(conversation: Conversation, turns: ChatTurns) -> str:
    return "".join(
        turns.tokenizer.token_bytes(t).decode() or turns.tokenizer.token_text(t)
        for t in conversation.tokens
    )


def test_one_turn(turns: ChatTurns) -> None:
    conversation = _start(turns, ONE_TURN)
    _say(conversation, turns, "the fox<|im_end|>")
    assert not conversation.finished
    _say(conversation, turns, "lazy dog<|im_end|>")
    assert conversation.finished
    assert conversation.problem is None
    assert _shown(conversation, turns) == (
        "<|im_start|>user\nthe fox<|im_end|>\n<|im_start|>assistant\nlazy dog<|im_end|>"
    )
    written = [
        (role, "".join(turns.tokenizer.token_text(t) for t in tokens))
        for role, tokens in spans(conversation.tokens, conversation.roles)
    ]
    assert [role for role, _ in written] == [USER, ANSWER]
    assert written[0][1].endswith("fox<|im_end|>")
    assert written[1][1].endswith("dog<|im_end|>")


def test_an_opening_goes_on_with_a_word_of_the_vocabulary(turns: ChatTurns) -> None:
    words = {turns.tokenizer.token_bytes(int(token)).decode() for token in turns.words}
    assert words  # of the tiny tokenizer
    assert all(word[0] == " " and word[1:].isalpha() and len(word) > 4 for word in words)
    seen = 0
    for seed in range(60):
        options = replace(ONE_TURN, openings=1, topics=1)
        conversation = Conversation(turns, options, np.random.default_rng(seed))
        text = _shown(conversation, turns)[len("<|im_start|>user\n") :]
        opening = next((o for o in sorted(OPENINGS, key=len)[::-1] if text.startswith(o)), None)
        if opening is None or not opening[-1].isalpha():
            continue
        assert text[len(opening) :] in words
        assert conversation.roles == [TEMPLATE] * len(conversation.tokens)
        plain = Conversation(turns, replace(options, topics=0), np.random.default_rng(seed))
        assert _shown(plain, turns).endswith(opening)
        seen += 1
    assert seen > 20


def test_what_the_template_writes_is_read_before_the_next_choice(turns: ChatTurns) -> None:
    conversation = _start(turns, ONE_TURN)
    _say(conversation, turns, "the")
    before = conversation.fed
    _say(conversation, turns, "<|im_end|>")
    assert conversation.fed == before + 1
    assert not conversation.is_sampled


def test_two_turns(turns: ChatTurns) -> None:
    conversation = _start(turns, TWO_TURNS)
    for text in ("the<|im_end|>", "fox<|im_end|>", "dog<|im_end|>"):
        _say(conversation, turns, text)
        assert not conversation.finished
    _say(conversation, turns, "end<|im_end|>")
    assert conversation.finished
    roles = [role for role, _ in spans(conversation.tokens, conversation.roles)]
    assert roles == [USER, ANSWER, USER, ANSWER]


def test_a_turn_that_ends_in_text(llama_2_turns: ChatTurns) -> None:
    conversation = _start(llama_2_turns, TWO_TURNS)
    _say(conversation, llama_2_turns, "the fox [/INST]")
    expected = llama_2_turns.answer_start([{"role": "user", "content": "the fox"}])
    assert conversation.tokens == expected
    _say(conversation, llama_2_turns, " dog<|im_end|>")
    assert _shown(conversation, llama_2_turns).startswith(
        "<|im_start|>[INST] the fox [/INST] dog <|im_end|><|im_start|>[INST]"
    )


def test_a_closing_text_as_the_template_writes_it_is_kept(llama_2_turns: ChatTurns) -> None:
    conversation = _start(llama_2_turns, ONE_TURN)
    whole = llama_2_turns.answer_start([{"role": "user", "content": "Xy"}])
    start = len(llama_2_turns.prefix)
    assert whole[:start] == conversation.tokens
    for token in whole[start:]:
        conversation.fed = len(conversation.tokens) - 1
        conversation.take(token)
    assert conversation.tokens == whole
    assert conversation.fed < len(whole)
    assert set(conversation.roles[start:]) == {USER}


def test_the_users_turn_is_cut_at_its_limit(turns: ChatTurns) -> None:
    conversation = _start(turns, replace(ONE_TURN, user_tokens=3))
    _say(conversation, turns, "xyz")
    assert _shown(conversation, turns).endswith("user\nxyz<|im_end|>\n<|im_start|>assistant\n")
    assert conversation.roles[-1] == TEMPLATE


def test_a_prompt_of_the_user_is_answered(turns: ChatTurns) -> None:
    conversation = _start(turns, ONE_TURN, Prompt("own", "the dog"))
    assert set(conversation.roles) == {TEMPLATE}
    _say(conversation, turns, "thinks<|im_end|>")
    assert conversation.finished
    assert conversation.kind == "own"


def test_the_length_is_never_passed(turns: ChatTurns) -> None:
    conversation = _start(turns, replace(ONE_TURN, length=24), Prompt("own", "z"))
    while not conversation.finished:
        _say(conversation, turns, "a")
    assert len(conversation.tokens) == len(conversation.roles) == 24
    assert conversation.problem is None


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (["<|im_end|>"], "empty user's turn"),
        (["  <|im_end|>"], "empty user's turn"),
        (["the<|im_end|>", "<|im_end|>"], "empty answer"),
        (["the<|im_end|>", "a<|im_start|>"], "control token in the answer"),
        (["the<|im_end|>", "xy" * 30], "endless loop"),
    ],
)
def test_why_a_conversation_is_dropped(turns: ChatTurns, said: list[str], problem: str) -> None:
    conversation = _start(turns, ONE_TURN)
    for text in said:
        assert not conversation.finished
        _say(conversation, turns, text)
    assert conversation.finished
    assert conversation.problem == problem


def test_a_prompt_without_room_for_an_answer(turns: ChatTurns) -> None:
    conversation = _start(turns, replace(ONE_TURN, length=16), Prompt("own", "z" * 40))
    assert conversation.finished
    assert conversation.problem == "no room for an answer"
