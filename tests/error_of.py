"""What every error of specdec must be: one line that names what is wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from specdec import SpecdecError


def error_of(
    kind: type[SpecdecError] | tuple[type[SpecdecError], ...],
    action: Callable[[], object],
    *names: str,
) -> str:
    """The message of the error that ``action`` raises: one line, which names what is wrong."""
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert type(caught.value).__module__ == "specdec.errors"
    assert message
    assert "\n" not in message
    for name in names:
        assert name in message, message
    return message
