"""Builds the C++ core (csrc/) into ``specdec._core`` and packs ``models/`` into the wheel."""

import glob
import os
import sys

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

CORE_SOURCES = sorted(glob.glob("csrc/**/*.cpp", recursive=True))
CORE_HEADERS = sorted(glob.glob("csrc/**/*.h", recursive=True))

if sys.platform == "win32":
    COMPILE_ARGS, LINK_ARGS = ["/O2", "/W4", "/WX"], []
else:
    # One rounding for every instruction set: sampled text depends on the seed, not on the CPU.
    COMPILE_ARGS = ["-O3", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
    LINK_ARGS = []
    if sanitizers := os.environ.get("SPECDEC_SANITIZE"):  # for example "address,undefined"
        flags = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
        COMPILE_ARGS += ["-O1", "-g", "-fno-omit-frame-pointer", *flags]
        LINK_ARGS += flags


class BuildCore(build_ext):
    """Says what to install when there is no working C++ compiler."""

    def build_extensions(self) -> None:
        try:
            super().build_extensions()
        except Exception as error:
            sys.exit(
                f"\nspecdec: could not compile its C++ core: {error}\n"
                "  It needs a C++17 compiler and Python's headers. Install them and try again:\n"
                "    Debian/Ubuntu:  apt-get install g++ python3-dev\n"
                "    Fedora:         dnf install gcc-c++ python3-devel\n"
                "    macOS:          xcode-select --install\n"
                "    Windows:        Visual Studio Build Tools, 'Desktop development with C++'\n"
            )


ParallelCompile("SPECDEC_BUILD_JOBS", default=2).install()

setup(
    packages=[
        "specdec",
        "specdec.benchmark",
        "specdec.cli",
        "specdec.convert",
        "specdec.convert.chat_templates",
        "specdec.convert.htp",
        "specdec.distill",
        "specdec.distill.evaluate",
        "specdec.distill.write",
        "specdec.qnn",
        "specdec.quantize",
        "specdec.recipes",
    ],
    package_dir={"specdec.recipes": "models"},
    package_data={
        "specdec": ["py.typed", "_core.pyi"],
        "specdec.benchmark": ["prompts.json"],
        "specdec.convert.chat_templates": ["*.jinja"],
        "specdec.quantize": ["*.txt"],
        "specdec.recipes": ["*/recipe.json", "*/*.gguf"],
    },
    ext_modules=[
        Pybind11Extension(
            "specdec._core",
            CORE_SOURCES,
            depends=CORE_HEADERS,
            cxx_std=17,
            extra_compile_args=COMPILE_ARGS,
            extra_link_args=LINK_ARGS,
        )
    ],
    cmdclass={"build_ext": BuildCore},
)
