"""specdec: lossless speculative decoding for large language models on devices.

from specdec import Generator

gen = Generator("smollm2-135m", "smollm2-135m-drafter")
for chunk in gen.stream("Why is the sky blue?"):
    print(chunk, end="", flush=True)
print(gen.stats)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specdec.errors import (
        BackendError,
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
    from specdec.qnn.options import QnnOptions
    from specdec.sampling import SamplingParams
    from specdec.stats import Stats
    from specdec.verification import verify, verify_batch

__all__ = [
    "BackendError",
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
    "QnnOptions",
    "Result",
    "SamplingParams",
    "SpecdecError",
    "Stats",
    "VocabularyMismatchError",
    "pull",
    "verify",
    "verify_batch",
]

# Imported when first used: the runtime takes half a second, which `specdec --help` need not wait.
_HOMES = {
    "BackendError": "specdec.errors",
    "CheckpointError": "specdec.errors",
    "Chunk": "specdec.generator",
    "ContextFullError": "specdec.errors",
    "Generator": "specdec.generator",
    "GeneratorBusyError": "specdec.errors",
    "InvalidInputError": "specdec.errors",
    "Model": "specdec.model",
    "ModelFolderError": "specdec.errors",
    "ModelRunError": "specdec.errors",
    "Ngram": "specdec.generator",
    "PullError": "specdec.errors",
    "QnnOptions": "specdec.qnn.options",
    "Result": "specdec.generator",
    "SamplingParams": "specdec.sampling",
    "SpecdecError": "specdec.errors",
    "Stats": "specdec.stats",
    "VocabularyMismatchError": "specdec.errors",
    "pull": "specdec.hub",
    "verify": "specdec.verification",
    "verify_batch": "specdec.verification",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
