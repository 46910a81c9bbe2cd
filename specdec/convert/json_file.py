"""JSON files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from specdec.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; CheckpointError if there is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing: the checkpoint is incomplete") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # of the JSON, or of its encoding
        raise CheckpointError(f"{path}: not valid JSON ({error}); fetch it again") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: not a JSON object; fetch it again")
    return document


def read_optional_json(path: Path) -> dict[str, Any]:
    """As ``read_json``, and empty for a file that is not there."""
    return read_json(path) if path.is_file() else {}
