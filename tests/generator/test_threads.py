"""Streams, generators and threads."""

from __future__ import annotations

import subprocess
import sys
import threading
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from specdec import Chunk, Generator, GeneratorBusyError, Model, SamplingParams
from tests.generator.checks import GREEDY, PROMPT, SAMPLED, check_unharmed, close, fresh_text


def test_one_stream_at_a_time(target: Model, generator: Generator) -> None:
    expected = fresh_text(target, PROMPT, GREEDY).tokens
    stream = generator.stream(PROMPT, GREEDY)
    chunks = [next(stream)]
    with pytest.raises(GeneratorBusyError, match="writing a stream already"):
        generator.generate("another", GREEDY)
    errors: list[BaseException] = []

    def other() -> None:
        try:
            generator.generate("another", GREEDY)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert [type(error) for error in errors] == [GeneratorBusyError]
    chunks += stream
    assert sum((chunk.tokens for chunk in chunks), ()) == expected
    check_unharmed(generator, target)


def test_generators_share_models_across_threads(target: Model, drafter: Model) -> None:
    jobs: list[tuple[Any, SamplingParams, Model | None]] = [
        (prompt, params, draft)
        for prompt in (PROMPT, "over the lazy dog")
        for params in (GREEDY, SAMPLED)
        for draft in (target, drafter)
    ]
    alone = [Generator(target, draft).generate(p, params).tokens for p, params, draft in jobs]
    # Block acceptance draws by the round, and automatic draft lengths depend on time.
    fixed = [Generator(target, d, draft_length=3).generate(p, s).tokens for p, s, d in jobs]
    found: dict[int, tuple[int, ...]] = {}
    start = threading.Barrier(len(jobs))

    def work(i: int) -> None:
        prompt, params, draft = jobs[i]
        generator = Generator(target, draft, draft_length=3)
        start.wait()
        for _ in range(3):
            found[i] = generator.generate(prompt, params).tokens

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(jobs))] == fixed
    greedy = [i for i, (_, params, _) in enumerate(jobs) if params is GREEDY]
    assert [alone[i] for i in greedy] == [fixed[i] for i in greedy]


def test_a_stream_may_wander_between_threads(target: Model, generator: Generator) -> None:
    stream = generator.stream(PROMPT, GREEDY)
    chunks: list[Chunk] = []
    for _ in range(100):
        thread = threading.Thread(target=lambda: chunks.extend(islice(stream, 1)))
        thread.start()
        thread.join()
        if chunks[-1].finish_reason:
            break
    close(stream)
    assert sum((c.tokens for c in chunks), ()) == fresh_text(target, PROMPT, GREEDY).tokens
    check_unharmed(generator, target)


DAEMON = """
import atexit, sys, threading, time

def late():
    print(len(generator.generate("hi", max_tokens=5, ignore_eos=True).tokens))

atexit.register(late)  # runs after all that specdec registers
from specdec import Generator, Model

model = Model.load(sys.argv[1])
generator = Generator(model)
ready = threading.Event()

def work():
    own = Generator(model, model)
    while True:
        own.generate("hi", temperature=0, max_tokens=50, ignore_eos=True)
        ready.set()

threading.Thread(target=work, daemon=True).start()
ready.wait()
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize("wait", ["0", "0.001", "0.003", "0.01"])
def test_a_daemon_thread_at_exit(tiny_target: Path, wait: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DAEMON, str(tiny_target), wait],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "5\n", "")
