"""Interruptions: afterwards the caches hold the committed prefix, and texts are as ever."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest

import specdec.session
from specdec import Generator, Model, ModelRunError
from tests.generator.checks import GREEDY, PROMPT, check_unharmed, close, fresh_text, run_before


@pytest.mark.parametrize("after", [1, 2, 5])
def test_closing_a_stream(target: Model, generator: Generator, after: int) -> None:
    stream = generator.stream(PROMPT, GREEDY)
    taken = list(islice(stream, after))
    close(stream)
    tokens = tuple(generator._engine.tokens[generator.stats.prompt_tokens :])
    emitted = tuple(token for chunk in taken for token in chunk.tokens)
    assert tokens[: len(emitted)] == emitted
    check_unharmed(generator, target)


def test_closing_a_stream_that_was_never_begun(target: Model, generator: Generator) -> None:
    close(generator.stream(PROMPT, GREEDY))
    check_unharmed(generator, target)


def test_leaving_the_loop(target: Model, generator: Generator) -> None:
    for _ in generator.stream(PROMPT, GREEDY):
        break
    check_unharmed(generator, target)


def test_an_error_of_the_consumer(target: Model, generator: Generator) -> None:
    def consume() -> None:
        for chunk in generator.stream(PROMPT, GREEDY):
            len(chunk) / 0

    with pytest.raises(ZeroDivisionError):
        consume()
    check_unharmed(generator, target)


def test_cancelling_from_the_loop(target: Model, generator: Generator) -> None:
    chunks = []
    for chunk in generator.stream(PROMPT, GREEDY):
        chunks.append(chunk)
        if len(chunks) == 2:
            generator.cancel()
    assert len(chunks) == 3
    assert chunks[-1].finish_reason == "cancelled"
    check_unharmed(generator, target)


def test_cancelling_without_a_stream_does_nothing(target: Model, generator: Generator) -> None:
    generator.cancel()
    assert generator.generate(PROMPT, GREEDY).finish_reason == "length"
    check_unharmed(generator, target)


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 6, 9])
def test_cancelling_from_another_thread(
    target: Model, generator: Generator, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    def cancel(i: int) -> None:
        if i == step:
            thread = threading.Thread(target=generator.cancel)
            thread.start()
            thread.join()

    with monkeypatch.context() as patch:
        count = run_before(patch, cancel)
        result = generator.generate(PROMPT, GREEDY)
        assert result.finish_reason == "cancelled"
        assert count[0] <= step + 5  # at most the rest of its round
        whole = fresh_text(target, PROMPT, GREEDY)
    assert result.tokens == whole.tokens[: len(result.tokens)]
    check_unharmed(generator, target)


def test_cancelling_during_a_long_prefill(target: Model, generator: Generator) -> None:
    prompt = [5 + i % 200 for i in range(250)]
    with pytest.MonkeyPatch.context() as patch:
        count = run_before(patch, lambda i: generator.cancel() if i == 1 else None)
        result = generator.generate(prompt, GREEDY)
        assert count[0] == 1
    assert result.finish_reason == "cancelled"
    assert result.tokens == ()
    expected = Generator(target).generate(prompt, GREEDY).tokens
    assert generator.generate(prompt, GREEDY).tokens == expected


@pytest.mark.skipif(sys.platform == "win32", reason="raise_signal ends the process there")
@pytest.mark.parametrize("step", [1, 2, 3, 4, 6, 7, 8, 12])
def test_ctrl_c_inside_a_step(target: Model, generator: Generator, step: int) -> None:
    def interrupt(i: int) -> None:
        if i == step:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        run_before(patch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            generator.generate(PROMPT, GREEDY)
    check_unharmed(generator, target)


@pytest.mark.parametrize("step", [1, 2, 3, 4, 6, 7, 8, 12])
def test_a_failing_step(target: Model, generator: Generator, step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:

        def fail(i: int) -> None:
            if i == step:
                raise RuntimeError("no memory\nat line 2")

        original = specdec.session._Runner._bind
        count = [0]

        def bind(self: Any, width: int, first: int) -> Callable[[], None]:
            run = original(self, width, first)

            def counted() -> None:
                count[0] += 1
                fail(count[0])
                run()

            return counted

        patch.setattr(specdec.session._Runner, "_bind", bind)
        with pytest.raises(ModelRunError) as caught:
            generator.generate(PROMPT, GREEDY)
        assert "no memory" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value.__cause__, RuntimeError)
        check_unharmed(generator, target)
