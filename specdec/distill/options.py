"""What ``specdec distill`` can be asked for, checked before anything is done.

This is the one list of its options: the command line is made of it, and so nothing here loads
torch until options are checked.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from specdec.checks import check_number, check_whole
from specdec.errors import InvalidInputError

TEACHERS = ("cached", "online")
DTYPES = ("bfloat16", "float32")
MINUTES = 25.0
SHAPE, TEXT, TRAINING, RUN = "The drafter", "The text", "Training", "The run"
"""Parts of the command's help."""
_MOST = 10**12

# What may differ between two calls for the same output: it decides nothing of the weights.
_FREE = ("threads", "save_seconds", "layout", "prompts_per_kind", "follow")


def _option(default: Any, part: str | None, text: str, *, otherwise: str | None = None) -> Any:
    """A field that is an option of the command.

    Args:
        default: Its value where it is not given.
        part: The part of the help that it stands in; None: the first.
        text: What it is, for the help.
        otherwise: What is said instead of the default.
    """
    return field(default=default, metadata={"part": part, "help": text, "otherwise": otherwise})


@dataclass(frozen=True)
class Options:
    """One field for each option of the command; None is chosen from the target and measured."""

    minutes: float | None = _option(
        None, None, "About how long all of it may take.", otherwise=f"{MINUTES:.0f}"
    )
    """Turned into tokens once, by what is measured."""

    kind: str | None = _option(
        None,
        SHAPE,
        "attached (reads the target's states) or standalone.",
        otherwise="attached for a GGUF file",
    )
    """``attached``: on the target's hidden state and K/V; ``standalone``: with K/V of its own."""
    size: str | None = _option(None, SHAPE, "Parameters in its layers, such as 115m.")
    """Without embedding and head."""
    cost: float | None = _option(None, SHAPE, "Its step as a fraction of the target's.")
    """By the weights that both read."""
    target_layers: tuple[int, ...] | None = _option(
        None, SHAPE, "The target's layers that it starts from: 0,10,20,29."
    )
    head: int | None = _option(None, SHAPE, "Ids in its head.")
    """None: as many as the ``drafter.gguf`` of ``initial`` has, and the same; else by the text."""
    initial: str | None = _option(
        None, SHAPE, "Weights to begin with: a run's checkpoint.pt, or a drafter.gguf."
    )
    origin: str = _option("target", SHAPE, "Where its first weights come from: target or random.")
    weights: str = _option(
        "q8_0", SHAPE, "How its file holds matrices: q8_0, or q4_1, trained through its rounding."
    )
    layout: str | None = _option(
        None, SHAPE, "How it holds weights: a layout of convert's, or for an NPU of quantize's."
    )

    prompts: tuple[str, ...] = _option(
        (),
        TEXT,
        "A file of prompts for the target to answer; may be repeated.",
        otherwise="the target writes them itself",
    )
    text: str | None = _option(None, TEXT, "A folder of text that is there already.")
    """Shards, instead of text that the target writes now."""
    text_tokens: int | None = _option(
        None, TEXT, "Tokens for the target to write.", otherwise="by time"
    )
    length: int = _option(400, TEXT, "Tokens of its longest conversation.")
    """At most the target's context."""
    follow: bool = _option(False, TEXT, "Take in new shards between epochs.")
    """Those that have come into the folder of text."""
    chat_template: str | None = _option(
        None,
        TEXT,
        "A Jinja file, or the name of a template that comes with specdec: llama-2.",
        otherwise="the target's own",
    )
    conversations: int = 128
    """Conversations that are begun for one shard of text."""

    tokens: int | None = _option(None, TRAINING, "Tokens to train on.", otherwise="by time")
    """Each as often as it is read."""
    teacher: str | None = _option(
        None,
        TRAINING,
        "cached (the target's states on disk) or online.",
        otherwise="cached on a CPU",
    )
    """``online``: computed for each batch."""
    loss: str = _option("lk", TRAINING, "kl, reverse_kl, tvd, tvd++, lk or lk_mix.")
    loss_from: float = _option(0.6, TRAINING, "Share of the run that is KL alone.")
    loss_share: float = _option(0.7, TRAINING, "How much of KL the loss replaces then.")
    depth: int = _option(2, TRAINING, "Drafts of a round that are unrolled.")
    on_policy: float = _option(
        0.0, TRAINING, "Share of the batches that the drafter writes itself."
    )
    on_policy_tokens: int = _option(8, TRAINING, "Tokens that it writes then.")
    optimizer: str = _option("adamw", TRAINING, "adamw or muon.")
    rate: float = _option(8e-4, TRAINING, "Highest learning rate.")
    batch_tokens: int = _option(2048, TRAINING, "Tokens of a batch.")
    accumulate: int = _option(1, TRAINING, "Batches of a step.")
    warmup: int = _option(20, TRAINING, "Steps of a rising rate.")
    user_weight: float = _option(0.3, TRAINING, "What the user's turns count.")
    evaluate_tokens: int | None = _option(
        None, TRAINING, "Tokens between two measurements.", otherwise="12 in a run"
    )
    held_out: int = _option(64, TRAINING, "Conversations measured on.")
    save_seconds: float = 60.0
    """Seconds between two checkpoints."""

    seed: int = _option(1, RUN, "Of everything.")
    device: str | None = _option(
        None, RUN, "What to train on.", otherwise="a GPU where there is one"
    )
    dtype: str | None = _option(
        None, RUN, "Of matrix products: bfloat16 or float32.", otherwise="bfloat16"
    )
    threads: int | None = _option(None, RUN, "Threads.", otherwise="the libraries' own")
    prompts_per_kind: int = 2
    """Prompts of each kind that the finished drafter is measured with; 0: it is not."""

    def check(self) -> None:
        """Raise InvalidInputError, naming the option, for what cannot be."""
        from specdec.convert.htp.layouts import HTP_LAYOUTS
        from specdec.convert.layouts import LAYOUTS
        from specdec.distill.architecture import parse_size
        from specdec.distill.initial import ORIGINS
        from specdec.distill.losses import Loss
        from specdec.distill.optim import KINDS as OPTIMIZERS
        from specdec.distill.rounding import WEIGHTS
        from specdec.distill.students import KINDS

        for name, allowed in (
            ("kind", KINDS),
            ("teacher", TEACHERS),
            ("optimizer", OPTIMIZERS),
            ("origin", ORIGINS),
            ("dtype", DTYPES),
            ("weights", WEIGHTS),
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
        self._check_together(npu_layout=self.layout in HTP_LAYOUTS)

    def _check_together(self, *, npu_layout: bool) -> None:
        for first, second in (("minutes", "tokens"), ("size", "cost"), ("text", "prompts")):
            if getattr(self, first) and getattr(self, second):
                raise InvalidInputError(f"both {first} and {second} are given; choose one")
        if self.target_layers is not None and (self.size or self.cost):
            raise InvalidInputError("both target layers and a size or cost are given; choose one")
        if self.kind == "attached" and npu_layout:
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
