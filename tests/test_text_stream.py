"""TextStream: the same text and the same stop, however the tokens arrive."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from specdec.errors import InvalidInputError
from specdec.text_stream import TextStream


class Bytes:
    """A vocabulary in which each token is a piece of text given up front."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    def token_bytes(self, token: int, /) -> bytes:
        return self.pieces[token]


def stream(pieces: Sequence[bytes], stop: Sequence[str] = ()) -> TextStream:
    return TextStream(Bytes(*pieces), stop)


def run(text: TextStream, count: int, rng: random.Random | None = None) -> list[str]:
    """Push tokens 0..count-1, in random groups with ``rng``; what each step returned."""
    steps, start = [], 0
    while start < count:
        size = rng.randint(1, 5) if rng else 1
        steps.append(text.push(range(start, min(start + size, count))))
        start += size
    return [*steps, text.finish()]


def expected(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """What the text is cut to, by looking at every end position in turn."""
    for end in range(1, len(text) + 1):
        met = [len(s) for s in stop if text[:end].endswith(s)]
        if met:
            return text[: end - max(met)], True
    return text, False


def test_half_a_character_is_held_back() -> None:
    text = stream([b"a\xe6", b"\xbc", b"\xa2b"])
    assert [text.push([0]), text.push([1]), text.push([2])] == ["a", "", "漢b"]
    assert text.finish() == ""


def test_invalid_bytes_become_the_replacement_character() -> None:
    assert run(stream([b"a\xff", b"b\xe6\xbc"]), 2) == ["a\ufffd", "b", "\ufffd"]


def test_a_possible_stop_string_is_held_back() -> None:
    text = stream([b"one\n", b"\n", b"Us", b"ers", b"\nUser", b":", b"never"], ["\nUser:"])
    steps = [text.push([token]) for token in range(7)]
    assert steps == ["one", "\n", "", "\nUsers", "", "", ""]
    assert text.stopped
    assert text.tokens_used == 6
    assert text.finish() == ""
    assert text.push([0]) == ""


def test_what_was_held_back_is_flushed() -> None:
    text = stream([b"wait", b" STO"], ["STOP"])
    assert [text.push([0]), text.push([1]), text.finish()] == ["wait", " ", "STO"]
    assert not text.stopped
    assert text.tokens_used == 2


def test_the_stop_that_is_complete_first_counts_and_of_those_the_longest() -> None:
    assert run(stream([b"xabcd"], ["abcd", "bc"]), 1) == ["xa", ""]
    assert run(stream([b"xabc"], ["c", "abc"]), 1) == ["x", ""]


def test_a_stop_inside_of_a_group_leaves_the_rest_unused() -> None:
    text = stream([b"a", b"b", b"END", b"c"], ["END"])
    assert text.push([0, 1, 2, 3]) == "ab"
    assert text.tokens_used == 3


def test_tokens_without_text_count() -> None:
    text = stream([b"a", b"", b"b"])
    assert run(text, 3) == ["a", "", "b", ""]
    assert text.tokens_used == 3


def test_a_stop_may_contain_the_replacement_character_of_the_last_byte() -> None:
    text = stream([b"a\xe6"], ["\ufffd"])
    assert run(text, 1) == ["a", ""]
    assert text.stopped


def test_one_string_is_one_stop() -> None:
    assert run(stream([b"xab"], "ab"), 1) == ["x", ""]


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="a stop string is empty"):
        stream([], ["a", ""])


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes_in_any_split_decode_as_a_whole(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(50):
        if rng.random() < 0.5:
            data = "".join(rng.choice("aé漢😀\u0301\n") for _ in range(40)).encode()
        else:
            data = bytes(
                rng.choice(b"a\xe6\xbc\xa2\xf0\x9f\x98\xc3\xff\xed\xa0") for _ in range(60)
            )
        pieces = split(data, rng)
        steps = run(stream(pieces), len(pieces), rng)
        assert "".join(steps) == data.decode("utf-8", "replace")


@pytest.mark.parametrize("seed", range(20))
def test_any_stop_strings_in_any_split(seed: int) -> None:
    rng = random.Random(seed)
    stopped = 0
    for _ in range(100):
        whole = "".join(rng.choice("abé漢") for _ in range(rng.randint(0, 60)))
        stop = [
            "".join(rng.choice("abé漢") for _ in range(rng.randint(1, 6)))
            for _ in range(rng.randint(1, 4))
        ]
        pieces = split(whole.encode(), rng)
        text = stream(pieces, stop)
        steps = run(text, len(pieces), rng)
        cut, met = expected(whole, stop)
        assert "".join(steps) == cut
        assert text.stopped == met
        stopped += met
        if met:
            ended = b"".join(pieces[: text.tokens_used]).decode("utf-8", "ignore")
            before = b"".join(pieces[: text.tokens_used - 1]).decode("utf-8", "ignore")
            assert expected(ended, stop)[1]
            assert not expected(before, stop)[1]
    assert stopped > 10


def test_nothing_more_than_needed_is_held_back() -> None:
    rng = random.Random(3)
    for _ in range(200):
        whole = "".join(rng.choice("ab") for _ in range(20))
        stop = ["".join(rng.choice("ab") for _ in range(5))]
        text = stream([c.encode() for c in whole], stop)
        given = ""
        for token in range(len(whole)):
            given += text.push([token])
            if text.stopped:
                break
            seen = whole[: token + 1]
            held = max(n for n in range(5) if seen.endswith(stop[0][:n]) or n == 0)
            assert given == seen[: len(seen) - held]


def split(data: bytes, rng: random.Random) -> list[bytes]:
    pieces, start = [], 0
    while start < len(data):
        size = rng.randint(0, 4)
        pieces.append(data[start : start + size])
        start += size
    return pieces


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ((b"", b" a", b" b"), "a b"),
        ((b" ", b" a"), " a"),
        ((b"  a",), " a"),
        ((b"a", b" b"), "a b"),
        ((b"\xe6", b" ", b" "), "\ufffd  "),
        ((b" ",), ""),
    ],
)
def test_one_space_in_front_is_dropped_where_the_tokenizer_put_it(
    pieces: tuple[bytes, ...], text: str
) -> None:
    dropping = TextStream(Bytes(*pieces), ["\n"], drop_space=True)
    assert "".join(run(dropping, len(pieces))) == text
    assert "".join(run(stream(pieces), len(pieces))) == b"".join(pieces).decode("utf-8", "replace")
