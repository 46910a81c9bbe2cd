"""Chat templates for models whose checkpoints bring none, one Jinja file each."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from specdec.errors import CheckpointError

_SUFFIX = ".jinja"


def template_names() -> list[str]:
    """The templates that are known by name."""
    return sorted(
        entry.name.removesuffix(_SUFFIX)
        for entry in resources.files(__name__).iterdir()
        if entry.name.endswith(_SUFFIX)
    )


def load_template(name_or_file: str) -> str:
    """The text of a template that is known by name, or in a file.

    Raises:
        CheckpointError: Neither a name nor a readable file.
    """
    if name_or_file in template_names():
        return resources.files(__name__).joinpath(name_or_file + _SUFFIX).read_text("utf-8")
    try:
        return Path(name_or_file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"chat template {name_or_file!r} is neither a file nor one of: "
            f"{', '.join(template_names())}"
        ) from error
