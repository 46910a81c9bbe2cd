"""Models by name: fetched, checked and converted once, kept in a cache folder."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from specdec.errors import ModelFolderError, PullError
from specdec.file_lock import file_lock
from specdec.model_folder import HIDDEN_SINCE, MANIFEST, ModelFolder
from specdec.recipe import Recipe, UserSource, known_models, load_recipe

if TYPE_CHECKING:
    from specdec.checkpoint_source import Progress

__all__ = ["is_at_hand", "known_models", "models_home", "pull", "resolve"]


def models_home() -> Path:
    """The folder for everything that is pulled: ``SPECDEC_HOME``, else the platform's cache."""
    if home := os.environ.get("SPECDEC_HOME"):
        return Path(home).expanduser().absolute()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "specdec"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "specdec"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "specdec"


def pull(name: str, *, progress: Progress | None = None, replace: bool = False) -> Path:
    """Make a known model's folder, unless an intact one is there already.

    A folder that is damaged, or was made from another checkpoint or in another layout than
    today's, is made anew. Processes that pull the same model at once wait for the first.

    Args:
        name: One of ``known_models()``.
        progress: Called with a stage and the fraction of it that is done.
        replace: Convert again even if the folder is intact.

    Returns:
        The model folder.

    Raises:
        PullError: Unknown name, or a checkpoint that cannot be had or is not the right one; for a
            model whose licence its users accept themselves, what to get and to run.
        CheckpointError, ModelFolderError: From the conversion.
    """
    report = progress or (lambda stage, fraction: None)
    recipe = load_recipe(name)
    destination = _folder_of(name)
    if isinstance(recipe.source, UserSource):
        return _brought_by_user(recipe, recipe.source, replace=replace)
    if not replace and _is_current(destination, recipe):
        return destination
    waiting = f"waiting for another process to make {name}"
    try:
        with file_lock(
            models_home() / "models" / f".{name}.lock", on_wait=lambda: report(waiting, 0.0)
        ):
            if replace or not _is_current(destination, recipe):
                _make(recipe, destination, report)
    except OSError as error:
        raise PullError(f"cannot write below {models_home()}: {error}") from error
    return destination


def resolve(name_or_folder: str | os.PathLike[str], *, progress: Progress | None = None) -> Path:
    """The model folder for a folder or a name; a known model that is not here yet is pulled.

    So is one that is here in a form that attached drafters cannot read. A string is a folder if it
    is one with a ``model.json``, and a name otherwise.

    Args:
        name_or_folder: A model folder, or a name.
        progress: As for ``pull``; by default stages are told on standard error.

    Raises:
        PullError: Neither a model folder nor a known name, or pulling failed.
        ModelFolderError: A folder that is not a model folder.
    """
    folder = Path(name_or_folder).expanduser()
    if (folder / MANIFEST).is_file():
        return folder
    is_name = isinstance(name_or_folder, str) and name_or_folder in known_models()
    if not is_name and (folder.is_dir() or not isinstance(name_or_folder, str)):
        what = f"has no {MANIFEST}" if folder.exists() else "does not exist"
        known = ", ".join(known_models())
        raise ModelFolderError(f"{folder}: {what}; name a model folder or one of: {known}")
    name = str(name_or_folder)
    if not is_name and (own := _own_folder(name)) is not None:
        return own
    recipe = load_recipe(name)
    destination = _folder_of(name)
    if isinstance(recipe.source, UserSource):
        return _brought_by_user(recipe, recipe.source)
    # The whole content is checked when the folder is opened; here it is enough to know the model.
    model = _open_made_from(recipe, destination, verify=False)
    if model is not None and model.graph_version >= HIDDEN_SINCE and not model.is_outdated:
        return destination
    return pull(name, progress=progress or _StageLines(name))


def is_at_hand(name: str) -> bool:
    """Whether ``resolve`` gives a known model without its user having to fetch anything."""
    fetched = not isinstance(load_recipe(name).source, UserSource)
    return fetched or (_folder_of(name) / MANIFEST).is_file()


def _own_folder(name: str) -> Path | None:
    """A model that the user converted into the cache folder under a name of their own."""
    if not name.strip(".") or set(name) & set("/\\:"):
        return None
    folder = _folder_of(name)
    return folder if (folder / MANIFEST).is_file() else None


def _make(recipe: Recipe, destination: Path, report: Progress) -> None:
    # Slow to import, and not needed to run a model.
    from specdec.checkpoint_source import checkpoint
    from specdec.convert import convert

    downloads = models_home() / "downloads"
    with ExitStack() as stack:
        source = stack.enter_context(checkpoint(recipe, downloads, report))
        target_source = None
        if recipe.target is not None:
            target = load_recipe(recipe.target)
            target_source = stack.enter_context(checkpoint(target, downloads, report))
        convert(
            source,
            destination,
            name=recipe.name,
            target_source=target_source,
            sampling=dict(recipe.sampling),
            replace=destination.exists(),
            progress=report,
        )


def _brought_by_user(recipe: Recipe, source: UserSource, *, replace: bool = False) -> Path:
    """The folder that the user converted a model to, or an error that says how to get there."""
    folder = _folder_of(recipe.name)
    if replace or not (folder / MANIFEST).is_file():
        command = ["specdec", "convert", "FOLDER", "-o", str(folder), "--name", recipe.name]
        if source.chat_template is not None:
            command += ["--chat-template", source.chat_template]
        if replace:
            command.append("--replace")
        raise PullError(
            f"{recipe.name} is yours to bring ({recipe.license}): get {source.folder}, then run: "
            f"{shlex.join(command)}"
        )
    config = asdict(ModelFolder.open(folder, verify=False).config)
    for name, size in source.shape.items():
        if config.get(name) != size:
            raise ModelFolderError(
                f"{folder}: not {recipe.name}: its {name} is {config.get(name)} instead of {size}; "
                "convert the right checkpoint"
            )
    return folder


def _is_current(folder: Path, recipe: Recipe) -> bool:
    """Whether the folder is intact and is what ``pull`` would make now."""
    if not (folder / MANIFEST).is_file():
        return False
    from specdec.convert import DEFAULT_DRAFTER_LAYOUT, DEFAULT_LAYOUT, GRAPH_VERSION

    model = _open_made_from(recipe, folder, verify=True)
    layout = DEFAULT_DRAFTER_LAYOUT if recipe.role == "drafter" else DEFAULT_LAYOUT
    return model is not None and (model.layout, model.graph_version) == (layout, GRAPH_VERSION)


def _open_made_from(recipe: Recipe, folder: Path, *, verify: bool) -> ModelFolder | None:
    """The model folder if it is whole and was made by this very recipe."""
    try:
        model = ModelFolder.open(folder, verify=verify)
    except ModelFolderError:
        return None
    wanted = {"sha256": _sha256_of(recipe)}
    if recipe.target is not None:
        wanted["target_sha256"] = _sha256_of(load_recipe(recipe.target))
    same_source = wanted.items() <= model.source.items()
    return model if same_source and model.sampling == dict(recipe.sampling) else None


def _sha256_of(recipe: Recipe) -> str | None:
    return None if isinstance(recipe.source, UserSource) else recipe.source.sha256


def _folder_of(name: str) -> Path:
    return models_home() / "models" / name


class _StageLines:
    """One line on standard error for each stage of a pull that nobody asked to watch."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stage = ""

    def __call__(self, stage: str, fraction: float) -> None:
        if stage != self._stage:
            self._stage = stage
            print(f"specdec: {self._name}: {stage}", file=sys.stderr, flush=True)
