"""Texts to calibrate with and to measure on: files, and what the model itself writes.

Every text begins with the token that the model's texts begin with (its BOS, or the first token of
its chat template), because position 0 of a quantised model always holds it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import tokenizers

from specdec.chat import encode_chat
from specdec.convert.checkpoint import Checkpoint, ModelSource
from specdec.convert.float_forward import FloatForward, LayerWeights
from specdec.convert.matrix import FloatArray
from specdec.errors import CheckpointError, InvalidInputError
from specdec.generator import Generator
from specdec.model import Model
from specdec.model_folder import TokenizerSection
from specdec.sampling import SamplingParams
from specdec.tokenizer import Tokenizer

CALIBRATION = "calibration.txt"
HELD_OUT = "heldout.txt"
DIVIDER = "\f"  # between texts of a file
LENGTH = 256  # tokens of a text; longer ones are cut
_START = 8  # tokens among which a second sink may be
_HUGE = 10  # times what is typical

_PROMPTS = (
    "Explain to a child why the sky is blue.",
    "Write a short story about a lighthouse and a storm.",
    "How do I cook rice so that it does not stick?",
    "Write a Python function that checks whether a word is a palindrome, with a test.",
    "What are the advantages and disadvantages of working from home?",
    "Summarise the plot of Romeo and Juliet in five sentences.",
    "A train travels 180 km in two and a half hours. What is its average speed?",
    "Give me a packing list for a week in the mountains.",
    "Write a polite letter to a neighbour about a barking dog.",
    "What is the difference between a virus and a bacterium?",
    "List ten countries in Africa with their capitals.",
    "Translate into French: The library opens at nine o'clock.",
    "Write a JSON object that describes a book.",
    "How does a bicycle stay upright?",
    "Who was Marie Curie, and what is she known for?",
    "Write a poem about the first day of autumn.",
)
_HELD_OUT_PROMPTS = 5  # the last ones, which nothing is calibrated with
_TEMPERATURES = (1.0, 0.7, 0.0)


@dataclass(frozen=True)
class Speech:
    """How a checkpoint's texts are written as tokens."""

    tokenizer: Tokenizer
    template: str | None
    first: int
    """The token that every text begins with."""

    @classmethod
    def of(cls, checkpoint: ModelSource, template: str | None = None) -> Speech:
        """``template`` is a chat template; None takes the checkpoint's own.

        Raises CheckpointError where no first token can be found.
        """
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            written = checkpoint.write_tokenizer(folder)
            section = TokenizerSection(**{**written, "stop_ids": tuple(written["stop_ids"])})
            backend = tokenizers.Tokenizer.from_file(str(folder / section.file))
            if template is None and section.chat_template is not None:
                template = (folder / section.chat_template).read_text(encoding="utf-8")
        tokenizer = Tokenizer(backend, section, vocab=checkpoint.config.vocab)
        first = section.bos_id
        if first is None and template is not None:
            first = encode_chat(tokenizer, template, [{"role": "user", "content": "Hello"}])[0]
        if first is None:
            raise CheckpointError(
                "the checkpoint has neither a BOS token nor a chat template, so its texts have no "
                "first token: give a chat template"
            )
        return cls(tokenizer, template, first)

    def encode(self, text: str, length: int = LENGTH) -> Iterator[list[int]]:
        """``text`` in pieces of at most ``length`` tokens, each from the first token on."""
        ids = self.tokenizer.encode(text, special=True)
        if ids[:1] == [self.first]:
            ids = ids[1:]
        for start in range(0, len(ids), length - 1):
            piece = ids[start : start + length - 1]
            if len(piece) > 1:
                yield [self.first, *piece]


def shipped(name: str) -> list[str]:
    """The texts of a file that comes with specdec: ``CALIBRATION`` or ``HELD_OUT``."""
    content = resources.files("specdec.quantize").joinpath(name).read_text(encoding="utf-8")
    return _split(content)


def read(file: Path) -> list[str]:
    """The texts of a UTF-8 file, divided by form feeds.

    Raises InvalidInputError for a file that cannot be read or holds no text.
    """
    try:
        texts = _split(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{file}: not a UTF-8 text (byte {error.start}); give plain text"
        ) from error
    if not texts:
        raise InvalidInputError(f"{file}: holds no text to calibrate with")
    return texts


def write(
    model: Model,
    tokens: int,
    *,
    seed: int,
    length: int = LENGTH,
    held_out: bool = False,
    progress: Callable[[float], None] = lambda fraction: None,
) -> list[list[int]]:
    """About ``tokens`` token ids that ``model`` writes, in texts of at most ``length``.

    Questions take turns, and so do temperatures; the same ``seed`` gives the same texts. Held-out
    texts answer other questions, and are never greedy: those would come again word for word.
    """
    questions = _PROMPTS[-_HELD_OUT_PROMPTS:] if held_out else _PROMPTS[:-_HELD_OUT_PROMPTS]
    temperatures = _TEMPERATURES[:-1] if held_out else _TEMPERATURES
    texts: list[list[int]] = []
    length = min(length, model.config.context)
    generator = Generator(model, max_context=length)
    written = 0
    while written < tokens:
        progress(written / tokens)
        index = len(texts)
        prompt = _prompt(model, questions[index % len(questions)])[: length // 2]
        sampling = SamplingParams(
            max_tokens=length - len(prompt),
            temperature=temperatures[index % len(temperatures)],
            seed=seed + index,
        )
        text = [*prompt, *generator.generate(prompt, sampling).tokens]
        texts.append(text)
        written += len(text)
    progress(1.0)
    return texts


def without_second_sinks(
    checkpoint: Checkpoint, texts: Sequence[Sequence[int]]
) -> list[Sequence[int]]:
    """``texts`` without those in which another token than the first has huge activations.

    Some words right behind the first token become sinks too, with activations a hundred times those
    of all other tokens: one such text in the calibration, and the steps of the residual stream are
    a hundred times as wide for all. In a text that does begin so, they are clipped.
    """
    starts = [list(text[:_START]) for text in texts]
    largest: list[list[float]] = []

    def observe(site: str, values: FloatArray) -> None:
        if site == "residual":
            largest[-1].append(float(np.abs(values).max()))

    forward = FloatForward(checkpoint, [start for start in starts if len(start) > 1])
    for layer in range(checkpoint.config.layers):
        largest.append([])
        forward.layer(LayerWeights.load(checkpoint, layer), "", observe)
    sizes = np.array(largest)  # [layers, texts of two tokens or more]
    typical = np.median(sizes, axis=1, keepdims=True)
    huge = iter((sizes > _HUGE * typical).any(axis=0))
    return [text for text in texts if len(text) < 2 or not next(huge)]


def _prompt(model: Model, question: str) -> list[int]:
    if model.chat_template is not None:
        messages = [{"role": "user", "content": question}]
        return encode_chat(model.tokenizer, model.chat_template, messages)
    tokenizer = model.tokenizer
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return [*bos, *tokenizer.encode(question)]


def _split(content: str) -> list[str]:
    return [text for piece in content.split(DIVIDER) if (text := piece.strip())]


def all_tokens(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens ``texts`` hold."""
    return sum(map(len, texts))
