"""The named layouts of fixed-shape graphs: how activations are held, and each linear's kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from specdec.convert.htp.weights import F16, W4, W4_MINIMA, W8, Kind


@dataclass(frozen=True)
class HtpLayout:
    """Activations of 16 bits (K/V of 8), or everything in float16; and the kinds of the linears."""

    name: str
    body: Kind
    """Of every linear of a layer that ``kinds`` does not name."""
    head: Kind = W8
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    """By a linear's name (``"layers.3.down"``, ``"head"``), before the two above."""

    is_quantised: bool = True
    """Whether activations are integers."""

    def kind(self, linear: str) -> Kind:
        """Of the linear of that name."""
        if linear in self.kinds:
            return self.kinds[linear]
        return self.head if linear == "head" else self.body

    def mixed(self, name: str, kinds: Mapping[str, Kind]) -> HtpLayout:
        """This layout under ``name``, with other kinds for some linears."""
        return replace(self, name=name, kinds={**self.kinds, **kinds})


HTP_LAYOUTS: Mapping[str, HtpLayout] = {
    layout.name: layout
    for layout in (
        HtpLayout("w8a16", W8),
        HtpLayout("w4a16", W4),
        *(HtpLayout(f"w4a16-b{block}", Kind(4, block)) for block in (64, 32, 16)),
        HtpLayout("w4a16-b32m", W4_MINIMA),
        HtpLayout("w4fp16-b32m", W4_MINIMA, F16, is_quantised=False),
        HtpLayout("fp16", F16, F16, is_quantised=False),
    )
}
DEFAULT_HTP_LAYOUT = "w8a16"
