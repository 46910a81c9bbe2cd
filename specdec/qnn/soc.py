"""The chips that models are compiled for.

Numbers and architectures are the provider's own: ``soc_table.h`` of onnxruntime-qnn
(``onnxruntime/core/providers/qnn/soc_utility``), where the names for people are its comments.
Architectures before v73 cannot share weights between graphs, and round 16-bit results differently:
they are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from specdec.checks import shown
from specdec.errors import InvalidInputError


@dataclass(frozen=True)
class Soc:
    """A system on a chip with a Hexagon NPU."""

    name: str
    """As ``--soc`` takes it."""
    part: str
    """Qualcomm's part number, as devices report it."""
    soc_model: int
    """QNN's number for it."""
    htp_arch: int
    """Version of its Hexagon tensor processor."""
    marketing: str
    """The name for people."""


SIMULATOR = Soc("simulator", "SM8650", 57, 75, "simulator of a Snapdragon 8 Gen 3")
"""Without a chip the simulator computes as architectures before v73 do, which rounds otherwise."""

SOCS = (
    Soc("sm8550", "SM8550", 43, 73, "Snapdragon 8 Gen 2"),
    Soc("sm8635", "SM8635", 68, 73, "Snapdragon 8s Gen 3"),
    Soc("sm7675", "SM7675", 70, 73, "Snapdragon 7+ Gen 3"),
    Soc("sm8650", "SM8650", 57, 75, "Snapdragon 8 Gen 3"),
    Soc("sm8750", "SM8750", 69, 79, "Snapdragon 8 Elite"),
    Soc("sm8850", "SM8850", 87, 81, "Snapdragon 8 Elite Gen 5"),
    Soc("x-elite", "SC8380XP", 60, 73, "Snapdragon X Elite"),
    Soc("x2-elite", "SC8480XP", 88, 81, "Snapdragon X2 Elite"),
)


def find_soc(name: str) -> Soc:
    """The chip of a name or part number; InvalidInputError with the known ones for another."""
    for soc in (*SOCS, SIMULATOR):
        if isinstance(name, str) and name.lower() in (soc.name, soc.part.lower()):
            return soc
    known = ", ".join(f"{soc.name} ({soc.marketing})" for soc in SOCS)
    raise InvalidInputError(f"soc is {shown(name)}; known are {known}, and simulator")
