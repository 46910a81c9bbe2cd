"""What ``specdec distill`` can be asked for, checked before anything is done."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from specdec.checks import check_number, check_whole
from specdec.convert.htp.layouts import HTP_LAYOUTS
from specdec.convert.layouts import LAYOUTS
from specdec.distill.architecture import parse_size
from specdec.distill.initial import ORIGINS
from specdec.distill.losses import Loss
from specdec.distill.optim import KINDS as OPTIMIZERS
from specdec.distill.students import KINDS
from specdec.errors import InvalidInputError

TEACHERS = ("cached", "online")
DTYPES = ("bfloat16", "float32")
MINUTES = 25.0
_MOST = 10**12

# What may differ between two calls for the same output: it decides nothing of the weights.
_FREE = ("threads", "save_seconds", "layout", "prompts_per_kind", "follow")


@dataclass(frozen=True)
class Options:
    """One field for each option of the command; None is chosen from the target and measured."""

    kind: str | None = None
    """``attached`` (on the target's hidden state and K/V) or ``standalone`` (K/V of its own)."""
    size: str | None = None
    """Parameters of the drafter without embedding and head, such as ``115m``."""
    cost: float | None = None
    """A drafter's step as a fraction of the target's, by the weights they read."""
    target_layers: tuple[int, ...] | None = None
    """The target's layers that the drafter starts from."""
    head: int | None = None
    """Ids in the drafter's head."""
    origin: str = "target"
    """Where the first weights come from: the ``target``, or ``random``."""
    initial: str | None = None
    """A run's checkpoint, or a drafter's GGUF file, whose weights the drafter begins with."""

    minutes: float | None = None
    """Roughly how long all of it may take; turned into tokens once, by what is measured."""
    text_tokens: int | None = None
    """Tokens for the target to write."""
    tokens: int | None = None
    """Tokens to train on, each as often as it is read."""
    text: str | None = None
    """A folder of shards instead of text that the target writes now."""
    prompts: tuple[str, ...] = ()
    """Files of prompts for the target to answer; none: it writes the user's turns itself."""
    chat_template: str | None = None
    """As for ``convert``; None: the target's own."""
    length: int = 400
    """Longest conversation, in tokens; at most the target's context."""
    conversations: int = 128
    """Conversations that are begun for one shard of text."""
    follow: bool = False
    """Take in shards that have come into the folder of text between two epochs."""

    teacher: str | None = None
    """``cached`` (the target's states on disk) or ``online`` (computed for each batch)."""
    loss: str = "lk"
    loss_from: float = 0.6
    loss_share: float = 0.7
    depth: int = 2
    on_policy: float = 0.0
    on_policy_tokens: int = 8
    optimizer: str = "adamw"
    rate: float = 8e-4
    batch_tokens: int = 2048
    accumulate: int = 1
    warmup: int = 20
    user_weight: float = 0.3
    evaluate_tokens: int | None = None
    held_out: int = 64
    """Conversations that are measured on while training."""
    seed: int = 1

    device: str | None = None
    dtype: str | None = None
    threads: int | None = None
    save_seconds: float = 60.0
    layout: str | None = None
    """Of the drafter that is made: one of ``convert``'s, or of ``quantize``'s for an NPU."""
    prompts_per_kind: int = 2
    """Prompts of each kind that the finished drafter is measured with; 0: it is not."""

    def check(self) -> None:
        """Raise InvalidInputError, naming the option, for what cannot be."""
        for name, allowed in (
            ("kind", KINDS),
            ("teacher", TEACHERS),
            ("optimizer", OPTIMIZERS),
            ("origin", ORIGINS),
            ("dtype", DTYPES),
            ("layout", (*LAYOUTS, *HTP_LAYOUTS)),
        ):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise InvalidInputError(f"no {name} '{value}': choose one of {', '.join(allowed)}")
        for name, low, high in (
            ("head", 1, 2**31),
            ("text_tokens", 1, _MOST),
            ("length", 16, 2**22),
            ("conversations", 1, 2**20),
            ("tokens", 1, _MOST),
            ("depth", 1, 16),
            ("on_policy_tokens", 1, 1024),
            ("batch_tokens", 1, 2**24),
            ("accumulate", 1, 2**16),
            ("warmup", 0, _MOST),
            ("evaluate_tokens", 1, _MOST),
            ("held_out", 1, 10**6),
            ("seed", 0, 2**31),
            ("threads", 1, 1024),
            ("prompts_per_kind", 0, 10**6),
        ):
            value = getattr(self, name)
            if value is not None:
                check_whole(name, value, low, high, f"a whole number in {low}..{high}")
        for name, lowest, highest in (
            ("minutes", 1.0, 1e7),
            ("cost", 1e-6, 1.0),
            ("loss_from", 0.0, 1.0),
            ("loss_share", 0.0, 1.0),
            ("on_policy", 0.0, 1.0),
            ("rate", 1e-9, 1e3),
            ("user_weight", 0.0, 1e3),
            ("save_seconds", 0.0, 1e9),
        ):
            value = getattr(self, name)
            if value is not None:
                check_number(name, value, lowest, highest)
        Loss(self.loss)  # says which there are
        if self.size is not None:
            parse_size(self.size)
        self._check_together()

    def _check_together(self) -> None:
        for first, second in (("minutes", "tokens"), ("size", "cost"), ("text", "prompts")):
            if getattr(self, first) and getattr(self, second):
                raise InvalidInputError(f"both {first} and {second} are given; choose one")
        if self.target_layers is not None and (self.size or self.cost):
            raise InvalidInputError("both target layers and a size or cost are given; choose one")
        if self.kind == "attached" and self.layout in HTP_LAYOUTS:
            raise InvalidInputError(
                f"layout '{self.layout}' is for an NPU, where a drafter has K/V of its own: make a "
                "standalone one"
            )

    def deciding(self) -> dict[str, Any]:
        """The options that decide the drafter's weights, as plan.json keeps them."""
        values = asdict(self)
        for name in _FREE:
            del values[name]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def check_same(found: dict[str, Any], options: Options, work: Path) -> None:
    """Raise InvalidInputError where a run was begun with other options.

    Args:
        found: What ``deciding`` gave when it was begun.
        options: Those of now.
        work: The run's folder.
    """
    defaults = Options().deciding()
    for name, value in options.deciding().items():
        before = found.get(name, defaults[name])
        if before != value:
            raise InvalidInputError(
                f"{work}: was begun with {name} = {shown(before)}, not {shown(value)}; go on with "
                "the same options, name another output, or remove that folder"
            )


def shown(value: Any) -> str:
    """An option's value in a message."""
    return "none given" if value is None or value == [] else str(value)


def option_names() -> list[str]:
    """All fields, in order."""
    return [field.name for field in fields(Options)]
