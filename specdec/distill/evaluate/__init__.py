"""How much of what a drafter proposes its target accepts, measured in the runtime itself."""

from specdec.distill.evaluate.contest import Difference, Plan, Run
from specdec.distill.evaluate.figures import Cell, CostRatio, Estimate
from specdec.distill.evaluate.prompts import KINDS, load_kinds
from specdec.distill.evaluate.report import PairReport, Published, Texts, evaluate_pair

__all__ = [
    "KINDS",
    "Cell",
    "CostRatio",
    "Difference",
    "Estimate",
    "PairReport",
    "Plan",
    "Published",
    "Run",
    "Texts",
    "evaluate_pair",
    "load_kinds",
]
