"""The face: streams, results, statistics, interruptions, threads and conversations."""

from __future__ import annotations

import copy
import gc
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

import specdec.session
from specdec import (
    Chunk,
    Generator,
    GeneratorBusyError,
    InvalidInputError,
    Model,
    ModelRunError,
    Ngram,
    Result,
    SamplingParams,
    Stats,
)
from specdec._core import Decoder

END = 2  # the tiny tokenizer's end of a turn
GREEDY = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1, seed=11, max_tokens=32, ignore_eos=True)
PROMPT = "the quick brown fox"


@pytest.fixture(scope="module")
def target(tiny_target: Path) -> Model:
    return Model.load(tiny_target)


@pytest.fixture(scope="module")
def drafter(tiny_drafter: Path) -> Model:
    return Model.load(tiny_drafter)


DECODERS: weakref.WeakKeyDictionary[Generator, list[Decoder]] = weakref.WeakKeyDictionary()


@pytest.fixture
def generator(target: Model) -> Generator:
    """Drafts with the target itself, so that most drafts are accepted."""
    decoders: list[Decoder] = []
    original = Model.new_decoder

    def new_decoder(self: Model, **options: Any) -> Decoder:
        decoders.append(original(self, **options))
        return decoders[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "new_decoder", new_decoder)
        generator = Generator(target, target, draft_length=4)
    assert len(decoders) == 2
    DECODERS[generator] = decoders
    return generator


def fresh_text(target: Model, prompt: Any, params: SamplingParams) -> Result:
    return Generator(target, target, draft_length=4).generate(prompt, params)


def check_caches_hold_the_prefix(generator: Generator) -> None:
    """All that was committed but the last token, which the next round runs; or less, never more."""
    known = max(len(generator._engine.tokens) - 1, 0)
    for decoder in DECODERS[generator]:
        assert decoder.length <= known
    if generator.stats.tokens:
        assert DECODERS[generator][0].length == known


# Chunks and results


def test_stream_and_generate_agree(target: Model, drafter: Model) -> None:
    for draft in (None, "ngram", drafter, target):
        generator = Generator(target, draft, draft_length=3)
        for params in (GREEDY, SAMPLED):
            chunks = list(generator.stream(PROMPT, params))
            result = generator.generate(PROMPT, params)
            assert "".join(chunks) == result.text
            assert sum((chunk.tokens for chunk in chunks), ()) == result.tokens
            assert chunks[-1].finish_reason == result.finish_reason == "length"
            assert result.stats is generator.stats


def test_a_chunk_is_text_with_its_tokens(generator: Generator) -> None:
    chunks = list(generator.stream(PROMPT, GREEDY))
    for chunk in chunks:
        assert isinstance(chunk, str)
        assert isinstance(chunk.tokens, tuple)
        assert all(isinstance(token, int) for token in chunk.tokens)
        assert 0 <= chunk.drafted <= len(chunk.tokens)
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert all(chunks[:-1])  # only the last chunk may be empty
    tokens = [token for chunk in chunks for token in chunk.tokens]
    assert "".join(chunks) == generator.target.tokenizer.decode(tokens)
    assert sum(chunk.drafted for chunk in chunks) == generator.stats.accepted > 0


def test_a_chunk_can_be_copied_and_pickled(generator: Generator) -> None:
    chunk = next(generator.stream(PROMPT, GREEDY))
    for other in (copy.copy(chunk), copy.deepcopy(chunk), pickle.loads(pickle.dumps(chunk))):
        assert type(other) is Chunk
        assert other == chunk
        assert (other.tokens, other.drafted, other.finish_reason) == (
            chunk.tokens,
            chunk.drafted,
            None,
        )


def test_text_is_whole_characters(target: Model) -> None:
    # Only the bytes of "é", so that chunks would often end inside a character.
    first, second = target.tokenizer.encode("é")
    bias = {token: -np.inf for token in range(300) if token not in (first, second)}
    generator = Generator(target, target, draft_length=3)
    chunks = list(generator.stream(PROMPT, SAMPLED, logit_bias=bias, temperature=100))
    tokens = [token for chunk in chunks for token in chunk.tokens]
    assert set(tokens) == {first, second}
    assert "".join(chunks) == target.tokenizer.decode(tokens)
    assert "é" in "".join(chunks)


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 5, 6, 31])
def test_max_tokens_is_exact(target: Model, generator: Generator, max_tokens: int) -> None:
    whole = fresh_text(target, PROMPT, GREEDY).tokens
    for draft_length in (1, 4, 32):
        generator.draft_length = draft_length
        result = generator.generate(PROMPT, GREEDY, max_tokens=max_tokens)
        assert result.tokens == whole[:max_tokens]
        assert result.finish_reason == "length"


def test_an_end_token_stops_and_is_not_part_of_the_text(target: Model) -> None:
    likely = {"temperature": 20, "logit_bias": {END: 60.0}, "max_tokens": 100}
    whole = Generator(target, acceptance="coupled").generate(PROMPT, SAMPLED, **likely).tokens
    assert len(whole) == 100  # ignore_eos goes on
    end = whole.index(END)
    assert end > 0
    for draft_length in (1, 4, 16):
        generator = Generator(target, target, acceptance="coupled", draft_length=draft_length)
        result = generator.generate(PROMPT, SAMPLED, ignore_eos=False, **likely)
        assert result.finish_reason == "stop"
        assert result.tokens == whole[:end]
        assert result.stats.tokens == end + 1


@pytest.mark.parametrize("draft_length", [1, 3, 16])
def test_stop_strings_end_the_text_before_them(target: Model, draft_length: int) -> None:
    generator = Generator(target, target, draft_length=draft_length)
    text = generator.generate(PROMPT, GREEDY).text
    for start, size in ((0, 1), (3, 2), (5, 7), (len(text) // 2, 5)):
        stop = text[start : start + size]
        result = generator.generate(PROMPT, GREEDY, stop=stop)
        assert result.finish_reason == "stop"
        assert result.text == text[: text.index(stop)]
    # One that never comes holds text back, but not for good.
    result = generator.generate(PROMPT, GREEDY, stop=["\0never", text[-3:] + "\0never"])
    assert result.text == text
    assert result.finish_reason == "length"


# Prompts


def test_prompts_of_every_kind(target: Model, generator: Generator) -> None:
    as_text = generator.generate("hi there", GREEDY)
    message = {"role": "user", "content": "hi there"}
    tokens = generator.encode("hi there")
    for prompt in ([message], (message,), tokens, tuple(tokens), np.array(tokens)):
        assert generator.generate(prompt, GREEDY).tokens == as_text.tokens
    raw = generator.generate("hi there", GREEDY, raw=True)
    assert raw.stats.prompt_tokens < as_text.stats.prompt_tokens
    assert raw.tokens == generator.generate(target.tokenizer.encode("hi there"), GREEDY).tokens


def test_a_prompt_of_one_token(target: Model) -> None:
    expected = Generator(target).generate([50], GREEDY).tokens
    for draft_length in (1, 4, 16):
        result = Generator(target, target, draft_length=draft_length).generate([50], GREEDY)
        assert result.tokens == expected
        assert result.stats.prefilled_tokens == 0


# Sampling parameters


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_tokens", value) for value in (0, -1, 2.5, "5", True)),
        *(("temperature", value) for value in (-0.1, "hot", float("nan"), float("inf"))),
        *(("top_k", value) for value in (-1, 2.5, "3", 2**31)),
        *(("top_p", value) for value in (0, -0.1, 1.1, "x", float("nan"))),
        *(("min_p", value) for value in (-0.1, 1.1, "x")),
        *(("seed", value) for value in (-1, 2**64, 1.5, "x", True)),
        *(("stop", value) for value in ("", ["a", ""], 5, [5], b"x")),
        *(("repetition_penalty", value) for value in (0, -1, 1e300, 1e-300, "x")),
        *(("presence_penalty", value) for value in (float("nan"), 1e300, "x")),
        *(("frequency_penalty", value) for value in (float("inf"), -1e300, "x")),
        ("logit_bias", {1: float("nan")}),
        ("logit_bias", {1: float("inf")}),
        ("logit_bias", {1: 1e300}),
        ("logit_bias", {"1": 1.0}),
        ("logit_bias", {1.5: 1.0}),
        ("logit_bias", {1: "x"}),
        ("logit_bias", [(1, 2.0)]),
        ("ignore_eos", 1),
    ],
)
def test_bad_parameters_are_named(generator: Generator, name: str, value: object) -> None:
    with pytest.raises(InvalidInputError) as by_params:
        SamplingParams(**{name: value})
    with pytest.raises(InvalidInputError) as by_override:
        generator.stream(PROMPT, **{name: value})
    for caught in (by_params, by_override):
        message = str(caught.value)
        assert name.split("_")[0] in message
        assert "\n" not in message


@pytest.mark.parametrize("token", [-1, 300])
def test_a_bias_outside_the_vocabulary_is_refused(generator: Generator, token: int) -> None:
    with pytest.raises(InvalidInputError, match=f"token {token}, outside the vocabulary of 300"):
        generator.stream(PROMPT, logit_bias={token: 1.0})


def test_unknown_parameters_are_refused(generator: Generator) -> None:
    with pytest.raises(InvalidInputError, match="'temprature'; did you mean 'temperature'"):
        generator.stream(PROMPT, temprature=1)
    with pytest.raises(InvalidInputError, match="unknown sampling parameter 'zzz'"):
        generator.stream(PROMPT, zzz=1)
    with pytest.raises(InvalidInputError, match="params is"):
        generator.stream(PROMPT, {"temperature": 1})  # type: ignore[arg-type]


def test_parameters_resolve_to_the_recommendation_then_to_neutral() -> None:
    params = SamplingParams(top_k=7, temperature=None).resolve({"temperature": 0.3, "top_k": 40})
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.3, 7, 1.0, 0.0)
    assert params.repetition_penalty == 1.0
    assert params.presence_penalty == params.frequency_penalty == 0.0
    assert params.seed is not None
    assert params.seed != SamplingParams().resolve({}).seed
    assert SamplingParams(seed=0).resolve({}).seed == 0
    assert SamplingParams(temperature=0).resolve({"temperature": 0.3}).temperature == 0
    assert SamplingParams(max_tokens=None).resolve({}).max_tokens is None


def test_overrides_replace_fields_and_leave_the_rest(generator: Generator) -> None:
    base = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    assert len(generator.generate(PROMPT, base, max_tokens=9).tokens) == 9
    assert base.max_tokens == 5


def test_a_seed_is_reproducible(target: Model) -> None:
    for acceptance in ("token", "block", "coupled"):
        generator = Generator(target, target, acceptance=acceptance, draft_length=3)
        first = generator.generate(PROMPT, SAMPLED).tokens
        generator.generate("something else", SAMPLED, seed=5)
        assert generator.generate(PROMPT, SAMPLED).tokens == first
        assert generator.generate(PROMPT, SAMPLED, seed=12).tokens != first


def test_banned_tokens_never_come(generator: Generator) -> None:
    usual = set(generator.generate(PROMPT, SAMPLED, max_tokens=100).tokens)
    bias = dict.fromkeys(usual, -np.inf)
    assert not usual & set(generator.generate(PROMPT, SAMPLED, logit_bias=bias).tokens)


def test_greedy_acceptance_does_not_sample(target: Model) -> None:
    generator = Generator(target, target, acceptance="greedy")
    assert generator.generate(PROMPT, GREEDY).tokens
    with pytest.raises(InvalidInputError, match="acceptance 'greedy' is for temperature 0"):
        generator.stream(PROMPT, SAMPLED)


# Few tokens are allowed, so that every text can be counted; the drafter's head lacks 102 and 105.
ALLOWED = (100, 101, 102, 105)


def text_probabilities(
    target: Model, prompt: list[int], length: int, temperature: float
) -> dict[tuple[int, ...], float]:
    """The target's probability of each text of ``length`` allowed tokens."""
    decoder = target.new_decoder(capacity=64, max_logit_rows=length)
    decoder.forward(prompt[:-1], 1)
    decoder.commit(len(prompt) - 1)
    probabilities = {}
    for text in product(ALLOWED, repeat=length):
        rows = decoder.forward([prompt[-1], *text[:-1]], length)[:, ALLOWED]
        weights = np.exp((rows - rows.max(axis=1, keepdims=True)).astype(float) / temperature)
        weights /= weights.sum(axis=1, keepdims=True)
        chosen = [ALLOWED.index(token) for token in text]
        probabilities[text] = float(np.prod(weights[range(length), chosen]))
    return probabilities


def check_distribution(target: Model, drafter: Model, acceptance: str, draws: int) -> None:
    length, temperature = 3, 6.0
    prompt = target.tokenizer.encode("the dog")
    expected = text_probabilities(target, prompt, length, temperature)
    bias = {token: -np.inf for token in range(300) if token not in ALLOWED}
    params = SamplingParams(
        temperature=temperature, max_tokens=length, ignore_eos=True, logit_bias=bias
    )
    generator = Generator(target, drafter, acceptance=acceptance, draft_length=2)
    counts = Counter(generator.generate(prompt, params, seed=i).tokens for i in range(draws))
    assert set(counts) <= set(expected)
    common = [text for text, p in expected.items() if p * draws >= 5]
    observed = np.array([counts[text] for text in common] + [0.0])
    wanted = np.array([expected[text] * draws for text in common] + [0.0])
    observed[-1], wanted[-1] = draws - observed.sum(), draws - wanted.sum()
    if wanted[-1] < 5:
        observed, wanted = observed[:-1], wanted[:-1] * observed[:-1].sum() / wanted[:-1].sum()
    assert len(wanted) > 8
    assert scipy.stats.chisquare(observed, wanted).pvalue > 0.001


@pytest.mark.parametrize("acceptance", ["token", "block", "coupled"])
def test_sampled_text_follows_the_target(target: Model, drafter: Model, acceptance: str) -> None:
    check_distribution(target, drafter, acceptance, draws=400)


@pytest.mark.long
@pytest.mark.parametrize("acceptance", ["token", "block", "coupled"])
def test_sampled_text_follows_the_target_closely(
    target: Model, drafter: Model, acceptance: str
) -> None:
    check_distribution(target, drafter, acceptance, draws=30_000)


# Draft length


def drafted_after(stream: Iterator[Chunk], generator: Generator, rounds: int) -> float:
    """Drafts for each round, over the next rounds."""
    before = generator.stats
    while generator.stats.rounds < before.rounds + rounds:
        next(stream)
    after = generator.stats
    return (after.drafted - before.drafted) / (after.rounds - before.rounds)


def test_draft_length_changes_at_the_next_round(target: Model) -> None:
    generator = Generator(target, "ngram", draft_length=4)
    # A text of one token: n-gram lookup always has drafts.
    stream = generator.stream([5] * 10, GREEDY, max_tokens=200, logit_bias={5: 100.0})
    next(stream)
    for length in (4, 1, 7, 2):
        generator.draft_length = length
        assert generator.draft_length == length
        assert drafted_after(stream, generator, 3) == length
    stream.close()
    assert len(generator.stats.acceptance_by_position) == 7
    generator.draft_length = "auto"
    assert generator.draft_length == "auto"


def test_draft_length_can_be_set_from_another_thread(target: Model) -> None:
    generator = Generator(target, "ngram", draft_length=3)
    stream = generator.stream([5] * 10, GREEDY, max_tokens=200, logit_bias={5: 100.0})
    assert drafted_after(stream, generator, 3) == 3
    thread = threading.Thread(target=setattr, args=(generator, "draft_length", np.int64(9)))
    thread.start()
    thread.join()
    assert drafted_after(stream, generator, 3) == 9


# Interruptions: afterwards the caches hold the committed prefix, and texts are as ever


def check_unharmed(generator: Generator, target: Model) -> None:
    """The next texts are those of a Generator that never saw the interruption."""
    check_caches_hold_the_prefix(generator)
    for params in (GREEDY, SAMPLED):
        for prompt in (PROMPT, PROMPT + " jumps", "over the lazy dog"):
            found = generator.generate(prompt, params)
            assert found.tokens == fresh_text(target, prompt, params).tokens
    # What the interrupted stream left in the caches is used, and is right.
    again = generator.generate(generator._engine.tokens[:-5], GREEDY)
    assert again.stats.prefilled_tokens <= 5


def close(stream: Iterator[Chunk]) -> None:
    stream.close()  # type: ignore[attr-defined]


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


def run_before(monkeypatch: pytest.MonkeyPatch, action: Callable[[int], None]) -> list[int]:
    """Calls action(i) inside the i-th step from now on, target's or drafter's; returns [count]."""
    original = specdec.session._Runner.__call__
    count = [0]

    def call(self: Any, width: int, first_logit_row: int) -> None:
        count[0] += 1
        action(count[0])
        original(self, width, first_logit_row)

    monkeypatch.setattr(specdec.session._Runner, "__call__", call)
    return count


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


# Threads


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


# Conversations


def test_the_next_turn_uses_the_prefix(target: Model, generator: Generator) -> None:
    messages = [{"role": "user", "content": "tell me about the fox and the dog and the words"}]
    first = generator.generate(messages, GREEDY, max_tokens=20, ignore_eos=False)
    prompt = first.stats.prompt_tokens
    assert first.stats.prefilled_tokens == prompt - 1
    # The answer is given back as tokens: that of a random model is no text that survives encoding.
    following = [*generator.encode(messages), *first.tokens, END, *generator.encode("and then?")]
    second = generator.generate(following, GREEDY)
    reused = prompt + len(first.tokens)
    assert second.stats.prefilled_tokens <= len(following) - reused + 1
    assert second.tokens == fresh_text(target, following, GREEDY).tokens
    # The same prompt again needs no prefill at all.
    assert generator.generate(following, GREEDY).stats.prefilled_tokens == 0
    # And another conversation begins anew.
    assert generator.generate(messages, GREEDY, max_tokens=20).tokens[:5] == first.tokens[:5]


def test_one_generator_through_many_prompts(target: Model, drafter: Model) -> None:
    rng = np.random.default_rng(0)
    generators = [Generator(target, draft) for draft in (drafter, "ngram", target)]
    prompt: list[int] = [5]
    for _ in range(25):
        keep = int(rng.integers(1, len(prompt) + 1))
        prompt = [*prompt[:keep], *rng.integers(0, 300, int(rng.integers(1, 60))).tolist()][:200]
        expected = Generator(target).generate(prompt, GREEDY, max_tokens=8).tokens
        for generator in generators:
            generator.draft_length = int(rng.integers(1, 17))
            assert generator.generate(prompt, GREEDY, max_tokens=8).tokens == expected


def test_a_drafter_with_a_shorter_context(target: Model, tiny_gguf: Path, tmp_path: Path) -> None:
    from specdec.convert import convert
    from tests.tiny_gguf import write_tiny_drafter

    checkpoint = write_tiny_drafter(tmp_path / "short.gguf", context=64)
    short = Model.load(convert(checkpoint, tmp_path / "short", target_source=tiny_gguf))
    generator = Generator(target, short, draft_length=4)
    for length in (10, 60, 61, 62, 63, 64, 65, 100, 30):
        prompt = [5 + i % 250 for i in range(length)]
        result = generator.generate(prompt, GREEDY)
        assert result.tokens == Generator(target).generate(prompt, GREEDY).tokens
        assert (result.stats.drafted > 0) == (length < 64)


# Statistics


def check_stats(stats: Stats) -> None:
    assert all(seconds >= 0 for seconds in stats.seconds.values())
    assert set(stats.seconds) == {"prefill", "draft", "verify", "accept", "text"}
    assert 0 <= stats.accepted <= stats.drafted
    assert all(0 <= share <= 1 for share in stats.acceptance_by_position)
    assert 0 <= stats.acceptance_rate <= 1
    assert stats.block_efficiency >= 0
    assert stats.tokens_per_second >= 0
    assert stats.prefill_tokens_per_second >= 0
    assert str(stats)


def test_stats_before_anything_ran(generator: Generator) -> None:
    check_stats(generator.stats)
    assert generator.stats == Stats()
    assert generator.stats.tokens_per_second == generator.stats.block_efficiency == 0


def test_stats_add_up(target: Model, drafter: Model) -> None:
    for draft in (None, "ngram", drafter, target):
        generator = Generator(target, draft, draft_length=3)
        snapshots = []
        tokens = 0
        start = time.perf_counter()
        for chunk in generator.stream(PROMPT, GREEDY):
            stats = generator.stats
            check_stats(stats)
            snapshots.append(stats)
            tokens += len(chunk.tokens)
            assert tokens <= stats.tokens
        wall = time.perf_counter() - start
        stats = generator.stats
        assert stats.tokens == tokens == 32
        assert stats.tokens == stats.rounds + stats.accepted
        assert stats.block_efficiency == pytest.approx(32 / stats.rounds)
        assert stats.prompt_tokens == len(generator.encode(PROMPT))
        assert stats.model_seconds <= sum(stats.seconds.values()) <= wall
        assert all(a.rounds < b.rounds and a.tokens < b.tokens for a, b in pairwise(snapshots))
        assert len(stats.acceptance_by_position) <= 3
        if draft is None:
            assert stats.drafted == 0
            assert stats.rounds == 32


def test_stats_of_an_accepted_end_token_add_up(target: Model) -> None:
    generator = Generator(target, "ngram", draft_length=8)
    # The text repeats the prompt's turn end, which is a draft and ends the text.
    prompt = [10, 11, END, 10, 11]
    result = generator.generate(prompt, temperature=0, logit_bias={END: 100.0})
    assert result.finish_reason == "stop"
    assert result.tokens == ()
    assert result.stats.tokens == 1


def test_the_consumers_time_is_not_counted(generator: Generator) -> None:
    for i, _ in enumerate(generator.stream(PROMPT, GREEDY)):
        if i == 1:
            time.sleep(0.5)
    assert sum(generator.stats.seconds.values()) < 0.5


# Memory


def test_generators_are_freed(target: Model) -> None:
    def make() -> list[weakref.ref[Any]]:
        runners: list[weakref.ref[Any]] = []
        original = specdec.session._Runner.attach

        def attach(self: Any, decoder: Any) -> None:
            runners.append(weakref.ref(self))
            original(self, decoder)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(specdec.session._Runner, "attach", attach)
            generator = Generator(target, target)
        generator.generate(PROMPT, GREEDY)
        stream = generator.stream(PROMPT, GREEDY)
        next(stream)
        return [weakref.ref(generator), *runners]

    gc.disable()  # freed at once, not by the collector of cycles
    try:
        references = make()
    finally:
        gc.enable()
    assert len(references) == 3
    assert [reference() for reference in references] == [None] * 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_generators_do_not_leak(target: Model) -> None:
    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096

    def use(count: int) -> None:
        for _ in range(count):
            Generator(target, target).generate(PROMPT, GREEDY, max_tokens=4)

    use(10)
    before = resident()
    use(50)
    assert resident() - before < 8 * 2**20


def test_a_running_stream_keeps_its_generator(target: Model) -> None:
    stream = Generator(target, Ngram()).stream(PROMPT, GREEDY)
    gc.collect()
    tokens = sum((chunk.tokens for chunk in stream), ())
    assert tokens == fresh_text(target, PROMPT, GREEDY).tokens
