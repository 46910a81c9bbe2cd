"""``specdec pull``: a known model, fetched, checked and converted."""

from __future__ import annotations

from typing import Annotated

import typer

from specdec.errors import InvalidInputError


def pull(
    name: Annotated[str | None, typer.Argument(help="One of the names that --list shows.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Convert again, even if the folder is intact.")
    ] = False,
    list_known: Annotated[
        bool, typer.Option("--list", help="Show the known models instead.")
    ] = False,
) -> None:
    """Fetch a known model, check it and convert it; prints its folder.

    Does nothing where that was done before. Models live in SPECDEC_HOME, or else in the platform's
    cache folder.
    """
    if list_known:
        _print_known()
        return
    if name is None:
        raise InvalidInputError("name a model to pull; --list shows the known ones")

    from specdec import hub
    from specdec.cli.console import StageProgress

    with StageProgress(name) as progress:
        folder = hub.pull(name, progress=progress, replace=replace)
    print(folder)


def _print_known() -> None:
    from specdec.recipe import known_models, load_recipe

    for name in known_models():
        recipe = load_recipe(name)
        made_for = f" [drafter for {recipe.target}]" if recipe.target else ""
        print(f"{name}: {recipe.description} ({recipe.license}){made_for}")
