"""Prompts by kind, none of which a drafter was trained on: from packages, or the user's own.

Benchmark texts are for measuring. A drafter is trained on text that its target wrote, and never on
these.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from specdec.benchmark.prompts import PromptSet, load_prompts
from specdec.checkpoint_source import Progress
from specdec.checks import check_whole
from specdec.distill.evaluate.packaged import GSM8K, HELLASWAG, HUMAN_EVAL, MT_BENCH
from specdec.errors import InvalidInputError, PullError

CHAT_CATEGORIES = ("writing", "roleplay", "humanities", "stem")
_LANGUAGES = ("German", "French", "Spanish")
_MARKS = re.compile(r"\[(?:header|step|substeps)\]")  # wikiHow's, in HellaSwag
_MOST = 1_000_000


def load_kinds(
    names: Sequence[str], count: int | None = None, *, progress: Progress | None = None
) -> list[PromptSet]:
    """Prompts by kind.

    Args:
        names: Kinds (``KINDS``), or files of prompts as ``specdec bench`` reads them; none takes
            all kinds. Only what the named kinds need is fetched.
        count: At most so many prompts of each kind, the first ones; None takes all. The order of a
            kind is fixed and mixes what it is made of; that of a file is its own.
        progress: Called with a stage and the fraction of it that is done.

    Raises:
        InvalidInputError: Neither a kind nor a readable file of prompts, or one named twice.
        PullError: A package that a kind needs cannot be fetched.
    """
    if count is not None:
        check_whole("prompts for each kind", count, 1, _MOST, "a whole number, at least 1")
    report = progress or (lambda stage, fraction: None)
    sets: list[PromptSet] = []
    for name in names or KINDS:
        sets += [_packaged(name, report)] if name in KINDS else _own(name)
    kinds = [kind.name for kind in sets]
    if len(set(kinds)) != len(kinds):
        raise InvalidInputError(f"a kind of prompts is named twice: {', '.join(kinds)}")
    return [PromptSet(kind.name, kind.prompts[:count]) for kind in sets]


def _packaged(kind: str, progress: Progress) -> PromptSet:
    try:
        return PromptSet(kind, tuple(KINDS[kind](progress)))
    except (KeyError, TypeError, ValueError) as error:  # cannot be, with the right SHA-256
        raise PullError(f"the prompts of kind {kind!r} are not as expected: {error!r}") from error


def _own(name: str) -> list[PromptSet]:
    if not Path(name).is_file():
        raise InvalidInputError(
            f"{name}: neither a kind of prompts ({', '.join(KINDS)}) nor a readable file"
        )
    return load_prompts([name])


def _chat(progress: Progress) -> list[str]:
    questions = MT_BENCH.records(progress)
    return _mixed(q["turns"][0] for q in questions if q["category"] in CHAT_CATEGORIES)


def _summarise(progress: Progress) -> list[str]:
    texts = _mixed(_passage(case) for case in _how_tos(HELLASWAG.records(progress)))
    return [f"Summarise the following text in one or two sentences.\n\n{text}" for text in texts]


def _translate(progress: Progress) -> list[str]:
    cases = HELLASWAG.records(progress)
    how_tos = _how_tos(cases)
    texts = _mixed(_passage(case) for case in cases if case not in how_tos)
    return [
        f"Translate the following text into {_LANGUAGES[index % len(_LANGUAGES)]}.\n\n{text}"
        for index, text in enumerate(texts)
    ]


def _code(progress: Progress) -> list[str]:
    functions = _mixed(task["prompt"] for task in HUMAN_EVAL.records(progress))
    return [
        f"Complete the following Python function.\n\n```python\n{function.strip()}\n```"
        for function in functions
    ]


def _maths(progress: Progress) -> list[str]:
    return _mixed(case["prompt"] for case in GSM8K.records(progress))


def _extraction(progress: Progress) -> list[str]:
    """MT-Bench's own ten first, then numbers to be found in the stories of GSM8K."""
    own = _mixed(
        question["turns"][0]
        for question in MT_BENCH.records(progress)
        if question["category"] == "extraction"
    )
    stories = _mixed(case["prompt"] for case in GSM8K.records(progress))
    return own + [
        "List every number in the following text and what it counts, as a JSON list of objects "
        f'with the keys "number" and "what".\n\n{story}'
        for story in stories
    ]


KINDS: dict[str, Callable[[Progress], list[str]]] = {
    "chat": _chat,
    "summarise": _summarise,
    "translate": _translate,
    "code": _code,
    "maths": _maths,
    "extraction": _extraction,
}
"""Kinds of prompts that packages give, and how each is made; a prompt is one user message."""


def _how_tos(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The half of HellaSwag that is from wikiHow; the other half tells what a video shows."""
    return [case for case in cases if _MARKS.search(case["ctx"])]


def _passage(case: dict[str, Any]) -> str:
    """A HellaSwag context with its true ending, as plain text."""
    text = f"{case['ctx']} {case['endings'][case['expected_index']]}".replace("[title]", "\n")
    lines = (" ".join(_MARKS.sub(" ", line).split()) for line in text.splitlines())
    return re.sub(r" +([,.])", r"\1", "\n".join(line for line in lines if line))


def _mixed(texts: Iterable[str]) -> list[str]:
    """Each text once, in an order that has nothing to do with the file's and is always the same."""
    return sorted(dict.fromkeys(texts), key=lambda text: hashlib.sha256(text.encode()).digest())
