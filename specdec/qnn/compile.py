"""Compiles a fixed-shape model for one chip: ``compile_model(source, destination, soc)``.

What QNN does with a graph when it is loaded (choosing kernels, laying out weights, planning memory)
is done once, on any x86-64 machine. A part's widths share one binary, and its weights, where they
are loaded on a device; the simulator can only load binaries of one graph.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from specdec.errors import BackendError, InvalidInputError
from specdec.htp_plan import HtpPlan, Part
from specdec.model_folder import MANIFEST, ModelFolder, create_model_folder, write_manifest
from specdec.qnn import provider
from specdec.qnn.compiled import Compiled, graph_sha256
from specdec.qnn.compiler import compile_graphs
from specdec.qnn.options import QnnOptions
from specdec.qnn.soc import SIMULATOR, find_soc

REPORT_FILE = "compile.json"

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Report:
    """What compiling took and gave: ``compile.json`` of a compiled folder."""

    soc: str
    shared_weights: bool
    versions: dict[str, str]
    seconds: float
    parts: list[dict[str, Any]]
    """Of each part, or the heads together: ``name``, ``layers``, ``source_bytes`` (weights and
    graphs), ``binary_bytes``, ``seconds``, ``peak_bytes`` of the compiling process, and
    ``graphs``: of each ``name``, ``part``, ``width``, ``seconds`` and ``traffic``, the bytes of
    DDR that a run reads, writes, spills and fills as QNN plans it (null where it did not say)."""

    @classmethod
    def read(cls, folder: Path) -> Report:
        """The report in a compiled folder."""
        return cls(**json.loads((folder / REPORT_FILE).read_text(encoding="utf-8")))


def compile_model(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    soc: str,
    *,
    share_weights: bool | None = None,
    options: QnnOptions | None = None,
    replace_folder: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Compile the fixed-shape model folder ``source`` into the folder ``destination``.

    Args:
        source: A folder that was quantised for the NPU.
        destination: The folder to make: complete in itself, but for one chip only.
        soc: A name or part number of ``specdec.qnn.soc.SOCS``, or ``"simulator"``.
        share_weights: Whether the widths of a part share one binary; None does so for devices.
        options: Preparation: ``vtcm_mb`` and ``finalization`` count here.
        replace_folder: Whether a folder that is there already may be replaced.
        progress: Called with a stage and the fraction of it that is done.

    Returns:
        ``destination``.

    Raises:
        InvalidInputError: Unknown chip, or a folder that is compiled already or is no fixed-shape
            model.
        BackendError: The provider cannot be had, or QNN does not take a graph.
        ModelFolderError: ``source`` is damaged, or ``destination`` cannot be written.
    """
    chip = find_soc(soc)
    folder = ModelFolder.open(source)
    if folder.backend != "qnn":
        raise InvalidInputError(
            f"{folder.path}: was made for the CPU, which needs no compiling; make one for the NPU "
            "with: specdec quantize CHECKPOINT -o FOLDER"
        )
    if folder.is_compiled:
        section = Compiled.read(folder)
        raise InvalidInputError(
            f"{folder.path}: is compiled already, for {section.soc if section else 'a chip'}; "
            "compile the folder that it came from"
        )
    target = Path(destination)
    if target.resolve() == folder.path.resolve():
        raise InvalidInputError(f"{target}: is the source; name another folder to compile into")
    share = chip is not SIMULATOR if share_weights is None else share_weights
    options = replace(options or QnnOptions(), soc_model=chip.soc_model, htp_arch=chip.htp_arch)
    provider.devices()  # what is missing is said before anything is written
    plan = HtpPlan.read(folder.graph_path)
    report = progress or (lambda stage, fraction: None)
    with create_model_folder(target, replace=replace_folder) as out:
        parts = []
        groups = plan.weight_groups()
        for index, group in enumerate(groups):
            report("compiling", index / len(groups))
            parts.append(_compile_group(folder.path, out, group, options, share))
        report("writing", 0.0)
        now = asdict(provider.versions())
        _copy_others(folder, out, plan)
        taken = sum(part["seconds"] for part in parts)
        summary = Report(chip.name, share, now, taken, parts)
        (out / REPORT_FILE).write_text(json.dumps(asdict(summary), indent=1), encoding="utf-8")
        compiled = Compiled(
            soc=chip.name,
            soc_model=chip.soc_model,
            htp_arch=chip.htp_arch,
            shared_weights=share,
            source=Path(os.path.relpath(folder.path.resolve(), target.resolve())).as_posix(),
            source_sha256=graph_sha256(folder),
            **now,
        )
        manifest = {
            name: value
            for name, value in folder.manifest.items()
            if name not in ("format", "files")
        }
        manifest["graph"] = {**manifest["graph"], "compiled": asdict(compiled)}
        write_manifest(out, manifest)
        report("writing", 1.0)
    return target


def _compile_group(
    source: Path, out: Path, group: Sequence[Part], options: QnnOptions, share: bool
) -> dict[str, Any]:
    """Compile parts that read the same weights; returns their entry in the report."""
    name = "+".join(part.name for part in group)
    graphs = {graph: (part.name, width) for part in group for width, graph in part.graphs.items()}
    jobs = [
        {"name": graph, "source": str(source / graph), "output": str(out / graph)}
        for graph in graphs
    ]
    batches = [
        compile_graphs(name, batch, options, share_weights=share)
        for batch in ([jobs] if share else [[job] for job in jobs])
    ]
    done = [graph for batch in batches for graph in batch.graphs]
    peaks = [batch.peak_bytes for batch in batches if batch.peak_bytes is not None]
    files = set[str]().union(*(_source_files(source, part) for part in group))
    binaries = {_binary_of(out / graph) for graph in graphs}
    return {
        "name": name,
        "layers": sum(part.end_layer - part.first_layer for part in group),
        "source_bytes": sum((source / file).stat().st_size for file in files),
        "binary_bytes": sum(binary.stat().st_size for binary in binaries),
        "seconds": sum(graph.seconds for graph in done),
        "peak_bytes": max(peaks, default=None),
        "graphs": [
            dict(zip(("part", "width"), graphs[graph.name], strict=True)) | asdict(graph)
            for graph in done
        ],
    }


def _binary_of(wrapper: Path) -> Path:
    """The context binary that a wrapper names."""
    for node in onnx.load(wrapper, load_external_data=False).graph.node:
        for attribute in node.attribute:
            if attribute.name == "ep_cache_context":
                binary = wrapper.parent / bytes(attribute.s).decode()
                if binary.is_file():
                    return binary
    raise BackendError(f"{wrapper.name}: QNN wrote no binary for it")


def _source_files(source: Path, part: Part) -> set[str]:
    """A part's graphs, and the data files that they name."""
    names = set(part.graphs.values())
    for graph in part.graphs.values():
        for tensor in onnx.load(source / graph, load_external_data=False).graph.initializer:
            names |= {entry.value for entry in tensor.external_data if entry.key == "location"}
    return names


def _copy_others(folder: ModelFolder, out: Path, plan: HtpPlan) -> None:
    """Everything but the graphs and their weights."""
    graphs = set[str]().union(*(_source_files(folder.path, part) for part in plan.parts))
    for name in folder.manifest["files"]:
        if name not in graphs and name != MANIFEST:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder.path / name, out / name)
