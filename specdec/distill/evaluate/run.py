"""``specdec distill --evaluate PAIR`` without its options: from names to files."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from specdec.distill.evaluate.plot import FORMATS, check_matplotlib, write_plot
from specdec.distill.evaluate.prompts import load_kinds
from specdec.distill.evaluate.report import (
    GAMMAS,
    MAX_TOKENS,
    TEMPERATURES,
    PairReport,
    Progress,
    evaluate_pair,
)
from specdec.distill.evaluate.table import markdown, print_report
from specdec.errors import InvalidInputError
from specdec.generator import Ngram
from specdec.hub import resolve
from specdec.model import Model
from specdec.model_folder import ModelFolder
from specdec.recipe import known_models, load_recipe

NAME = "evaluation"
PROMPTS_PER_KIND = 10
_NGRAM = "ngram"


def run_evaluation(
    pair: str,
    *,
    output: Path | None = None,
    replace: bool = False,
    plot_format: str = "svg",
    kinds: Sequence[str] = (),
    prompts_per_kind: int | None = PROMPTS_PER_KIND,
    gammas: Sequence[int] = GAMMAS,
    temperatures: Sequence[float] = TEMPERATURES,
    max_tokens: int = MAX_TOKENS,
    seed: int = 0,
    acceptance: str = "block",
    width: int = 1,
    threads: int | None = None,
    backend: str = "auto",
    draft_backend: str = "auto",
    progress: Progress | None = None,
) -> PairReport:
    """Evaluate a pair, print its tables, and write JSON, Markdown and a plot.

    Args:
        pair: ``TARGET,DRAFTER`` (names, folders, ``ngram``), or a drafter that names its target.
        output: A folder for ``evaluation.json``, ``.md`` and ``.svg`` or ``.png``, made where it
            is missing; None writes no files.
        replace: Write over files that are there.
        plot_format: ``"svg"`` or ``"png"``.
        kinds: As for ``load_kinds``; none takes all kinds.
        prompts_per_kind: At most so many prompts of each kind, always the same ones; None: all.
        gammas, temperatures, max_tokens, seed, acceptance, width: As for ``evaluate_pair``.
        threads: Threads of one step on the CPU.
        backend, draft_backend: As for ``Model.load``.
        progress: Called with a stage and the fraction of it that is done.

    Raises:
        InvalidInputError: A bad argument, files that are there, or a folder that cannot be written.
        PullError: A model or a package with prompts cannot be fetched.
        ModelFolderError, BackendError, VocabularyMismatchError, ModelRunError: From the models.
    """
    if plot_format not in FORMATS:
        raise InvalidInputError(f"the plot's format is {plot_format!r}; it must be svg or png")
    if output is not None:
        check_matplotlib()
        _check_output(output, plot_format, replace)
    target_name, draft_name = split_pair(pair)
    prompts = load_kinds(kinds, prompts_per_kind, progress=progress)
    target = Model.load(target_name, threads=threads, backend=backend)
    draft: Model | Ngram = Ngram()
    if draft_name == target_name and draft_backend == backend:
        draft = target
    elif draft_name != _NGRAM:
        draft = Model.load(draft_name, threads=threads, backend=draft_backend)
    report = evaluate_pair(
        target,
        draft,
        prompts,
        gammas=gammas,
        temperatures=temperatures,
        max_tokens=max_tokens,
        seed=seed,
        acceptance=acceptance,
        width=width,
        progress=progress,
    )
    if output is not None:
        write_report(report, output, plot_format=plot_format)
    print_report(report)
    return report


def split_pair(pair: str) -> tuple[str, str]:
    """Target and drafter of ``TARGET,DRAFTER``, or of a drafter that names its target.

    Raises:
        InvalidInputError: It is neither.
        ModelFolderError, PullError: The drafter's folder cannot be read or made.
    """
    names = [name.strip() for name in pair.split(",")]
    if not all(names) or len(names) > 2:
        raise InvalidInputError(f"the pair is {pair!r}; give TARGET,DRAFTER or a drafter")
    if len(names) == 2:
        return names[0], names[1]
    (drafter,) = names
    if drafter in known_models():
        target = load_recipe(drafter).target
    else:
        source = ModelFolder.open(resolve(drafter), verify=False).source
        target = source.get("target")
    if not isinstance(target, str):
        raise InvalidInputError(f"{drafter} does not name its target; give TARGET,{drafter}")
    return target, drafter


def write_report(report: PairReport, folder: Path, *, plot_format: str = "svg") -> list[Path]:
    """Write JSON, Markdown and the plot into ``folder``; each file is there whole or not at all.

    Returns:
        The three files.

    Raises:
        InvalidInputError: The folder cannot be written.
    """
    writers: dict[str, Callable[[Path], object]] = {
        "json": lambda file: file.write_text(report.to_json(), encoding="utf-8"),
        "md": lambda file: file.write_text(markdown(report), encoding="utf-8"),
        plot_format: lambda file: write_plot(report, file),
    }
    files = []
    for suffix, write in writers.items():
        file = folder / f"{NAME}.{suffix}"
        partial = folder / f".{NAME}.{secrets.token_hex(4)}.{suffix}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write(partial)
            os.replace(partial, file)
        except OSError as error:
            raise _unwritable(file, error) from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        files.append(file)
    return files


def _check_output(folder: Path, plot_format: str, replace: bool) -> None:
    """Before minutes of measuring rather than after."""
    for suffix in ("json", "md", plot_format):
        file = folder / f"{NAME}.{suffix}"
        if file.exists() and not replace:
            raise InvalidInputError(
                f"{file}: already exists; name another folder or ask to replace"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{NAME}.{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(path: Path, error: OSError) -> InvalidInputError:
    return InvalidInputError(f"{path}: cannot be written ({error.strerror or error})")
