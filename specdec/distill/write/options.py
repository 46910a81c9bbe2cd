"""What is to be written, and what of it decides the text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from specdec.checks import check_number, check_whole, shown
from specdec.convert.layouts import LAYOUTS
from specdec.errors import InvalidInputError

ENGINES = ("onnx", "torch")


@dataclass(frozen=True)
class Temperature:
    """A way to sample answers: temperature (0: greedy), top-p, and its share of the answers."""

    temperature: float
    top_p: float
    share: float


ANSWERS = (
    Temperature(0.0, 1.0, 0.30),
    Temperature(0.3, 1.0, 0.10),
    Temperature(0.6, 1.0, 0.22),
    Temperature(0.8, 1.0, 0.08),
    Temperature(1.0, 1.0, 0.30),
)


@dataclass(frozen=True)
class WriteOptions:
    """What ``write_text`` writes.

    Everything but ``tokens`` and ``threads`` decides the text and is kept in the manifest: a folder
    is gone on with only under the same values.
    """

    tokens: int = 1_000_000
    """Stop at the first shard that brings the folder to this many tokens."""
    length: int = 400
    """Longest conversation, template included, in tokens."""
    user_tokens: int = 80
    """Longest user's turn without an opening; each kind of opening has its own."""
    second_turn: float = 0.3
    """Share of the conversations that go on to a second turn."""
    openings: float = 0.75
    """Share of the conversations whose user's turn begins with an opening of ours."""
    topics: float = 0.6
    """Share of the openings that go on with a word out of the vocabulary: without one the target
    asks about the same few things, and a drafter learns little of all others."""
    answers: tuple[Temperature, ...] = ANSWERS
    prompts: tuple[str, ...] = ()
    """Names as in ``specdec.benchmark.prompts.load_prompts``; none: the target writes the user."""
    chat_template: str | None = None
    """A template's name or file, as ``convert`` takes it; None: the target's own."""
    seed: int = 1
    conversations: int = 256
    """Conversations that are begun for one shard; what is dropped is not replaced."""
    rows: int = 64
    """Conversations that are written at once."""
    engine: str = "onnx"
    """``"onnx"`` or ``"torch"``; ``engine.py`` has the figures behind the default."""
    layout: str = "fused"
    """How the ``"onnx"`` engine holds the weights: one of ``LAYOUTS``."""
    device: str = "cpu"
    """Where the ``"torch"`` engine runs."""
    threads: int | None = None
    """None: what the engine takes by itself."""

    def check(self) -> None:
        """Raise InvalidInputError, naming the field, for a value that makes no sense."""
        for name, low, high in (
            ("tokens", 1, 10**12),
            ("length", 16, 2**22),
            ("user_tokens", 1, 2**22),
            ("seed", 0, 2**63 - 1),
            ("conversations", 1, 2**20),
            ("rows", 1, 4096),
        ):
            check_whole(name, getattr(self, name), low, high, f"{low} to {high}")
        if self.threads is not None:
            check_whole("threads", self.threads, 1, 1024, "1 to 1024, or None")
        check_number("second_turn", self.second_turn, 0, 1)
        check_number("openings", self.openings, 0, 1)
        check_number("topics", self.topics, 0, 1)
        if not self.answers:
            raise InvalidInputError("answers is empty; name at least one temperature")
        for answer in self.answers:
            check_number("temperature", answer.temperature, 0, 100)
            check_number("top_p", answer.top_p, 1e-6, 1)
            check_number("share", answer.share, 1e-9, 1e9)
        if self.engine not in ENGINES:
            raise InvalidInputError(
                f"engine is {shown(self.engine)}; choose one of {', '.join(ENGINES)}"
            )
        if self.layout not in LAYOUTS:
            raise InvalidInputError(
                f"text is not written in layout {shown(self.layout)}: choose one of "
                f"{', '.join(LAYOUTS)}"
            )

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the text, as the manifest keeps them."""
        values = asdict(self)
        for name in ("tokens", "threads", "layout" if self.engine == "torch" else "device"):
            del values[name]
        values["answers"] = [list(asdict(answer).values()) for answer in self.answers]
        values["prompts"] = list(self.prompts)
        return values
