"""Sizes of a network, and how an attached drafter's fit its target's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True)
class ModelShape:
    """The shape of a decoder-only transformer, in elements."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    rope_theta: float
    norm_eps: float
    tied_head: bool
    target_layers: tuple[int, ...] | None = field(default=None, kw_only=True)
    """For each layer of an attached drafter, the target's layer whose K/V it reads, ascending.

    None for a target, and for a standalone drafter, which has K/V of its own.
    """

    @property
    def bridges(self) -> tuple[int, ...]:
        """The layers of an attached drafter that a bridge leads to.

        That is, all but those that follow in the target upon the drafter's layer before (the first
        one: upon the embedding).
        """
        layers = self.target_layers or ()
        before = (-1, *layers)
        return tuple(j for j, layer in enumerate(layers) if layer != before[j] + 1)

    def attachment_problem(self, target: ModelShape) -> str | None:
        """Why this attached drafter cannot read ``target``'s states; None where it can."""
        if self.target_layers and self.target_layers[-1] >= target.layers:
            return (
                f"it reads the K/V of layer {self.target_layers[-1]}, and the target has layers 0 "
                f"to {target.layers - 1}"
            )
        for name, what in (
            ("hidden", "a hidden size of {}"),
            ("kv_heads", "{} key/value heads"),
            ("head_dim", "heads of {} values"),
            ("rope_theta", "a RoPE theta of {:g}"),
            ("vocab", "a vocabulary of {} tokens"),
        ):
            own, other = getattr(self, name), getattr(target, name)
            if own != other:
                return (
                    f"it was made for a target with {what.format(own)}, and this one has "
                    f"{what.format(other)}"
                )
        return None


def target_layers_problem(target_layers: Sequence[object], layers: int) -> str | None:
    """What is wrong with the ``target_layers`` of a drafter of ``layers`` layers; None: nothing.

    Each layer needs the K/V of another one, since it adds its own to them.
    """
    numbers = [layer for layer in target_layers if type(layer) is int and layer >= 0]
    ascending = all(low < high for low, high in pairwise(numbers))
    if len(numbers) == len(target_layers) == layers and ascending:
        return None
    return f"must name {layers} of the target's layers, ascending, not {list(target_layers)!r}"
