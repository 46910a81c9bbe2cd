"""Shards of text on disk, and the manifest that lists them.

A shard is an ``.npz``: ``offsets`` int64 [n + 1]; ``tokens`` uint32 [N]; ``role`` uint8 [N], who
chose the *next* token (0 the template, an opening or a file; 1 the target as the user; 2 the target
as itself); ``temperature`` float32 [n] of the answers; ``kind`` str [n]. ``manifest.json`` beside
them lists shards that are whole; anything else in the folder is left over from an interruption.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from specdec.distill.write.conversation import Conversation
from specdec.errors import InvalidInputError

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Shard:
    """The manifest's entry of one file."""

    file: str
    sha256: str
    conversations: int
    tokens: int
    dropped: dict[str, int]
    """How many conversations were dropped, by reason."""


@dataclass
class Manifest:
    """What a folder of text holds and how it was written."""

    target: Mapping[str, Any]
    """The target's file, its format and its SHA-256."""
    settings: Mapping[str, Any]
    shards: list[Shard] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens of all shards."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def conversations(self) -> int:
        """Conversations of all shards."""
        return sum(shard.conversations for shard in self.shards)


def shard_name(index: int) -> str:
    """The file of shard ``index``."""
    return f"shard-{index:05d}.npz"


def open_manifest(folder: Path, target: Mapping[str, Any], settings: Mapping[str, Any]) -> Manifest:
    """The folder's manifest, or an empty one; its shards are compared with their SHA-256.

    Raises:
        InvalidInputError: The folder was written for another target or with other settings, or a
            file is missing or altered.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return Manifest(target, settings)
    if manifest.target.get("sha256") != target.get("sha256"):
        raise InvalidInputError(f"{folder}: holds the text of another target; name another folder")
    wanted = json.loads(json.dumps(settings))
    for name in sorted({*wanted, *manifest.settings}):
        if (found := manifest.settings.get(name)) != wanted.get(name):
            raise InvalidInputError(
                f"{folder}: was written with {name} = {found}, not {wanted.get(name)}; "
                "use the same settings or name another folder"
            )
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, its files checked; None where there is none.

    Raises:
        InvalidInputError: It is unreadable, or a file is missing or altered.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise InvalidInputError(f"{path}: format {content['format']} is unknown")
        manifest = Manifest(
            content["target"], content["settings"], [Shard(**entry) for entry in content["shards"]]
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(f"{path}: not readable; remove the folder") from error
    for shard in manifest.shards:
        file = folder / shard.file
        if not file.is_file() or _sha256(file.read_bytes()) != shard.sha256:
            raise InvalidInputError(f"{file}: missing or altered; remove {folder}")
    return manifest


def write_shard(
    folder: Path,
    manifest: Manifest,
    conversations: Sequence[Conversation],
    dropped: Mapping[str, int],
) -> None:
    """Write the next shard, then the manifest that names it."""
    content = pack(conversations)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **content)
    name = shard_name(len(manifest.shards))
    _replace(folder / name, buffer.getvalue())
    manifest.shards.append(
        Shard(
            file=name,
            sha256=_sha256(buffer.getvalue()),
            conversations=len(conversations),
            tokens=len(content["tokens"]),
            dropped=dict(sorted(dropped.items())),
        )
    )
    document = {
        "format": FORMAT,
        "tokens": manifest.tokens,
        "conversations": manifest.conversations,
        **asdict(manifest),
    }
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    _replace(folder / MANIFEST, text.encode())


def pack(conversations: Sequence[Conversation]) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of a shard."""
    lengths = [len(conversation.tokens) for conversation in conversations]
    return {
        "offsets": np.cumsum([0, *lengths], dtype=np.int64),
        "tokens": np.concatenate([np.array(c.tokens, np.uint32) for c in conversations]),
        "role": np.concatenate([np.array([*c.roles[1:], 0], np.uint8) for c in conversations]),
        "temperature": np.array([c.temperature for c in conversations], np.float32),
        "kind": np.array([c.kind for c in conversations], dtype=str),
    }


def read_shard(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of a shard."""
    with np.load(path, allow_pickle=False) as content:
        return dict(content)


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
