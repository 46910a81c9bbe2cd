"""What a compiled model was compiled from and for, and whether that is what is here.

A context binary runs on chips of its own architecture only. The binaries of an older QNN load in a
newer one, and not the other way round; ONNX Runtime's version does not matter to them.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from specdec.errors import BackendError, ModelFolderError
from specdec.model_folder import ModelFolder
from specdec.qnn import provider
from specdec.qnn.device import device_soc
from specdec.qnn.options import QnnOptions
from specdec.qnn.soc import SIMULATOR, SOCS


@dataclass(frozen=True)
class Compiled:
    """The manifest's ``graph.compiled``."""

    soc: str
    soc_model: int
    htp_arch: int
    shared_weights: bool
    """Whether graphs that read the same weights share one binary."""
    onnxruntime: str
    onnxruntime_qnn: str
    qnn: str
    source: str
    """The folder that it was compiled from, relative to the compiled one."""
    source_sha256: str

    @classmethod
    def read(cls, folder: ModelFolder) -> Compiled | None:
        """The section of a folder; None for one that is not compiled."""
        section = folder.manifest["graph"].get("compiled")
        if section is None:
            return None
        try:
            compiled = cls(**{field.name: section[field.name] for field in fields(cls)})
        except (KeyError, TypeError) as error:
            raise ModelFolderError(
                f"{folder.path}: does not say what it was compiled for ({error}); compile it again"
            ) from error
        for name, value in asdict(compiled).items():
            wanted = type(getattr(_EXAMPLE, name))
            if type(value) is not wanted:
                raise ModelFolderError(
                    f"{folder.path}: its entry {name!r} is not of type {wanted.__name__}; compile "
                    "it again"
                )
        return compiled

    def session_config(self) -> Mapping[str, str]:
        """Configuration of the sessions that load the binaries.

        Where they share one, the first session that loads it leaves the other graphs to those that
        follow, which find theirs by name.
        """
        return {"ep.share_ep_contexts": "1"} if self.shared_weights else {}

    def command(self, folder: Path, soc: str | None = None) -> str:
        """What to run to compile it again."""
        source = os.path.normpath(folder / self.source)
        command = ["specdec", "compile", source, "-o", str(folder), "--soc", soc or self.soc]
        return shlex.join([*command, "--replace"])


_EXAMPLE = Compiled("", 0, 0, False, "", "", "", "", "")


def graph_sha256(folder: ModelFolder) -> str:
    """One hash of all that a folder's manifest lists."""
    entries = sorted((name, entry["sha256"]) for name, entry in folder.manifest["files"].items())
    return hashlib.sha256(repr(entries).encode()).hexdigest()


def check_compiled(folder: ModelFolder, compiled: Compiled, options: QnnOptions) -> QnnOptions:
    """Refuse binaries that are stale or made for something else; returns the options to load with.

    Raises:
        ModelFolderError: The folder was compiled from what its source no longer is.
        BackendError: It was compiled for another chip, or by a newer QNN.
    """
    _check_source(folder, compiled)
    _check_versions(folder, compiled)
    made = f"{folder.path}: was compiled for {compiled.soc} (Hexagon v{compiled.htp_arch})"
    if options.soc_model not in (None, compiled.soc_model):
        raise BackendError(
            f"{made}, soc_model {compiled.soc_model}, and the options say {options.soc_model}; "
            f"leave soc_model out, or run: {compiled.command(folder.path, _name(options))}"
        )
    (device,) = provider.devices()
    if not provider.is_simulator(device):
        _check_device(folder, compiled, device, made)
        return options
    if compiled.shared_weights:
        raise BackendError(
            f"{made} with weights shared between widths, which a device loads and the simulator "
            f"cannot; run: {compiled.command(folder.path, SIMULATOR.name)}"
        )
    return replace(options, soc_model=compiled.soc_model, htp_arch=compiled.htp_arch)


def _check_source(folder: ModelFolder, compiled: Compiled) -> None:
    try:
        source = ModelFolder.open(folder.path / compiled.source, verify=False)
    except ModelFolderError:
        return  # it did not come along to this machine
    if source.name == folder.name and graph_sha256(source) != compiled.source_sha256:
        raise ModelFolderError(
            f"{folder.path}: is stale: {source.path.resolve()}, which it was compiled from, was "
            f"converted again since; run: {compiled.command(folder.path)}"
        )


def _check_versions(folder: ModelFolder, compiled: Compiled) -> None:
    here = provider.versions().qnn
    if here and compiled.qnn and _numbers(here) < _numbers(compiled.qnn):
        raise BackendError(
            f"{folder.path}: was compiled by QNN {compiled.qnn} and here is {here}, which cannot "
            f"read it; pip install --upgrade {provider.PACKAGE} (it was {compiled.onnxruntime_qnn})"
        )


def _check_device(folder: ModelFolder, compiled: Compiled, device: Any, made: str) -> None:
    here = device_soc()
    if here is not None and here.htp_arch != compiled.htp_arch:
        raise BackendError(
            f"{made}, and this is {here.name} (Hexagon v{here.htp_arch}); where it was compiled, "
            f"run: {compiled.command(folder.path, here.name)}"
        )
    verdict = _providers_verdict(folder, device)
    if verdict == "EP_UNSUPPORTED":
        raise BackendError(f"{made}, which QNN says cannot run on this device; compile it for it")
    if verdict == "EP_SUPPORTED_PREFER_RECOMPILATION" or (
        here is not None and here.soc_model != compiled.soc_model
    ):
        name = here.name if here is not None else compiled.soc
        command = compiled.command(folder.path, name)
        warnings.warn(f"{made} and runs here, but not at its best; run: {command}", stacklevel=2)


def _providers_verdict(folder: ModelFolder, device: Any) -> str:
    """What the provider makes of the first binary's compatibility record; "" where it is silent."""
    try:
        from onnxruntime.capi import _pybind_state as state

        graph = next(name for name in folder.manifest["files"] if name.endswith(".onnx"))
        info = state.get_compatibility_info_from_model(str(folder.path / graph), provider.PROVIDER)
        if info is None:
            return ""
        return str(state.get_model_compatibility_for_ep_devices([device], info).name)
    except Exception:  # of no known class; loading the binary will tell
        return ""


def _name(options: QnnOptions) -> str:
    names = [soc.name for soc in SOCS if soc.soc_model == options.soc_model]
    return names[0] if names else "SOC"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
