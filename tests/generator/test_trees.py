"""Several candidates for a position, through the face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from specdec import Generator, InvalidInputError, Model, SamplingParams
from specdec.convert import convert

PROMPT = "the quick brown fox"
GREEDY = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1, seed=11, max_tokens=60, ignore_eos=True)
SHAPES: list[tuple[int | str, int | str]] = [
    (1, 8),
    (2, 2),
    (4, 3),
    (8, 4),
    (4, "auto"),
    ("auto", 2),
    ("auto", "auto"),
]


@pytest.fixture(scope="module")
def target(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.load(convert(tiny_gguf, tmp_path_factory.mktemp("t") / "target", layout="fused"))


@pytest.fixture(scope="module", params=["attached", "standalone"])
def drafter(
    request: pytest.FixtureRequest,
    tiny_gguf: Path,
    tiny_attached_gguf: Path,
    tiny_drafter_gguf: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Model:
    source = tiny_attached_gguf if request.param == "attached" else tiny_drafter_gguf
    folder = tmp_path_factory.mktemp("t") / "drafter"
    return Model.load(convert(source, folder, target_source=tiny_gguf, layout="fused"))


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "coupled"])
def test_text_is_the_targets_own(target: Model, drafter: Model, sampling: SamplingParams) -> None:
    expected = Generator(target, acceptance="coupled").generate(PROMPT, sampling, raw=True)
    generator = Generator(target, drafter, acceptance="coupled")
    siblings = 0
    for length, width in SHAPES:
        generator.draft_length, generator.draft_width = length, width
        found = generator.generate(PROMPT, sampling, raw=True)
        assert found.tokens == expected.tokens, (length, width)
        siblings += found.stats.checked - found.stats.drafted
        # What moved in the caches is where the next turn looks for it.
        more = generator.generate([*generator.encode(PROMPT, raw=True), *found.tokens], sampling)
        alone = Generator(target, acceptance="coupled").generate(
            [*generator.encode(PROMPT, raw=True), *found.tokens], sampling
        )
        assert more.tokens == alone.tokens, (length, width)
    assert siblings > 0


@pytest.mark.parametrize("acceptance", ["block", "token"])
def test_a_seed_gives_one_text_at_a_length_and_width(
    target: Model, drafter: Model, acceptance: str
) -> None:
    texts = [
        Generator(target, drafter, draft_length=3, draft_width=3, acceptance=acceptance)
        .generate(PROMPT, SAMPLED, raw=True)
        .tokens
        for _ in range(2)
    ]
    assert texts[0] == texts[1]


def test_the_width_may_be_set_while_a_stream_runs(target: Model, drafter: Model) -> None:
    expected = Generator(target).generate(PROMPT, GREEDY, raw=True)
    generator = Generator(target, drafter, draft_length=3)
    assert generator.draft_width == "auto"
    tokens: list[int] = []
    for count, chunk in enumerate(generator.stream(PROMPT, GREEDY, raw=True)):
        tokens += chunk.tokens
        generator.draft_width = 1 + count % 8
        assert generator.draft_width == 1 + count % 8
    assert tuple(tokens) == expected.tokens
    assert generator.stats.checked > generator.stats.drafted


def test_a_fixed_length_has_chains_unless_a_width_is_set(target: Model, drafter: Model) -> None:
    generator = Generator(target, drafter, draft_length=3)
    stats = generator.generate(PROMPT, GREEDY, raw=True).stats
    assert stats.checked == stats.drafted > 0
    generator.draft_width = 2
    stats = generator.generate(PROMPT, GREEDY, raw=True).stats
    assert stats.checked == 2 * stats.drafted > 0
    assert stats.tokens == stats.rounds + stats.accepted
    both = stats + stats
    assert both.checked == 2 * stats.checked


@pytest.mark.parametrize("width", [0, 9, -1, 2.5, True, None, "wide"])
def test_widths_that_are_none(target: Model, width: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"draft_width is .* 1 to 8, or 'auto'"):
        Generator(target, "ngram", draft_width=width)


@pytest.mark.parametrize("lookup", [1, None, "yes"])
def test_a_lookup_is_on_or_off(target: Model, lookup: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"lookup is .* it must be True or False"):
        Generator(target, target, lookup=lookup)


def test_a_lookup_changes_no_text(target: Model) -> None:
    texts = {
        Generator(target, target, lookup=lookup).generate(PROMPT, GREEDY, raw=True).text
        for lookup in (True, False)
    }
    assert texts == {Generator(target).generate(PROMPT, GREEDY, raw=True).text}


def test_a_target_that_checks_chains_says_so(tmp_path: Path, tiny_gguf: Path) -> None:
    other = Model.load(convert(tiny_gguf, tmp_path / "target", layout="nbits8"))
    with pytest.raises(InvalidInputError, match=r"draft_width is 2, and .* layout 'fused'"):
        Generator(other, other, draft_width=2)
    generator = Generator(other, other, draft_length=3)
    expected = Generator(other).generate(PROMPT, GREEDY, raw=True)
    assert generator.generate(PROMPT, GREEDY, raw=True).tokens == expected.tokens


def test_an_ngram_drafter_has_one_candidate(target: Model) -> None:
    generator = Generator(target, "ngram", draft_length=4, draft_width=4)
    stats = generator.generate("a b a b a b a b", GREEDY, raw=True).stats
    assert stats.checked == stats.drafted
