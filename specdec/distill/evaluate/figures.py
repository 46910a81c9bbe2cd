"""From counts of accepted drafts to figures with confidence intervals: pure functions.

Counts are pooled over prompts, so a figure is a ratio of sums. Its interval comes from the
percentile bootstrap (Efron 1979) over prompts: a prompt's rounds depend on each other, prompts do
not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from specdec.cost_model import DecoderShape
from specdec.distill.evaluate.contest import Run
from specdec.generator import Ngram
from specdec.model import Model
from specdec.model_folder import ModelConfig

FloatArray = npt.NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 2000
ALL_KINDS = "all"


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, which takes two prompts or more of each kind."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class CostRatio:
    """The drafter's size as a fraction of the target's; 0 for drafts without a model."""

    step_weights: float
    """Weights that one step reads: all layers and the head's rows. An embedding is only looked up
    in, and a trimmed head has fewer rows. This is the c of ``mbsu``."""
    parameters: float
    """Parameters of the models, embedding included, as Goel et al. count (115M / 7B = 1.64 %)."""


@dataclass(frozen=True)
class Cell:
    """What was measured on one kind of prompts, at one draft length and temperature."""

    kind: str
    gamma: int
    temperature: float
    prompts: int
    rounds: int
    """Target steps."""
    tokens: int
    """Tokens committed by them."""
    acceptance: tuple[Estimate | None, ...]
    """Entry i: P(draft i accepted | the drafts before it were); None where none got so far."""
    unconditional: tuple[Estimate | None, ...]
    """Entry i: P(draft i accepted), which takes the drafts before it to be accepted."""
    block_efficiency: Estimate
    mbsu: Estimate
    """Memory-bound speed-up with ``CostRatio.step_weights``."""
    mbsu_parameters: Estimate
    """The same with ``CostRatio.parameters``."""
    step_cost: Estimate | None
    """Measured seconds of a draft over those of a target step that checks gamma of them."""
    plain_step_cost: Estimate | None
    """Measured seconds of a draft over those of a target step without drafts; None where the
    target did not run alone."""


def block_efficiency(tokens: float, rounds: float) -> float:
    """tau: tokens committed per target step (Leviathan et al. 2211.17192); plain decoding has 1."""
    return tokens / rounds


def memory_bound_speed_up(tau: float, gamma: int, cost_ratio: float) -> float:
    """tau / (1 + gamma c): the speed-up where a step costs what it reads from memory.

    gamma steps of the drafter and one of the target give tau tokens, which take the target alone
    tau steps. This is the improvement of Leviathan et al. 2211.17192, theorem 3.8, with the
    measured tau in place of its expectation, and MBSU of Goel et al. 2403.00858 (metrics), whose c
    is the ratio of the models' parameters.

    Args:
        tau: Block efficiency.
        gamma: Drafts in a round.
        cost_ratio: A drafter's step over a target's.
    """
    return tau / (1.0 + gamma * cost_ratio)


def cost_ratio(target: Model, draft: Model | Ngram) -> CostRatio:
    """The sizes of two models against each other."""
    if isinstance(draft, Ngram):
        return CostRatio(0.0, 0.0)
    return CostRatio(
        step_weights=step_weights(draft.config) / step_weights(target.config),
        parameters=parameters(draft.config) / parameters(target.config),
    )


def step_weights(config: ModelConfig) -> int:
    """Weights that a step reads: the linears of all layers, the bridges, and the head's rows."""
    shape = DecoderShape.of(config, config.head_size)
    bridges = len(config.bridges) * 2 * config.hidden**2
    return shape.layers * shape.layer_weights + bridges + shape.head_weights


def parameters(config: ModelConfig) -> int:
    """Parameters of a model; a tied head, trimmed or not, is a part of the embedding."""
    norms = (2 * config.layers + 1) * config.hidden
    head = 0 if config.tied_head else DecoderShape.of(config, config.head_size).head_weights
    layers = config.layers * DecoderShape.of(config, config.head_size).layer_weights
    layers += len(config.bridges) * (2 * config.hidden + 2) * config.hidden
    return layers + norms + config.vocab * config.hidden + head


def summarise(runs: Sequence[Run], costs: CostRatio, *, seed: int) -> list[Cell]:
    """Figures by temperature, kind and draft length, in the order of their first runs.

    With more than one kind there is also ``"all"``, in which each prompt counts by its rounds and
    is drawn again within its kind. Runs with gamma 0 are the target alone.
    """
    kinds = list(dict.fromkeys(run.kind for run in runs))
    cells = []
    for temperature in dict.fromkeys(run.temperature for run in runs):
        at = [run for run in runs if run.temperature == temperature]
        gammas = sorted({run.gamma for run in at} - {0})
        groups = [(kind, [run for run in at if run.kind == kind]) for kind in kinds]
        if len(kinds) > 1:
            groups.append((ALL_KINDS, at))
        plain = [run for run in runs if run.gamma == 0]
        for kind, group in groups:
            alone = [run for run in plain if kind in (run.kind, ALL_KINDS)]
            for gamma in gammas:
                own = [run for run in group if run.gamma == gamma]
                cells.append(_cell(kind, gamma, own, alone, costs, seed))
    return cells


def _cell(
    kind: str, gamma: int, runs: Sequence[Run], alone: Sequence[Run], costs: CostRatio, seed: int
) -> Cell:
    plain = {(run.kind, run.prompt): run for run in alone}
    columns = np.array(
        [_columns(run, gamma, plain.get((run.kind, run.prompt))) for run in runs], np.float64
    )
    sample = Sample(columns, [run.kind for run in runs], seed=seed)
    drafted = slice(_FIXED, _FIXED + gamma)
    accepted = slice(_FIXED + gamma, None)

    def by_position(sums: FloatArray) -> FloatArray:
        return _ratio(sums[:, accepted], sums[:, drafted])

    def given_before(sums: FloatArray) -> FloatArray:
        # Rounds at the end of a text have fewer drafts, so it is shares that are divided here; over
        # a handful of rounds those of different rounds can be out of order.
        shares = by_position(sums)
        before = np.concatenate([np.ones((len(shares), 1)), shares[:, :-1]], axis=1)
        return np.minimum(_ratio(shares, before), 1.0)

    def tau(sums: FloatArray) -> FloatArray:
        return _ratio(sums[:, [_TOKENS]], sums[:, [_ROUNDS]])

    def draft_seconds(sums: FloatArray) -> FloatArray:
        return _ratio(sums[:, [_DRAFT_SECONDS]], sums[:, drafted].sum(1, keepdims=True))

    def verify_step(sums: FloatArray) -> FloatArray:
        return _ratio(sums[:, [_VERIFY_SECONDS]], sums[:, [_ROUNDS]])

    def plain_step(sums: FloatArray) -> FloatArray:
        return _ratio(sums[:, [_PLAIN_SECONDS]], sums[:, [_PLAIN_ROUNDS]])

    def mbsu(ratio: float) -> Callable[[FloatArray], FloatArray]:
        return lambda sums: tau(sums) / (1.0 + gamma * ratio)

    rounds, tokens = int(columns[:, _ROUNDS].sum()), int(columns[:, _TOKENS].sum())
    return Cell(
        kind=kind,
        gamma=gamma,
        temperature=runs[0].temperature,
        prompts=len(runs),
        rounds=rounds,
        tokens=tokens,
        acceptance=sample.estimates(given_before),
        unconditional=sample.estimates(by_position),
        block_efficiency=sample.required(tau),
        mbsu=sample.required(mbsu(costs.step_weights)),
        mbsu_parameters=sample.required(mbsu(costs.parameters)),
        step_cost=sample.estimate(lambda sums: _ratio(draft_seconds(sums), verify_step(sums))),
        plain_step_cost=sample.estimate(lambda sums: _ratio(draft_seconds(sums), plain_step(sums))),
    )


_ROUNDS, _TOKENS, _DRAFT_SECONDS, _VERIFY_SECONDS, _PLAIN_ROUNDS, _PLAIN_SECONDS, _FIXED = range(7)


def _columns(run: Run, gamma: int, plain: Run | None) -> list[float]:
    """One prompt's counts: the fixed ones, then drafts and accepted drafts by position."""
    stats = run.stats
    missing = [0.0] * (gamma - len(stats.drafted_by_position))
    return [
        stats.rounds,
        stats.tokens,
        stats.seconds["draft"],
        stats.seconds["verify"],
        0 if plain is None else plain.stats.rounds,
        0.0 if plain is None else plain.stats.seconds["verify"],
        *stats.drafted_by_position,
        *missing,
        *stats.accepted_by_position,
        *missing,
    ]


class Sample:
    """Counts of prompts, float64 [prompts, columns], and their sums in ``RESAMPLES`` resamples.

    Prompts are drawn again, with replacement, within their stratum.
    """

    def __init__(self, counts: FloatArray, strata: Sequence[str], *, seed: int):
        self._total = counts.sum(0, keepdims=True)
        self._resampled: FloatArray | None = None
        rng = np.random.default_rng(seed)
        sums = np.zeros((RESAMPLES, counts.shape[1]))
        for stratum in dict.fromkeys(strata):
            rows = counts[[name == stratum for name in strata]]
            if len(rows) < 2:  # one prompt says nothing about how prompts vary
                return
            times = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=RESAMPLES)
            sums += times @ rows
        self._resampled = sums

    def estimates(
        self, statistic: Callable[[FloatArray], FloatArray]
    ) -> tuple[Estimate | None, ...]:
        """``statistic`` maps sums [n, columns] to figures [n, m]; NaN where they have none."""
        values = statistic(self._total)[0]
        if self._resampled is None:
            return tuple(None if np.isnan(v) else Estimate(float(v), None, None) for v in values)
        draws = statistic(self._resampled)
        edge = (1.0 - CONFIDENCE) / 2
        result: list[Estimate | None] = []
        for value, column in zip(values, draws.T, strict=True):
            known = column[~np.isnan(column)]
            if np.isnan(value) or not len(known):
                result.append(None)
                continue
            low, high = np.quantile(known, [edge, 1.0 - edge])
            result.append(Estimate(float(value), float(low), float(high)))
        return tuple(result)

    def estimate(self, statistic: Callable[[FloatArray], FloatArray]) -> Estimate | None:
        """As ``estimates``, of a statistic with one figure."""
        (result,) = self.estimates(statistic)
        return result

    def required(self, statistic: Callable[[FloatArray], FloatArray]) -> Estimate:
        """As ``estimate``, of a figure that every run has."""
        result = self.estimate(statistic)
        if result is None:
            raise ValueError("no run committed a token")
        return result


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
