"""Sampling parameters, and the distribution of sampled text."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
import scipy.stats

from specdec import Generator, InvalidInputError, Model, SamplingParams
from tests.generator.checks import GREEDY, PROMPT, SAMPLED


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
    with pytest.raises(InvalidInputError, match=r"set it on the Generator.*draft_length = 4"):
        generator.generate(PROMPT, draft_length=4)
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
