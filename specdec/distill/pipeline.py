"""``specdec distill`` without its options: text, plan, training, and the finished drafter.

Everything a run makes lies in ``OUTPUT.work``: ``text/``, ``states/``, ``plan.json``,
``head_ids.npy``, ``initial.pt``, ``train/`` and ``drafter.gguf``. Each stage finds what is there
and goes on with it; ``OUTPUT`` itself appears at the end, whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from specdec.distill.options import Options
from specdec.distill.run import Run
from specdec.distill.target import open_target
from specdec.distill.world import World, join
from specdec.errors import InvalidInputError, ModelFolderError
from specdec.file_lock import file_lock

Progress = Callable[[str, float], None]
Say = Callable[[str], None]


def distill(
    target: str,
    output: Path,
    options: Options | None = None,
    *,
    replace: bool = False,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Path:
    """Make a drafter for ``target``; called again after it was killed, it goes on where it was.

    Under ``torchrun`` all processes call it: they share each step's batches, and the first one does
    everything else.

    Args:
        target: A known model's name, a GGUF file, or a Hugging Face folder.
        output: The model folder to make; what is being made lies in ``OUTPUT.work`` beside it.
        options: What is asked for.
        replace: Replace a model folder that is there.
        progress: Called with a stage and the fraction of it that is done.
        say: Called with lines for people: the plan, and what came out.

    Returns:
        ``output``.

    Raises:
        InvalidInputError: A bad option, other options than the run was begun with, or a disk that
            is too full.
        CheckpointError, PullError: The target cannot be read or fetched.
        ModelFolderError: ``output`` exists or cannot be written.
    """
    options = options or Options()
    options.check()
    if output.exists() and not replace:
        raise ModelFolderError(f"{output}: already exists; name another folder or ask to replace")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with join() as world:
        quiet = not world.first
        report: Progress = (lambda stage, part: None) if quiet or progress is None else progress
        tell: Say = (lambda line: None) if quiet or say is None else say
        work = output.with_name(f"{output.name}.work")
        with _one_at_a_time(work, world), open_target(target, report) as model:
            run = Run(model, work, options, world, report, tell)
            run.prepare()
            run.train()
            if world.first:
                run.finish(output, replace=replace)
            world.barrier()
    return output


@contextmanager
def _one_at_a_time(work: Path, world: World) -> Iterator[None]:
    if not world.first:
        yield
        return

    def waiting() -> None:
        raise InvalidInputError(f"{work}: another process is making this drafter")

    try:
        lock = file_lock(work / ".lock", on_wait=waiting)
        lock.__enter__()
    except OSError as error:
        raise InvalidInputError(f"{work}: cannot be written ({error.strerror})") from error
    try:
        yield
    finally:
        lock.__exit__(None, None, None)
