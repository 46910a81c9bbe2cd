"""The plan of a fixed-shape model: which graphs make one step, and how to read their integers.

A fixed-shape model (for the Hexagon NPU) is a chain of graphs with quantised inputs and outputs,
one chain for each width that a step may have. The plan is written by the converter and read by the
runtime; it lies in the model folder as ``htp.json``.

Graphs of a chain, for width S, past P (the columns of K/V that every graph takes, the same for all
widths), layers ``first_layer .. end_layer - 1``:

- kind ``"layers"``: inputs ``x`` [1, S, hidden], ``cos`` and ``sin`` [1, 1, S, head_dim / 2],
  ``mask`` [1, 1, S, P + S] (additive; the S new columns last), ``past_key.{i}``
  [1, kv_heads, head_dim, P], ``past_value.{i}`` [1, kv_heads, P, head_dim]; outputs ``hidden``
  [1, S, hidden], ``new_key.{i}`` [1, kv_heads, head_dim, S], ``new_value.{i}``
  [1, kv_heads, S, head_dim]; i counts the layers of the whole model.
- kind ``"logits"``: input ``x``, output ``logits`` [1, S, head_size].
- kind ``"best"``: input ``x``, output ``best`` int32 [1, S], the argmax of each row's logits.

``hidden`` of one graph is ``x`` of the next, in the same encoding. New columns have the encoding of
the past, so that they are copied as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specdec.errors import ModelFolderError

PLAN_FILE = "htp.json"
KINDS = ("layers", "logits", "best")
ENCODING_TYPES = ("uint8", "uint16", "float16")


@dataclass(frozen=True)
class Encoding:
    """How a tensor's elements stand for numbers: ``(q - zero_point) * scale``; float16 as it is."""

    type: str
    scale: float = 1.0
    zero_point: int = 0


@dataclass(frozen=True)
class Part:
    """One graph of the chain, in every width."""

    name: str
    kind: str
    first_layer: int
    end_layer: int
    graphs: Mapping[int, str]
    """Width -> file name."""


@dataclass(frozen=True)
class HtpPlan:
    """Everything that the runtime needs to run a fixed-shape model beyond its manifest."""

    past: int
    """Columns of past K/V that every graph takes; the tokens that a context may hold."""
    widths: tuple[int, ...]
    """Tokens that a step may have, ascending; narrower ones are padded."""
    x: Encoding
    """Of the first graph's ``x``, and so of the embedding's rows."""
    rotary: Encoding
    """Of ``cos`` and ``sin``."""
    key: tuple[Encoding, ...]
    """Of each layer's keys, past and new."""
    value: tuple[Encoding, ...]
    logits: Encoding
    mask_allowed: int
    """The element of ``mask`` (as an unsigned 16-bit pattern) that lets a column be seen."""
    mask_blocked: int
    """The one that hides it."""
    embedding_file: str
    """Raw ``[vocab, hidden]`` elements in the encoding of ``x``."""
    rotary_file: str
    """Raw ``[2, past + widest, head_dim / 2]`` elements: cosines, then sines."""
    sink_file: str | None
    """``.npz`` with what position 0 holds, computed in float: see ``specdec.htp_sink``."""
    parts: tuple[Part, ...]

    def chain(self, width: int, head: str | None) -> list[Part]:
        """The parts of a step of ``width``, in order; ``head``: ``"logits"``, ``"best"``, None."""
        return [
            part
            for part in self.parts
            if (part.kind == "layers" or part.kind == head) and width in part.graphs
        ]

    def has_head(self, kind: str) -> bool:
        """Whether there is a ``"logits"`` or ``"best"`` head."""
        return any(part.kind == kind for part in self.parts)

    def weight_groups(self) -> list[tuple[Part, ...]]:
        """The parts by the weights that they read: the heads have theirs in common."""
        heads = tuple(part for part in self.parts if part.kind != "layers")
        groups = [(part,) for part in self.parts if part.kind == "layers"]
        return [*groups, heads] if heads else [*groups]

    def write(self, folder: Path) -> None:
        """Writes ``htp.json`` into ``folder``."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"
        (folder / PLAN_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> HtpPlan:
        """Reads a plan; ModelFolderError where it is damaged or of another kind."""
        try:
            return _plan(json.loads(file.read_text(encoding="utf-8")))
        except OSError as error:
            raise ModelFolderError(f"{file}: cannot be read ({error.strerror})") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelFolderError(
                f"{file}: not a plan of this version ({error}); convert the model again"
            ) from error


def _plan(document: dict[str, Any]) -> HtpPlan:
    values = dict(document)
    for name in ("x", "rotary", "logits"):
        values[name] = _encoding(values[name])
    for name in ("key", "value"):
        values[name] = tuple(_encoding(entry) for entry in values[name])
    values["widths"] = tuple(values["widths"])
    values["parts"] = tuple(_part(entry) for entry in values["parts"])
    plan = HtpPlan(**values)
    names = [plan.embedding_file, plan.rotary_file, plan.sink_file or ""]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("the name of a file is not a text")
    whole = [plan.past, plan.mask_allowed, plan.mask_blocked, *plan.widths]
    if not all(type(value) is int and value >= 0 for value in whole):
        raise ValueError("a size is not a whole number")
    if plan.past < 1 or not plan.widths or list(plan.widths) != sorted(set(plan.widths)):
        raise ValueError("'past' or 'widths' is out of range")
    if plan.widths[0] < 1 or len(plan.key) != len(plan.value):
        raise ValueError("'widths', 'key' or 'value' is out of range")
    for width in plan.widths:
        layers = plan.chain(width, None)
        ends = [0, *(part.end_layer for part in layers)]
        if [part.first_layer for part in layers] != ends[:-1] or ends[-1] != len(plan.key):
            raise ValueError(f"the layers of width {width} are not whole")
    return plan


def _encoding(entry: dict[str, Any]) -> Encoding:
    encoding = Encoding(**entry)
    if encoding.type not in ENCODING_TYPES:
        raise ValueError(f"unknown encoding {encoding.type!r}")
    if not (encoding.scale > 0 and type(encoding.zero_point) is int):
        raise ValueError("a scale or a zero point is out of range")
    return encoding


def _part(entry: dict[str, Any]) -> Part:
    values = dict(entry)
    values["graphs"] = {int(width): str(name) for width, name in values["graphs"].items()}
    part = Part(**values)
    if part.kind not in KINDS:
        raise ValueError(f"unknown kind of part {part.kind!r}")
    return part
