"""Text from models of fixed shape in the simulator: placements, widths, interruptions, limits."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime_qnn")

from specdec import (
    BackendError,
    ContextFullError,
    Generator,
    InvalidInputError,
    Model,
    ModelRunError,
    QnnOptions,
    SamplingParams,
)
from specdec.qnn import past_memory, provider
from tests.error_of import error_of
from tests.qnn.conftest import FIRST, PAST, WIDTHS

GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
PROMPT = "fox"


@pytest.fixture(scope="module")
def plain_tokens(qnn_target: Model) -> tuple[int, ...]:
    """The target alone, greedily."""
    return Generator(qnn_target).generate(PROMPT, GREEDY).tokens


# Placements


def test_both_on_the_npu(
    qnn_target: Model, qnn_drafter: Model, plain_tokens: tuple[int, ...]
) -> None:
    generator = Generator(qnn_target, qnn_drafter, draft_length=3)
    result = generator.generate(PROMPT, GREEDY)
    assert result.tokens == plain_tokens
    stats = result.stats
    assert stats.tokens == GREEDY.max_tokens
    assert stats.drafted > 0
    assert stats.rounds >= stats.tokens / 4
    assert stats.block_efficiency == pytest.approx(stats.tokens / stats.rounds)
    assert (qnn_target.device, qnn_drafter.device) == ("NPU simulator", "NPU simulator")


def test_the_drafter_on_the_cpu(
    qnn_target: Model, tiny_drafter: Path, plain_tokens: tuple[int, ...]
) -> None:
    drafter = Model.load(tiny_drafter)
    assert drafter.device == "CPU"
    result = Generator(qnn_target, drafter, draft_length=3).generate(PROMPT, GREEDY)
    assert result.tokens == plain_tokens


def test_the_target_on_the_cpu(qnn_drafter: Model, tiny_target: Path) -> None:
    target = Model.load(tiny_target)
    plain = Generator(target).generate(PROMPT, GREEDY)
    drafted = Generator(target, qnn_drafter, draft_length=3).generate(PROMPT, GREEDY)
    assert drafted.tokens == plain.tokens
    assert drafted.stats.drafted > 0


def test_float16_with_one_width_and_no_best_head(half_target: Path) -> None:
    model = Model.load(half_target, backend="qnn")
    assert model.first_token is None
    generator = Generator(model, model, draft_length=3)
    result = generator.generate(PROMPT, GREEDY)
    assert result.tokens == Generator(model).generate(PROMPT, GREEDY).tokens
    assert result.stats.acceptance_rate == 1
    error_of(InvalidInputError, lambda: setattr(generator, "draft_length", 8), "1 to 7")


@pytest.mark.parametrize("acceptance", ["block", "coupled"])
def test_sampled_text(qnn_target: Model, qnn_drafter: Model, acceptance: str) -> None:
    params = SamplingParams(temperature=1, seed=4, max_tokens=12, ignore_eos=True)
    generator = Generator(qnn_target, qnn_drafter, draft_length=3, acceptance=acceptance)
    first = generator.generate(PROMPT, params)
    assert generator.generate(PROMPT, params).tokens == first.tokens
    if acceptance == "coupled":  # the same whatever the drafter
        assert (
            Generator(qnn_target, acceptance=acceptance).generate(PROMPT, params).tokens
            == first.tokens
        )


def test_the_cpu_computes_the_same_graphs(qnn_target: Model, fixed_target: Path) -> None:
    on_cpu = Model.load(fixed_target, backend="cpu")
    tokens = [FIRST, *(7 * i % 290 + 3 for i in range(40))]
    scale = qnn_target.plan.logits.scale if qnn_target.plan else 0.0
    rows = []
    for model in (qnn_target, on_cpu):
        decoder = model.new_decoder(capacity=PAST, max_logit_rows=8)
        decoder.forward(tokens[:1], 1)
        decoder.commit(1)
        found = []
        for begin in range(1, 41, 8):
            found.append(np.array(decoder.forward(tokens[begin : begin + 8], 8)))
            decoder.commit(8)
        rows.append(np.concatenate(found))
    steps = np.abs(rows[0] - rows[1]) / scale
    assert np.median(steps) <= 64  # of 65,536: rounding within the layers
    spread = rows[1].max(axis=1) - np.median(rows[1], axis=1)
    assert (np.abs(rows[0] - rows[1]).max(axis=1) < 0.1 * spread).all()


# Widths


def test_k_changes_in_a_stream(
    qnn_target: Model, qnn_drafter: Model, plain_tokens: tuple[int, ...]
) -> None:
    generator = Generator(qnn_target, qnn_drafter, draft_length=1)
    tokens: list[int] = []
    for chunk, length in zip(
        generator.stream(PROMPT, GREEDY), [7, 2, 5, "auto", *[3] * 20], strict=False
    ):
        tokens += chunk.tokens
        generator.draft_length = length
    assert tuple(tokens) == plain_tokens[: len(tokens)]
    assert len(tokens) == GREEDY.max_tokens


def test_k_above_the_width(qnn_target: Model) -> None:
    assert Generator(qnn_target, "ngram", draft_length=WIDTHS[-1] - 1).draft_length == 7
    error_of(
        InvalidInputError,
        lambda: Generator(qnn_target, "ngram", draft_length=8),
        "draft_length is 8", "1 to 7", "wider width",
    )  # fmt: skip


def test_width_invariance_is_probed(qnn_target: Model) -> None:
    assert qnn_target.width_invariant in (True, False)


# Interruptions


def test_a_closed_stream_goes_on_where_it_was(
    qnn_target: Model, qnn_drafter: Model, plain_tokens: tuple[int, ...]
) -> None:
    generator = Generator(qnn_target, qnn_drafter, draft_length=3)
    stream = generator.stream(PROMPT, GREEDY)
    seen = list(next(stream).tokens)
    stream.close()  # type: ignore[attr-defined]
    assert tuple(seen) == plain_tokens[: len(seen)]
    prompt = [*generator.encode(PROMPT), *seen]
    rest = generator.generate(prompt, GREEDY, max_tokens=GREEDY.max_tokens - len(seen))
    assert (*seen, *rest.tokens) == plain_tokens
    assert rest.stats.prefilled_tokens < len(prompt)  # the caches still held the rest


def test_cancel(qnn_target: Model, qnn_drafter: Model) -> None:
    generator = Generator(qnn_target, qnn_drafter, draft_length=2)
    chunks = []
    for chunk in generator.stream(PROMPT, GREEDY):
        chunks.append(chunk)
        generator.cancel()
    assert chunks[-1].finish_reason == "cancelled"
    assert len(chunks) <= 2


def test_decoders_are_freed(qnn_target: Model) -> None:
    gc.collect()
    before = sum(type(thing).__name__ == "_Runner" for thing in gc.get_objects())
    Generator(qnn_target, "ngram").generate(PROMPT, GREEDY, max_tokens=2)
    gc.collect()
    after = sum(type(thing).__name__ == "_Runner" for thing in gc.get_objects())
    assert after == before


def test_a_session_that_fails(qnn_target: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 12 : ENGINE_ERROR : NPU crashed\nand more")

    session = qnn_target._session._graphs["layers0", 4]  # type: ignore[union-attr]
    monkeypatch.setattr(type(session), "run_with_iobinding", fail)
    generator = Generator(qnn_target)
    error_of(ModelRunError, lambda: generator.generate(PROMPT, GREEDY), "NPU crashed")


# Limits


def test_a_full_context(qnn_target: Model, qnn_drafter: Model) -> None:
    generator = Generator(qnn_target, qnn_drafter, draft_length=7)
    assert generator.max_context == PAST
    error_of(ContextFullError, lambda: generator.generate([FIRST] * PAST, GREEDY), "64 tokens")
    result = generator.generate([FIRST] * (PAST - 5), GREEDY)
    assert (len(result.tokens), result.finish_reason) == (5, "length")


def test_a_smaller_context(qnn_target: Model) -> None:
    generator = Generator(qnn_target, "ngram", max_context=12)
    result = generator.generate([FIRST] * 8, GREEDY)
    assert (len(result.tokens), result.finish_reason) == (4, "length")
    error_of(ContextFullError, lambda: generator.generate([FIRST] * 12, GREEDY), "12")
    error_of(InvalidInputError, lambda: Generator(qnn_target, max_context=65), "2 to 64")


# The first token


def test_texts_begin_with_the_first_token(qnn_target: Model) -> None:
    assert qnn_target.first_token == FIRST
    generator = Generator(qnn_target)
    assert generator.encode([5, 6]) == [FIRST, 5, 6]
    assert generator.encode([FIRST, 5, 6]) == [FIRST, 5, 6]
    assert generator.encode(PROMPT, raw=True)[0] == FIRST
    chat = generator.encode(PROMPT)
    assert (chat[0], chat.count(FIRST)) == (FIRST, 2)  # of the two turns
    assert generator.generate([5, 6], GREEDY).tokens == (
        generator.generate([FIRST, 5, 6], GREEDY).tokens
    )


def test_a_drafter_with_a_first_token(
    qnn_target: Model, qnn_drafter: Model, tiny_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = Generator(Model.load(tiny_target), qnn_drafter)
    error_of(
        InvalidInputError,
        lambda: generator.generate([5, 6], GREEDY),
        qnn_drafter.name, "<|im_start|>", "token 1", "token 5",
    )  # fmt: skip
    tokens = {qnn_target: 1, qnn_drafter: 2}
    monkeypatch.setattr(Model, "first_token", property(lambda self: tokens[self]))
    error_of(InvalidInputError, lambda: Generator(qnn_target, qnn_drafter), "token 1", "token 2")


# Backends


def test_backends(
    fixed_target: Path, compiled_target: Path, tiny_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Model.load(fixed_target).backend == "cpu"  # never the simulator by itself
    error_of(InvalidInputError, lambda: Model.load(tiny_target, backend="qnn"), "specdec quantize")
    error_of(InvalidInputError, lambda: Model.load(compiled_target, backend="cpu"), "is compiled")
    error_of(InvalidInputError, lambda: Model.load(compiled_target), "there is none here", "qnn")
    error_of(InvalidInputError, lambda: Model.load(fixed_target, backend="npu"), "'npu'")
    error_of(
        InvalidInputError,
        lambda: Model.load(fixed_target, qnn={"vtcm_mb": 4}),  # type: ignore[arg-type]
        "QnnOptions",
    )
    monkeypatch.setattr(provider, "npu_present", lambda: True)
    assert Model.load(compiled_target).backend == "qnn"
    assert Model.load(tiny_target).backend == "cpu"


def test_the_past_in_memory_of_another_kind(
    qnn_target: Model, plain_tokens: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # For the simulator, memory that can be reached from the CPU is ordinary memory.
    monkeypatch.setattr(qnn_target._session, "_shares_memory", True)
    decoder = qnn_target.new_decoder(capacity=PAST, max_logit_rows=8)
    assert not decoder.buffers()["past_key.1"][..., 1:].any()
    assert Generator(qnn_target).generate(PROMPT, GREEDY).tokens == plain_tokens


def test_no_memory_of_that_kind(qnn_target: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(shape: list[int], dtype: np.dtype[Any]) -> Any:
        raise RuntimeError("rpcmem_alloc\nfailed")

    monkeypatch.setattr(past_memory, "_allocate", fail)
    monkeypatch.setattr(qnn_target._session, "_shares_memory", True)
    error_of(BackendError, lambda: Generator(qnn_target), "shared_memory", "rpcmem_alloc failed")


def test_options_reach_the_provider(half_target: Path, tmp_path: Path) -> None:
    profile = tmp_path / "profile.csv"
    options = QnnOptions(
        performance_mode="balanced", vtcm_mb=4, finalization=1,
        profiling="basic", profiling_file=str(profile),
    )  # fmt: skip
    model = Model.load(half_target, backend="qnn", qnn=options)
    Generator(model).generate(PROMPT, GREEDY, max_tokens=1)
    del model
    gc.collect()
    assert list(tmp_path.iterdir())
