"""Generators of tiny models."""

from __future__ import annotations

from typing import Any

import pytest

from specdec import Generator, Model
from specdec._core import Decoder
from tests.generator.checks import DECODERS


@pytest.fixture
def generator(target: Model) -> Generator:
    """Drafts with the target itself, so that most drafts are accepted."""
    decoders: list[Decoder] = []
    original = Model.new_decoder

    def new_decoder(self: Model, **options: Any) -> Decoder:
        decoders.append(original(self, **options))
        return decoders[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "new_decoder", new_decoder)
        generator = Generator(target, target, draft_length=4)
    assert len(decoders) == 2
    DECODERS[generator] = decoders
    return generator
