"""Builds the core from (possibly altered) sources beside the package, for tests of the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11

REPOSITORY = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX", "g++")


def compile_object(source: Path, target: Path, flags: Sequence[str]) -> None:
    subprocess.run(
        [
            COMPILER,
            *("-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", *flags),
            f"-I{sysconfig.get_path('include')}",
            f"-I{pybind11.get_include()}",
            *("-c", str(source), "-o", str(target)),
        ],
        check=True,
    )


def build_objects(sources: Path, folder: Path, flags: Sequence[str]) -> dict[str, Path]:
    """Object files by the name of their source."""
    folder.mkdir(parents=True, exist_ok=True)
    objects = {source: folder / f"{source.stem}.o" for source in sorted(sources.glob("*.cpp"))}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda pair: compile_object(*pair, flags), objects.items()))
    return {source.name: target for source, target in objects.items()}


def link_package(objects: Sequence[Path], folder: Path, flags: Sequence[str] = ()) -> Path:
    """A package ``specdec`` in folder with the core and its errors alone."""
    package = folder / "specdec"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copy(REPOSITORY / "specdec" / "errors.py", package)
    name = f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    command = [COMPILER, "-shared", *flags, *map(str, objects), "-o", str(package / name)]
    subprocess.run(command, check=True)
    return folder


def run_tests_in(folder: Path, arguments: Sequence[str], **environment: str) -> int:
    """Runs a copy of these tests against the package in folder; the exit status of pytest."""
    tests = folder / "core_tests"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(__file__).parent, tests, ignore=ignored, dirs_exist_ok=True)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = long: takes minutes\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not long"]
    return subprocess.run(
        [*command, *arguments, "core_tests"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
    ).returncode
