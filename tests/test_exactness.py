"""Bit for bit: no drafter, rule or draft length changes greedy text, or coupled text at a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from bench.exactness import (
    DRAFT_LENGTHS,
    Comparison,
    Report,
    Setting,
    compare_all,
    prompts,
    real_comparison,
    real_plans,
)
from specdec import Generator, Model, Ngram
from specdec._core import MAX_DRAFT_LENGTH, Decoder
from specdec.convert import LAYOUTS, convert
from specdec.verification import RULES
from tests.core.kv_columns import read_columns, write_columns
from tests.tiny_gguf import write_tiny_drafter, write_tiny_gguf

Logits = npt.NDArray[np.float32]

DRAFTERS = ("random", "trimmed", "itself", "ngram")


@pytest.fixture(scope="module")
def drafters(
    target: Model, tiny_drafter: Path, tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Model | Ngram]:
    """A random model, one with a trimmed head, the target itself, and n-gram lookup."""
    folder = tmp_path_factory.mktemp("random")
    checkpoint = write_tiny_drafter(folder / "random.gguf", seed=5)
    random = convert(checkpoint, folder / "random", target_source=tiny_gguf)
    return {
        "random": Model.load(random),
        "trimmed": Model.load(tiny_drafter),
        "itself": target,
        "ngram": Ngram(min_match=1),
    }


@pytest.fixture(scope="module")
def comparison(target: Model, drafters: dict[str, Model | Ngram]) -> Comparison:
    texts = ["the dog", "the thing that the thing that the thing that"]
    # Few tokens are likely, so that the text repeats itself and n-gram lookup has work.
    return Comparison(
        target, drafters, texts, tokens=40, overrides={"logit_bias": {7: 2.0, 70: 3.0}}
    )


def run(comparison: Comparison, settings: Iterator[Setting]) -> Report:
    return compare_all(comparison, [(i, setting) for setting in settings for i in range(2)])


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_greedy_text_is_the_targets_own(comparison: Comparison, drafter: str) -> None:
    report = run(
        comparison,
        (Setting(drafter, rule, k, False) for rule, k in product(RULES, DRAFT_LENGTHS)),
    )
    assert not report.mismatches, str(report)
    assert report.comparisons == 2 * len(RULES) * len(DRAFT_LENGTHS)
    assert report.drafted > 0
    if drafter == "itself":
        assert report.accepted > 0.9 * report.drafted


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_coupled_text_is_the_same_for_every_drafter_and_length(
    comparison: Comparison, drafter: str
) -> None:
    report = run(comparison, (Setting(drafter, "coupled", k, True) for k in DRAFT_LENGTHS))
    assert not report.mismatches, str(report)
    assert report.drafted > 0


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("k", [17, MAX_DRAFT_LENGTH, "auto"])
def test_longer_and_automatic_drafts_are_exact_too(
    comparison: Comparison, k: int | str, sampled: bool
) -> None:
    report = run(comparison, (Setting(drafter, "coupled", k, sampled) for drafter in DRAFTERS))
    assert not report.mismatches, str(report)


def test_penalties_and_truncation_do_not_break_exactness(
    target: Model, drafters: dict[str, Model | Ngram]
) -> None:
    for overrides in (
        {"repetition_penalty": 1.3},
        {"presence_penalty": 0.7, "frequency_penalty": 0.4},
        {"top_k": 20, "top_p": 0.8, "min_p": 0.02, "repetition_penalty": 0.8},
        {"top_p": 0.5},
        {"logit_bias": {5: -np.inf, 9: 4.0}},
    ):
        comparison = Comparison(target, drafters, ["the dog"], tokens=40, overrides=overrides)
        for setting in (
            Setting(drafter, "coupled", k, sampled)
            for drafter, k, sampled in product(DRAFTERS, (1, 4, 16), (False, True))
        ):
            report = compare_all(comparison, [(0, setting)])
            assert not report.mismatches, f"{overrides}: {report}"


def test_exact_up_to_the_last_token_of_the_context(
    target: Model, drafters: dict[str, Model | Ngram]
) -> None:
    prompt = target.tokenizer.encode("the thing that it wanted")
    for max_context in (len(prompt) + 1, len(prompt) + 2, 50, 51, 256):
        expected = Generator(target, max_context=max_context).generate(
            prompt, max_tokens=None, temperature=0, ignore_eos=True
        )
        assert len(prompt) + len(expected.tokens) == max_context
        assert expected.finish_reason == "length"
        for drafter, k in product(DRAFTERS, (1, 5, 16, 32)):
            generator = Generator(
                target, drafters[drafter], draft_length=k, max_context=max_context
            )
            result = generator.generate(prompt, max_tokens=None, temperature=0, ignore_eos=True)
            assert result.tokens == expected.tokens


@pytest.mark.parametrize("length", [1, 2, 3, 64, 65, 97, 128, 129, 130, 161, 193])
def test_exact_for_prompts_of_every_kind_of_length(
    target: Model, drafters: dict[str, Model | Ngram], length: int
) -> None:
    prompt = random_tokens(target, length)
    options = {"max_tokens": 24, "temperature": 0, "ignore_eos": True}
    expected = Generator(target).generate(prompt, **options).tokens
    for k in (1, 4, 16):
        assert Generator(target, target, draft_length=k).generate(prompt, **options).tokens == (
            expected
        )


# Logits


def random_tokens(model: Model, count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, model.config.vocab, count).tolist()


def fill(decoder: Decoder, tokens: list[int], chunk: int) -> None:
    for start in range(0, len(tokens), chunk):
        part = tokens[start : start + chunk]
        decoder.forward(part, 1)
        decoder.commit(len(part))


def two_by_two(model: Model, tokens: list[int]) -> Logits:
    """Every token's logits, from steps of two tokens."""
    decoder = model.new_decoder(capacity=len(tokens) + 2, max_logit_rows=2)
    rows = []
    for start in range(0, len(tokens), 2):
        part = tokens[start : start + 2]
        rows.append(np.array(decoder.forward(part, len(part))))
        decoder.commit(len(part))
    return np.concatenate(rows)


def check_widths(model: Model, pasts: Sequence[int], widths: Sequence[int]) -> None:
    tokens = random_tokens(model, max(pasts) + widths[-1])
    expected = two_by_two(model, tokens)
    decoder = model.new_decoder(capacity=len(tokens) + 2, max_logit_rows=widths[-1])
    for past in pasts:
        decoder.truncate(0)
        fill(decoder, tokens[:past], 128)
        for width in widths:
            logits = decoder.forward(tokens[past : past + width], width)
            np.testing.assert_array_equal(logits, expected[past : past + width])


def test_logits_are_the_same_bits_at_every_width(target: Model) -> None:
    check_widths(target, (0, 1, 2, 31, 32, 100), range(1, 129))


def check_chunks(model: Model, length: int, chunks: tuple[int, ...]) -> None:
    tokens = random_tokens(model, length + 5, seed=1)
    expected = None
    for chunk in chunks:
        decoder = model.new_decoder(capacity=length + 8, max_logit_rows=5)
        fill(decoder, tokens[:length], chunk)
        logits = np.array(decoder.forward(tokens[length:], 5))
        expected = logits if expected is None else expected
        np.testing.assert_array_equal(logits, expected, err_msg=f"chunks of {chunk}")


def test_a_prefill_in_any_chunks_gives_the_same_bits(target: Model) -> None:
    check_chunks(target, 193, (128, 1, 2, 3, 5, 7, 16, 31, 33, 64, 65, 97, 127))


def check_causality(model: Model, past: int, width: int) -> None:
    tokens = random_tokens(model, past + width, seed=2)
    decoder = model.new_decoder(capacity=past + width + 1, max_logit_rows=width)
    fill(decoder, tokens[:past], 128)
    before = np.array(decoder.forward(tokens[past:], width))
    for changed in range(width):
        step = tokens[past:]
        step[changed] = (step[changed] + 101) % model.config.vocab
        after = decoder.forward(step, width)
        np.testing.assert_array_equal(after[:changed], before[:changed])
        assert (after[changed] != before[changed]).any()


@pytest.mark.parametrize("width", range(2, 18))
def test_a_draft_changes_no_row_before_it(target: Model, width: int) -> None:
    check_causality(target, 40, width)


def test_what_lies_behind_the_length_does_not_matter(target: Model) -> None:
    tokens = random_tokens(target, 60)
    decoder = target.new_decoder(capacity=128, max_logit_rows=8)
    fill(decoder, tokens[:40], 128)
    before = np.array(decoder.forward(tokens[40:48], 8))
    rng = np.random.default_rng(3)
    columns = read_columns(decoder)
    for values in columns.values():
        values[:, :, 40:] = 1e3 * rng.standard_normal(values[:, :, 40:].shape)
    write_columns(decoder, columns)
    np.testing.assert_array_equal(decoder.forward(tokens[40:48], 8), before)


@pytest.mark.parametrize("heads", [1, 2, 4])  # of 64, 32 and 16 values
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_every_layout_gives_the_same_bits(layout: str, heads: int, tmp_path: Path) -> None:
    checkpoint = write_tiny_gguf(tmp_path / "tiny.gguf", heads=heads, kv_heads=1)
    model = Model.load(convert(checkpoint, tmp_path / "tiny", layout=layout))
    assert model.width_invariant
    check_widths(model, (0, 70), [*range(1, 36), 63, 64, 65, 66, 96, 97, 98, 127, 128])
    check_chunks(model, 193, (128, 2, 3, 33, 65, 97, 127))
    check_causality(model, 40, 17)


# The real model

PROMPTS, TOKENS = 100, 128


@pytest.fixture(scope="module")
def real(
    smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Comparison, dict[str, list[tuple[int, Setting]]]]:
    comparison, names = real_comparison(
        tmp_path_factory.mktemp("real"), prompt_count=PROMPTS, tokens=TOKENS
    )
    return comparison, real_plans(names, prompt_count=PROMPTS, prompts_each=3)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "settings"), [("greedy", 192), ("coupled", 48)])
def test_real_model(
    real: tuple[Comparison, dict[str, list[tuple[int, Setting]]]], kind: str, settings: int
) -> None:
    comparison, plans = real
    report = compare_all(comparison, plans[kind])
    print(report)
    assert not report.mismatches, str(report)
    # Every combination at three prompts, and the default setting at all of them.
    assert report.comparisons == 3 * settings + PROMPTS
    assert len(report.settings) == settings + 1
    assert report.tokens == report.comparisons * TOKENS


@pytest.mark.long
def test_real_logits(smollm2: Path) -> None:
    model = Model.load(smollm2)
    check_widths(model, (0, 1, 255, 1020), (*range(1, 18), 25, 33))
    check_chunks(model, 300, (128, 2, 7, 65, 127))
    for width in (2, 5, 17):
        check_causality(model, 300, width)


def test_the_plan_covers_what_it_says() -> None:
    assert len(set(prompts(PROMPTS))) == PROMPTS
    plans = real_plans(["drafter", "ngram", "random"], prompt_count=PROMPTS, prompts_each=3)
    met: dict[Setting, set[int]] = {}
    for index, setting in plans["greedy"]:
        met.setdefault(setting, set()).add(index)
    default = Setting("drafter", "block", "auto", False)
    assert met.pop(default) == set(range(PROMPTS))
    assert len(met) == 3 * len(RULES) * len(DRAFT_LENGTHS)
    assert all(len(indices) == 3 for indices in met.values())
    by_prompt = [sum(i in indices for indices in met.values()) for i in range(PROMPTS)]
    assert min(by_prompt) >= 4
