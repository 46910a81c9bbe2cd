"""Model folders: written aside, renamed when whole, described by ``model.json``, checked on open.

A reader never sees a half-written folder: everything is written into a hidden sibling, flushed to
the disk, and renamed in one step. ``model.json`` lists the size and SHA-256 of every other file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from specdec.durable import flush_tree, is_running_elsewhere, move_into_place
from specdec.errors import ModelFolderError
from specdec.model_shape import ModelShape, target_layers_problem

MANIFEST = "model.json"
FORMAT = 1
HIDDEN_SINCE = 2  # version of the graph writer: older graphs do not give their hidden states
FUSED_SINCE = 9  # of fused layouts: older graphs have operands that ours no longer take
ROLES = ("target", "drafter")
TOKENIZER_KINDS = ("byte-level", "sentencepiece")
_REMEDY = "pull or convert it again"

# Folders that this process is writing right now; a folder that bears our process id but is not in
# here was left by a killed process whose id came round again (usual in containers).
_open_folders: set[Path] = set()

_T = TypeVar("_T")


@dataclass(frozen=True)
class ModelConfig(ModelShape):
    """A shape with the rows of its head: fewer than ``vocab`` where a drafter's head is trimmed."""

    head_size: int


@dataclass(frozen=True)
class TokenizerSection:
    """The manifest's account of the tokenizer: its files (relative names) and its special ids."""

    file: str
    chat_template: str | None
    bos_id: int | None
    eos_id: int | None
    stop_ids: tuple[int, ...]
    add_bos: bool
    vocabulary_sha256: str
    kind: str = TOKENIZER_KINDS[0]
    """How the names of tokens stand for bytes."""
    leading_space: bool = False
    """Whether encoding puts a space of its own in front of a text."""


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk. The accessors raise ModelFolderError where the manifest lacks the entry."""

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> ModelFolder:
        """Read and check a model folder.

        Args:
            path: The folder that holds ``model.json``.
            verify: Also compare every file's SHA-256 (reads the whole model once). Presence and
                size are always checked.

        Raises:
            ModelFolderError: One line with the file that is missing, altered or unreadable.
        """
        path = Path(path)
        folder = cls(path, _read_manifest(path))
        for name, entry in folder._section("files").items():
            folder._check_file(name, entry, verify)
        folder._check_sections()
        return folder

    @property
    def name(self) -> str:
        """The model's name, for people."""
        return self._value(self.manifest, "name", str)

    @property
    def role(self) -> str:
        """``"target"`` or ``"drafter"``."""
        role = self._value(self.manifest, "role", str)
        if role not in ROLES:
            raise self._error(f"role {role!r} is neither 'target' nor 'drafter'")
        return role

    @property
    def config(self) -> ModelConfig:
        """Sizes of the network."""
        section = self._section("config")
        kinds: dict[str, type] = {"int": int, "float": float, "bool": bool}
        values: dict[str, Any] = {
            field.name: self._value(section, field.name, kinds[str(field.type)])
            for field in fields(ModelConfig)
            if field.name != "target_layers"
        }
        return ModelConfig(**values, target_layers=self._target_layers(section, values["layers"]))

    @property
    def is_attached(self) -> bool:
        """Whether this is a drafter that reads its target's hidden state and K/V."""
        return self.config.target_layers is not None

    @property
    def graph_path(self) -> Path:
        """The ONNX graph; its external data lies beside it."""
        return self._file(self._value(self._section("graph"), "file", str))

    @property
    def backend(self) -> str:
        """The backend that the graph was written for, for example ``"cpu"``."""
        return self._value(self._section("graph"), "backend", str)

    @property
    def layout(self) -> str:
        """How the graph holds weights and activations."""
        return self._value(self._section("graph"), "layout", str)

    @property
    def graph_version(self) -> int:
        """Version of the graph writer that made it; 0 where none is recorded."""
        return self._optional(self._section("graph"), "version", int) or 0

    @property
    def is_outdated(self) -> bool:
        """Whether its graph is of an earlier version that cannot be run any more."""
        return self.layout.startswith("fused") and self.graph_version < FUSED_SINCE

    @property
    def is_compiled(self) -> bool:
        """Whether the graphs are compiled for one chip."""
        return isinstance(self.manifest.get("graph", {}).get("compiled"), dict)

    @property
    def head_ids_path(self) -> Path | None:
        """int32 ``[head_size]``: the vocabulary id of each head row; None for a whole head."""
        if self.manifest.get("head_ids") is None:
            return None
        return self._file(self._value(self.manifest, "head_ids", str))

    @property
    def tokenizer(self) -> TokenizerSection:
        """Tokenizer files and special ids."""
        section = self._section("tokenizer")
        stop_ids = self._value(section, "stop_ids", list)
        if not all(isinstance(token, int) for token in stop_ids):
            raise self._error("'stop_ids' is not a list of integers")
        kind = self._optional(section, "kind", str) or TOKENIZER_KINDS[0]
        if kind not in TOKENIZER_KINDS:
            raise self._error(f"tokenizers of kind {kind!r} are unknown to this version of specdec")
        return TokenizerSection(
            file=self._value(section, "file", str),
            chat_template=self._optional(section, "chat_template", str),
            bos_id=self._optional(section, "bos_id", int),
            eos_id=self._optional(section, "eos_id", int),
            stop_ids=tuple(stop_ids),
            add_bos=self._value(section, "add_bos", bool),
            vocabulary_sha256=self._value(section, "vocabulary_sha256", str),
            kind=kind,
            leading_space=self._optional(section, "leading_space", bool) or False,
        )

    @property
    def tokenizer_path(self) -> Path:
        """``tokenizer.json``."""
        return self._file(self.tokenizer.file)

    @property
    def chat_template_path(self) -> Path | None:
        """The Jinja chat template, or None for a model without one."""
        name = self.tokenizer.chat_template
        return None if name is None else self._file(name)

    @property
    def sampling(self) -> dict[str, Any]:
        """The model's own recommendation (keys of SamplingParams); empty when there is none."""
        return dict(self._section("sampling")) if "sampling" in self.manifest else {}

    @property
    def source(self) -> dict[str, Any]:
        """Where the model was converted from; empty when that is not recorded."""
        return dict(self._section("source")) if "source" in self.manifest else {}

    def _check_sections(self) -> None:
        for accessor in (
            "name", "role", "config", "graph_path", "backend", "layout", "head_ids_path",
            "tokenizer_path", "chat_template_path", "sampling", "source",
        ):  # fmt: skip
            getattr(self, accessor)

    def _check_file(self, name: str, entry: Any, verify: bool) -> None:
        if not _is_plain_relative(name):
            raise self._error(f"file name {name!r} points out of the folder")
        if not isinstance(entry, dict):
            raise self._error(f"the entry of {name!r} is not an object")
        size, digest = self._value(entry, "bytes", int), self._value(entry, "sha256", str)
        file = self.path / name
        if not file.is_file():
            raise ModelFolderError(f"{file}: missing; {self._remedy}")
        if (found := file.stat().st_size) != size:
            raise ModelFolderError(f"{file}: has {found} bytes instead of {size}; {self._remedy}")
        if verify and _sha256(file) != digest:
            raise ModelFolderError(f"{file}: its content was altered (SHA-256); {self._remedy}")

    def _target_layers(self, section: Mapping[str, Any], layers: int) -> tuple[int, ...] | None:
        found = self._optional(section, "target_layers", list)
        if found is None:
            return None
        if (problem := target_layers_problem(found, layers)) is not None:
            raise self._error(f"'target_layers' {problem}")
        return tuple(found)

    def _file(self, name: str) -> Path:
        if name not in self._section("files"):
            raise self._error(f"file {name!r} is not among its 'files'")
        return self.path / name

    def _section(self, key: str) -> dict[str, Any]:
        return self._value(self.manifest, key, dict)

    def _optional(self, section: Mapping[str, Any], key: str, kind: type[_T]) -> _T | None:
        return None if section.get(key) is None else self._value(section, key, kind)

    def _value(self, section: Mapping[str, Any], key: str, kind: type[_T]) -> _T:
        value = section.get(key)
        if kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self._error(f"entry {key!r} is missing or not of type {kind.__name__}")
        return value

    def _error(self, what: str) -> ModelFolderError:
        return ModelFolderError(f"{self.path / MANIFEST}: {what}; {self._remedy}")

    @property
    def _remedy(self) -> str:
        return "compile it again" if self.is_compiled else _REMEDY


@contextmanager
def create_model_folder(
    destination: str | os.PathLike[str], *, replace: bool = False
) -> Iterator[Path]:
    """Yield a hidden folder beside ``destination`` and rename it there when the body succeeds.

    Any exception, KeyboardInterrupt too, removes what was written and leaves ``destination`` as it
    was. What killed processes left behind is removed at the next call for the same destination.

    Raises:
        ModelFolderError: ``destination`` exists (and ``replace`` is not set, or it is not a model
            folder), or it cannot be written.
    """
    target = Path(os.path.realpath(destination))  # a link's folder is replaced, not the link
    _check_destination(target, replace)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        partial = target.with_name(f".{target.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")
        partial.mkdir()
    except OSError as error:
        raise _cannot_write(target, error) from error
    _open_folders.add(partial)
    try:
        yield partial
        try:
            flush_tree(partial)
            move_into_place(partial, target, replace=replace)
        except FileExistsError as error:
            raise ModelFolderError(
                f"{target}: another process wrote it meanwhile; use that one"
            ) from error
        except OSError as error:
            raise _cannot_write(target, error) from error
    finally:
        # After a swap this is the previous folder; after a plain rename there is nothing left.
        shutil.rmtree(partial, ignore_errors=True)
        _open_folders.discard(partial)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``model.json`` as the last file of a folder.

    Adds ``"format"`` and ``"files"`` (``{name: {"bytes", "sha256"}}`` of every other file, names
    relative with forward slashes) to ``manifest``, which is not changed.
    """
    files = {
        file.relative_to(folder).as_posix(): {
            "bytes": file.stat().st_size,
            "sha256": _sha256(file),
        }
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / MANIFEST
    }
    document = {"format": FORMAT, **manifest, "files": files}
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if not path.exists():
            raise ModelFolderError(f"{path}: no such model folder; {_REMEDY}") from None
        raise ModelFolderError(
            f"{path}: not a model folder, it has no {MANIFEST}; {_REMEDY}"
        ) from None
    except OSError as error:
        raise ModelFolderError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError:
        raise ModelFolderError(f"{file}: not valid JSON; {_REMEDY}") from None
    if not isinstance(manifest, dict):
        raise ModelFolderError(f"{file}: not a JSON object; {_REMEDY}")
    if (version := manifest.get("format")) != FORMAT:
        raise ModelFolderError(
            f"{file}: format {version!r}, this version of specdec reads format {FORMAT}; {_REMEDY}"
        )
    return manifest


def _check_destination(target: Path, replace: bool) -> None:
    if not os.path.lexists(target):
        return
    if not replace:
        raise ModelFolderError(f"{target}: already exists; name another folder or ask to replace")
    # Replacing deletes: never do that to something which is not ours.
    if not target.is_dir() or (not (target / MANIFEST).is_file() and any(target.iterdir())):
        raise ModelFolderError(
            f"{target}: not a model folder, so it is not replaced; name another folder or remove it"
        )


def _cannot_write(target: Path, error: OSError) -> ModelFolderError:
    return ModelFolderError(f"{target}: cannot be written ({error.strerror or error})")


def _remove_leftovers(target: Path) -> None:
    pattern = re.compile(re.escape(f".{target.name}.partial-") + r"(\d+)-[0-9a-f]{8}")
    for path in target.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match and path not in _open_folders and not is_running_elsewhere(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def _is_plain_relative(name: str) -> bool:
    path = PurePosixPath(name)
    escapes = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name
    return bool(path.parts) and not escapes


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
