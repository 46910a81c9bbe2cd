"""The scale of a drafter's logits that most of its drafts are accepted with."""

from __future__ import annotations

import pytest
import torch

from specdec.distill.temperature import MOST_STEPS, STEP, sharpen


@pytest.mark.parametrize("sharpest", [1.0, 1.09, 0.87, 3.0, 0.2])
def test_the_nearest_of_the_factors_is_found(sharpest: float) -> None:
    trained = torch.tensor([0.5, 2.0, -1.0])
    gain = torch.nn.Parameter(trained.clone())
    factor = sharpen(gain, lambda: -abs(float(gain[1]) / 2 - sharpest))
    within = min(max(sharpest, STEP**-MOST_STEPS), STEP**MOST_STEPS)
    assert within / STEP**0.51 < factor < within * STEP**0.51
    assert torch.allclose(gain, trained * factor)


def test_acceptance_is_greatest_where_the_drafter_is_as_sure_as_the_target() -> None:
    logits = torch.randn(200, 50, generator=torch.Generator().manual_seed(1)) * 2
    target = (1.2 * logits).softmax(-1)
    gain = torch.ones(1)
    factor = sharpen(
        gain, lambda: float(torch.minimum(target, (gain * logits).softmax(-1)).sum(-1).mean())
    )
    assert factor == pytest.approx(1.2, rel=0.025)


def test_what_gains_nothing_stays_as_it_was_trained() -> None:
    gain = torch.tensor([1.5])
    assert sharpen(gain, lambda: 1.0) == 1.0
    assert gain.item() == 1.5
