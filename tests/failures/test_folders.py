"""Checkpoints and model folders that are damaged give one clear line, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from specdec import CheckpointError, Model, ModelFolderError
from specdec.convert import convert
from tests.error_of import error_of
from tests.tiny_gguf import write_tiny_gguf

# Checkpoints


@pytest.mark.parametrize("share", [0.0, 1e-4, 0.01, 0.05, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint(tiny_gguf: Path, tmp_path: Path, share: float) -> None:
    whole = tiny_gguf.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: int(len(whole) * share)])
    error_of(CheckpointError, lambda: convert(cut, tmp_path / "model"), "cut.gguf")
    assert os.listdir(tmp_path) == ["cut.gguf"]


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGML" + bytes(1000))
    error_of(CheckpointError, lambda: convert(other, tmp_path / "model"), "other.gguf", "GGUF")
    assert os.listdir(tmp_path) == ["other.gguf"]


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    error_of(CheckpointError, lambda: convert(tmp_path / "no.gguf", tmp_path / "model"), "no.gguf")
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_without_a_tokenizer(tmp_path: Path) -> None:
    bare = write_tiny_gguf(tmp_path / "bare.gguf", tokenizer=False)
    error_of(CheckpointError, lambda: convert(bare, tmp_path / "model"), "tokenizer.ggml.")
    assert os.listdir(tmp_path) == ["bare.gguf"]


KILLED_CONVERSION = """
import sys, time
from pathlib import Path
from specdec.convert import convert

def progress(stage, fraction):
    if stage == "writing the graph" and fraction > 0.4:
        print("writing", flush=True)
        time.sleep(60)

convert(Path(sys.argv[1]), Path(sys.argv[2]), progress=progress)
"""


def test_a_killed_conversion(tiny_gguf: Path, tmp_path: Path) -> None:
    destination = tmp_path / "model"
    command = [sys.executable, "-c", KILLED_CONVERSION, str(tiny_gguf), str(destination)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.kill()
    left = list(tmp_path.iterdir())
    assert left  # it was killed in the middle
    assert destination not in left
    for path in [destination, *left]:
        error_of(ModelFolderError, lambda path=path: Model.load(path), str(path))
    Model.load(convert(tiny_gguf, destination))
    assert list(tmp_path.iterdir()) == [destination]


@pytest.mark.skipif(sys.platform == "win32", reason="another signal there")
def test_an_interrupted_conversion(tiny_gguf: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, fraction: float) -> None:
        if fraction > 0.4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        convert(tiny_gguf, tmp_path / "model", progress=interrupt)
    assert os.listdir(tmp_path) == []


# Model folders


@pytest.mark.parametrize(
    "name", ["model.onnx", "model.onnx.data", "tokenizer.json", "chat_template.jinja"]
)
@pytest.mark.parametrize("how", ["missing", "altered", "truncated"])
def test_a_damaged_folder(folder: Path, name: str, how: str) -> None:
    file = folder / name
    data = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    elif how == "altered":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    else:
        file.write_bytes(data[: len(data) // 2])
    error_of(ModelFolderError, lambda: Model.load(folder), str(file), "pull or convert it again")


def test_a_folder_of_an_earlier_version(folder: Path) -> None:
    manifest = json.loads((folder / "model.json").read_text())
    manifest["graph"]["version"] = 7
    (folder / "model.json").write_text(json.dumps(manifest))
    error_of(ModelFolderError, lambda: Model.load(folder), str(folder), "convert its checkpoint")


def test_a_folder_without_a_manifest(folder: Path) -> None:
    (folder / "model.json").unlink()
    error_of(ModelFolderError, lambda: Model.load(folder), str(folder))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 99}', '{"format": 1}'])
def test_a_manifest_that_is_none(folder: Path, content: str) -> None:
    (folder / "model.json").write_text(content)
    error_of(ModelFolderError, lambda: Model.load(folder), "model.json")
