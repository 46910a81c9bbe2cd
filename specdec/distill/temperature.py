"""How sure a drafter should be of itself.

A student that learnt from little text spreads its chances wider than the target does on text that
is new to both, and at temperature 1 that is drafts lost: what is accepted is sum(min(p, q))
(Leviathan et al. 2211.17192, definition 3.4). Its final norm's gain scales all logits alike: the
likeliest id stays what it was, and so does all that greedy decoding drafts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STEP = 1.04
"""Logits are scaled by powers of this."""
MOST_STEPS = 6
"""Up or down."""


@torch.no_grad()
def sharpen(gain: Tensor, efficiency: Callable[[], float]) -> float:
    """Scale the gain of a student's final norm so that ``efficiency`` is greatest.

    ``efficiency()`` measures the student as it is at the call, on text that it was not trained on:
    for factors one ``STEP`` apart, up or else down from 1 as long as it grows.

    Returns:
        The factor that all logits have now.
    """
    trained = gain.detach().clone()

    def measured(power: int) -> float:
        gain.copy_(trained * STEP**power)
        return efficiency()

    power, most = 0, measured(0)
    for direction in (1, -1):
        while abs(power) < MOST_STEPS and (found := measured(power + direction)) > most:
            power, most = power + direction, found
        if power != 0:
            break
    gain.copy_(trained * STEP**power)
    return STEP**power
