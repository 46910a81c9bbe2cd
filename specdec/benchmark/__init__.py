"""Compares ways to run one target side by side; nothing here prints, and no run path imports it."""

from specdec.benchmark.contest import Contestant, Run, contest, contestants
from specdec.benchmark.machine import describe_machine
from specdec.benchmark.prompts import PromptSet, load_prompts, shipped_kinds
from specdec.benchmark.summary import Difference, Summary, differences, summarise

__all__ = [
    "Contestant",
    "Difference",
    "PromptSet",
    "Run",
    "Summary",
    "contest",
    "contestants",
    "describe_machine",
    "differences",
    "load_prompts",
    "shipped_kinds",
    "summarise",
]
