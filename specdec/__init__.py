"""specdec: lossless speculative decoding for large language models on devices.

from specdec import Generator

gen = Generator("smollm2-135m", "smollm2-135m-drafter")
for chunk in gen.stream("Why is the sky blue?"):
    print(chunk, end="", flush=True)
print(gen.stats)
"""

from specdec.errors import (
    CheckpointError,
    ContextFullError,
    GeneratorBusyError,
    InvalidInputError,
    ModelFolderError,
    ModelRunError,
    PullError,
    SpecdecError,
    VocabularyMismatchError,
)
from specdec.generator import Chunk, Generator, Ngram, Result
from specdec.hub import pull
from specdec.model import Model
from specdec.sampling import SamplingParams
from specdec.stats import Stats
from specdec.verification import verify, verify_batch

__all__ = [
    "CheckpointError",
    "Chunk",
    "ContextFullError",
    "Generator",
    "GeneratorBusyError",
    "InvalidInputError",
    "Model",
    "ModelFolderError",
    "ModelRunError",
    "Ngram",
    "PullError",
    "Result",
    "SamplingParams",
    "SpecdecError",
    "Stats",
    "VocabularyMismatchError",
    "pull",
    "verify",
    "verify_batch",
]
