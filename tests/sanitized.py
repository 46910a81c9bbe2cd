"""Runs the core's tests on a core built with AddressSanitizer and UndefinedBehaviorSanitizer.

python tests/sanitized.py [arguments for pytest]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "core"))

from core_build import COMPILER, REPOSITORY, build_objects, link_package, run_tests_in

SANITIZE = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
FLAGS = ["-O1", "-g", "-fno-omit-frame-pointer", "-D_GLIBCXX_ASSERTIONS", *SANITIZE]


def library(name: str) -> str:
    found = subprocess.run(
        [COMPILER, f"-print-file-name={name}"], check=True, capture_output=True, text=True
    )
    return found.stdout.strip()


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="specdec-sanitized-") as name:
        folder = Path(name)
        objects = build_objects(REPOSITORY / "csrc", folder / "objects", FLAGS)
        link_package(list(objects.values()), folder, SANITIZE)
        return run_tests_in(
            folder,
            ["-q", "-x", *sys.argv[1:]],
            # The interpreter itself is not instrumented: the runtimes must be there first. The C++
            # one too, so that they find the functions that throw.
            LD_PRELOAD=" ".join(map(library, ["libasan.so", "libubsan.so", "libstdc++.so"])),
            PYTHONMALLOC="malloc",
            ASAN_OPTIONS="detect_leaks=0",  # Python keeps memory to its end
            UBSAN_OPTIONS="print_stacktrace=1",
            SPECDEC_TEST_DRAWS="0.02",
        )


if __name__ == "__main__":
    sys.exit(main())
