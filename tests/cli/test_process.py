"""The command as a process: signals, pipes, its start-up, and what it imports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from specdec.convert import convert
from tests.tiny_gguf import write_tiny_gguf

# Greedy, the tiny model goes on for ever: only its context ends the text.
ENDLESS = ("--max-tokens", 50_000, "--temperature", 0)


def start(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "specdec", *map(str, arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        command, **{**streams, **options}
    )


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a context that takes many seconds to fill."""
    folder = tmp_path_factory.mktemp("endless")
    gguf = write_tiny_gguf(folder / "endless.gguf", context=60_000)
    return convert(gguf, folder / "endless")


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_ctrl_c_ends_a_stream_cleanly(endless: Path) -> None:
    process = start("generate", "hello", "-m", endless, "-d", "ngram", *ENDLESS)
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert first
    assert b"Traceback" not in errors
    (line,) = errors.decode().splitlines()
    assert line.startswith("interrupted · ")
    assert "tokens/s" in line


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_ctrl_c_while_waiting_for_the_prompt(tiny_target: Path) -> None:
    process = start("generate", "-", "-m", tiny_target, stdin=subprocess.PIPE)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2.0)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert output == b""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_ctrl_c_ends_a_benchmark(endless: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    arguments = ("--max-tokens", 20_000, "--repeat", 50, "--json", figures)
    process = start("bench", "-m", endless, "-d", "ngram", "-p", "chat", *arguments)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3.0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == b""
    assert not figures.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX pipe")
def test_a_reader_that_goes_away(endless: Path) -> None:
    process = start("generate", "hello", "-m", endless, *ENDLESS)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(30) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_help_does_not_load_the_runtime() -> None:
    code = (
        "import sys; from specdec.cli import app; "
        "app(['generate', '--help'], standalone_mode=False); "
        "heavy = {'onnxruntime', 'numpy', 'tokenizers', 'onnx', 'jinja2', 'specdec._core'}; "
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_generating_loads_no_converter_and_no_benchmark(tiny_target: Path) -> None:
    code = (
        "import sys; from specdec.cli import app\n"
        f"try: app(['generate', 'hi', '-m', {str(tiny_target)!r}, '-n', '4'])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "loaded = {'onnx', 'gguf', 'specdec.convert', 'specdec.benchmark'} & set(sys.modules)\n"
        "sys.exit(str(loaded) if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_text_is_utf8_whatever_the_locale(tiny_target: Path) -> None:
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    arguments = ("generate", "hello", "-m", tiny_target, "-n", 120, "-t", 1, "--seed", 7)
    process = start(*arguments, env=environment)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert any(ord(character) > 127 for character in output.decode("utf-8"))


def test_figures_have_a_line_of_their_own(tiny_target: Path) -> None:
    arguments = ("generate", "hello", "-m", tiny_target, "-n", 12, "-t", 0)
    text, errors = start(*arguments).communicate(timeout=60)
    both, _ = start(*arguments, stderr=subprocess.STDOUT).communicate(timeout=60)
    assert not text.endswith(b"\n")  # into a pipe of its own goes the text and nothing else
    assert both.startswith(text + b"\nstopped at the limit")
    assert len(both.splitlines()) == len((text + b"\n" + errors).splitlines())


def test_version() -> None:
    output, _ = start("--version").communicate(timeout=60)
    assert output.decode().startswith("specdec ")
