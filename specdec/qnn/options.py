"""Options of the QNN provider that make sense for decoding, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from specdec.checks import check_whole, shown
from specdec.errors import InvalidInputError

PERFORMANCE_MODES = (
    "default", "burst", "sustained_high_performance", "high_performance", "balanced",
    "low_balanced", "high_power_saver", "power_saver", "low_power_saver", "extreme_power_saver",
)  # fmt: skip
PRIORITIES = ("low", "normal", "normal_high", "high")
PROFILING_LEVELS = ("off", "basic", "detailed")


@dataclass(frozen=True)
class QnnOptions:
    """How the NPU runs a model.

    Raises:
        InvalidInputError: A value is none of those named here.
    """

    performance_mode: str = "burst"
    """Clock and voltage votes: one of ``PERFORMANCE_MODES``. Decoding is a chain of short steps
    with pauses between them, which lower modes would let clock down."""
    priority: str = "normal"
    """Against other users of the NPU: ``"low"``, ``"normal"``, ``"normal_high"`` or ``"high"``."""
    vtcm_mb: int | None = None
    """Megabytes of the NPU's own memory to plan with; None takes all that the chip has. A smaller
    figure spills to DDR, and leaves room for others."""
    soc_model: int | None = None
    """QNN's number of the chip to prepare graphs for; None takes the device's own. For compiled
    models it must be the one that they were compiled for."""
    htp_arch: int | None = None
    """Hexagon version, for a chip that has no number; ``soc_model`` goes before it."""
    finalization: int | None = None
    """0 to 3: how long preparing a graph may take to make it faster; None is QNN's default.
    Compiled models are prepared already."""
    shared_memory: bool = False
    """Keep the past's keys and values in memory that CPU and NPU share, so that no step copies
    them. Needs a device with libcdsprpc; the simulator has none."""
    rpc_control_latency: int | None = None
    """Microseconds in which the NPU should answer calls; None leaves it to QNN."""
    profiling: str = "off"
    """``"off"``, ``"basic"`` or ``"detailed"``; needs ``profiling_file``."""
    profiling_file: str | None = None
    """CSV file that profiles are written to."""
    library: str | None = None
    """The QNN HTP library to use instead of the one in onnxruntime-qnn."""

    def __post_init__(self) -> None:
        _check_choice("performance_mode", self.performance_mode, PERFORMANCE_MODES)
        _check_choice("priority", self.priority, PRIORITIES)
        _check_choice("profiling", self.profiling, PROFILING_LEVELS)
        for name, low, high in (
            ("vtcm_mb", 1, 64),
            ("soc_model", 1, 10_000),
            ("htp_arch", 68, 255),
            ("finalization", 0, 3),
            ("rpc_control_latency", 1, 1_000_000),
        ):
            if (value := getattr(self, name)) is not None:
                check_whole(name, value, low, high, f"{low} to {high}, or None")
        if not isinstance(self.shared_memory, bool):
            raise InvalidInputError(
                f"shared_memory is {shown(self.shared_memory)}; it must be True or False"
            )
        if (self.profiling == "off") != (self.profiling_file is None):
            raise InvalidInputError(
                "profiling needs both a level other than 'off' and a profiling_file"
            )
        if self.library is not None and not Path(self.library).is_file():
            raise InvalidInputError(f"library is {shown(self.library)}; there is no such file")

    @classmethod
    def parse(cls, texts: Sequence[str]) -> QnnOptions:
        """Options from ``name=value`` texts, as the command line has them."""
        kinds = {field.name: str(field.type) for field in fields(cls)}
        values: dict[str, Any] = {}
        for text in texts:
            name, given, value = text.partition("=")
            if name not in kinds or not given:
                raise InvalidInputError(
                    f"NPU option {shown(text)}: give name=value, with one of {', '.join(kinds)}"
                )
            values[name] = _parse_value(value, kinds[name])
        return cls(**values)

    def provider_options(self) -> dict[str, str]:
        """What is given here, as the provider's own options."""
        options = {
            "htp_performance_mode": self.performance_mode,
            "qnn_context_priority": self.priority,
            # Inputs and outputs are integers already; nothing of the graph is left for the CPU.
            "offload_graph_io_quantization": "0",
        }
        optional = {
            "vtcm_mb": self.vtcm_mb,
            "soc_model": self.soc_model,
            "htp_arch": self.htp_arch,
            "htp_graph_finalization_optimization_mode": self.finalization,
            "rpc_control_latency": self.rpc_control_latency,
            "profiling_file_path": self.profiling_file,
            "backend_path": self.library,
        }
        options |= {name: str(value) for name, value in optional.items() if value is not None}
        if self.profiling != "off":
            options["profiling_level"] = self.profiling
        if self.shared_memory:
            options["enable_htp_shared_memory_allocator"] = "1"
        return options


def _parse_value(text: str, kind: str) -> Any:
    """A value of a field; one that cannot be parsed is left to the field's own check."""
    if kind == "bool" and text in ("true", "false"):
        return text == "true"
    if kind.startswith("int") and text.removeprefix("-").isdecimal():
        return int(text)
    return text


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidInputError(
            f"{name} is {shown(value)}; it must be one of {', '.join(map(repr, choices))}"
        )
