"""Models that fail while they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import specdec.session
from specdec import Generator, Model, ModelRunError
from tests.error_of import error_of
from tests.failures.conftest import OPTIONS


class FailingSession:
    """Stands in for ONNX Runtime's session and fails at its ``step``-th step."""

    def __init__(self, session: Any, step: int) -> None:
        self._session = session
        self._left = step

    def io_binding(self) -> Any:
        return self._session.io_binding()

    def run_with_iobinding(self, binding: Any) -> None:
        self._left -= 1
        if self._left == 0:
            raise RuntimeError("[ONNXRuntimeError] : 6 : OUT_OF_MEMORY\nwhile running node 'qkv'")
        self._session.run_with_iobinding(binding)


@pytest.mark.parametrize("who", ["target", "drafter"])
@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_the_runtime_fails_in_a_step(
    tiny_target: Path, tiny_drafter: Path, target: Model, who: str, step: int
) -> None:
    models = {"target": Model.load(tiny_target), "drafter": Model.load(tiny_drafter)}
    session = models[who]._session
    session._session = FailingSession(session._session, step)
    generator = Generator(models["target"], models["drafter"], draft_length=3)
    message = error_of(ModelRunError, lambda: generator.generate("hi", **OPTIONS), "OUT_OF_MEMORY")
    assert "ONNX Runtime failed in a step" in message
    expected = Generator(target).generate("hi", **OPTIONS).tokens
    assert generator.generate("hi", **OPTIONS).tokens == expected
    # And once more, now that the caches hold it.
    assert generator.generate("hi", **OPTIONS).tokens == expected


def test_a_step_that_the_runtime_refuses(target: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    # The real runtime's own complaint: it is told of a shape that does not fit.
    original = specdec.session._Runner.attach

    def attach(self: Any, decoder: Any) -> None:
        original(self, decoder)
        dtype, shape, address = self._buffers["past"]
        self._buffers["past"] = dtype, [*shape[:-1], shape[-1] // 2], address

    with monkeypatch.context() as patch:
        patch.setattr(specdec.session._Runner, "attach", attach)
        generator = Generator(target)
    error_of(ModelRunError, lambda: generator.generate("hi", **OPTIONS))


def test_logits_that_are_no_numbers(target: Model) -> None:
    generator = Generator(target, target, draft_length=3)
    before = generator.generate("hi", **OPTIONS).tokens
    ban_all = dict.fromkeys(range(300), -np.inf)
    for temperature in (0, 1):
        error_of(
            ModelRunError,
            lambda temperature=temperature: generator.generate(
                "hi", logit_bias=ban_all, temperature=temperature
            ),
            "every token is banned",
        )
    assert generator.generate("hi", **OPTIONS).tokens == before
