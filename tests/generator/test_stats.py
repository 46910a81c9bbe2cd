"""Statistics, and what a Generator leaves in memory."""

from __future__ import annotations

import gc
import sys
import time
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import specdec.session
from specdec import Generator, Model, Ngram, Stats
from tests.generator.checks import END, GREEDY, PROMPT, fresh_text

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


def test_what_was_looked_up_is_told_from_a_models_drafts(target: Model) -> None:
    stats = Generator(target, "ngram", draft_length=4).generate(PROMPT * 3, GREEDY).stats
    assert stats.looked_up == stats.drafted > 0
    assert stats.looked_up_accepted == stats.accepted
    assert stats.lookup_acceptance_rate == stats.acceptance_rate
    assert "looked up" not in str(stats)
    stats = Generator(target, target, draft_length=2).generate(PROMPT * 3, GREEDY).stats
    assert stats.looked_up == stats.looked_up_accepted == 0
    assert stats.model_acceptance_rate == stats.acceptance_rate > 0
    both = Stats(drafted=10, accepted=6, looked_up=4, looked_up_accepted=1)
    assert (both.model_acceptance_rate, both.lookup_acceptance_rate) == (5 / 6, 1 / 4)
    assert "acceptance 60% (model 83% of 6, looked up 25% of 4)" in str(both)
    assert (both + both).looked_up_accepted == 2


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
