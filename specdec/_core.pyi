"""Types of the C++ core; see csrc/ for what each does."""

from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

AUTO: int
MAX_DRAFT_LENGTH: int
MAX_DRAFT_WIDTH: int

class SamplingOptions:
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Sequence[tuple[int, float]]
    seed: int

class StreamOptions:
    sampling: SamplingOptions
    stop_ids: Sequence[int]
    max_tokens: int
    def set_rule(self, name: str) -> None: ...

class Finish:
    name: str
    none: Finish
    stop: Finish
    length: Finish
    cancelled: Finish

class RoundResult:
    tokens: list[int]
    drafted: int
    finish: Finish

class Totals:
    rounds: int
    tokens: int
    checked: int
    prompt_tokens: int
    prefilled_tokens: int
    drafted_at: list[int]
    accepted_at: list[int]
    looked_up: int
    looked_up_accepted: int
    prefill_seconds: float
    draft_seconds: float
    verify_seconds: float
    accept_seconds: float
    model_seconds: float

class Decoder:
    def buffers(self) -> dict[str, npt.NDArray[Any]]: ...
    def forward(
        self, tokens: Sequence[int], logit_rows: int, parents: Sequence[int] | None = None
    ) -> npt.NDArray[np.float32]: ...
    def move_row(self, row: int, place: int) -> None: ...
    @property
    def takes_trees(self) -> bool: ...
    def commit(self, n: int) -> None: ...
    def truncate(self, n: int) -> None: ...
    @property
    def length(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def run_seconds(self) -> float: ...
    @property
    def runs(self) -> int: ...

class InPlaceDecoder(Decoder):
    def __init__(
        self,
        *,
        vocabulary: int,
        head_ids: Sequence[int],
        layers: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        min_width: int,
        max_width: int,
        max_logit_rows: int,
        row_tile: int = 0,
        hidden: int = 0,
        takes_rows: bool = False,
        gives_best: bool = False,
        half_kv: bool = False,
        run: Callable[[int, int], None],
    ) -> None: ...
    def hidden(self, position: int) -> npt.NDArray[np.float32] | None: ...

class AttachedDecoder(Decoder):
    def __init__(
        self,
        *,
        vocabulary: int,
        head_ids: Sequence[int],
        target: InPlaceDecoder,
        target_layers: Sequence[int],
        context: int,
        run: Callable[[int, int], None],
    ) -> None: ...
    def follow(self, position: int) -> bool: ...

class SequenceDecoder(Decoder): ...
class AttachedSequenceDecoder(Decoder): ...

def new_sequence_decoders(
    *,
    vocabulary: int,
    head_ids: Sequence[int],
    layers: int,
    kv_heads: int,
    head_dim: int,
    capacity: int,
    sequences: int,
    max_width: int,
    max_logit_rows: int,
    hidden: int,
    gives_best: bool = False,
    half_kv: bool = False,
    run: Callable[[int, int], None],
) -> list[SequenceDecoder]: ...
def new_attached_sequence_decoders(
    *,
    vocabulary: int,
    head_ids: Sequence[int],
    targets: Sequence[SequenceDecoder],
    target_layers: Sequence[int],
    context: int,
    run: Callable[[int, int], None],
) -> list[AttachedSequenceDecoder]: ...

class FixedDecoder(Decoder):
    def __init__(
        self,
        *,
        vocabulary: int,
        head_ids: Sequence[int],
        layers: int,
        kv_heads: int,
        head_dim: int,
        hidden: int,
        past: int,
        widths: Sequence[int],
        kv_bytes: int,
        embedding: npt.NDArray[np.uint16],
        rotary: npt.NDArray[np.uint16],
        mask_allowed: int,
        mask_blocked: int,
        logits_scale: float,
        logits_zero_point: int,
        logits_float16: bool,
        sink: dict[str, Any] | None,
        has_best: bool,
        run: Callable[[int, int], None],
        past_memory: Callable[[int], npt.NDArray[np.uint8]] | None = None,
    ) -> None: ...

class Drafter: ...

class ModelDrafter(Drafter):
    def __init__(self, decoder: Decoder) -> None: ...

class AttachedDrafter(Drafter):
    def __init__(self, decoder: AttachedDecoder | AttachedSequenceDecoder) -> None: ...

class NgramDrafter(Drafter):
    def __init__(self, min_match: int, max_match: int) -> None: ...

class MixedDrafter(Drafter):
    def __init__(self, model: Drafter, min_match: int, max_match: int) -> None: ...

class StepCosts:
    def __init__(self, max_rows: int) -> None: ...
    def add_target(self, rows: int, seconds: float) -> None: ...
    def add_draft(self, seconds: float) -> None: ...
    def pause(self) -> None: ...
    def move_behind(self, length: int) -> bool: ...
    def target(self, rows: int) -> float: ...
    @property
    def draft(self) -> float: ...

class Company:
    def __init__(self) -> None: ...
    def begin(self, sequences: int, gain: Callable[[int], float | None]) -> None: ...
    def add(self, depth: int, drafting: int) -> None: ...
    def at(self, depth: int) -> float: ...
    @property
    def round(self) -> str: ...

class AutoPolicy:
    def __init__(self, longest: int, rows: int) -> None: ...
    def start_stream(self) -> None: ...
    def move_behind(self, length: int) -> None: ...
    def set_width(self, width: int) -> None: ...
    def set_shared(
        self, target: StepCosts, draft: StepCosts | None, company: Company, sequences: int
    ) -> None: ...
    def gain(self, depth: int, nodes: int, width: int) -> float | None: ...
    def begin(
        self, depth: int, nodes: int, width: int, blocks: bool = False, lookup: float = 0.0
    ) -> tuple[int, int, int]: ...
    def branch(
        self, depth: int, probabilities: Sequence[float], n: int = 1
    ) -> tuple[int, bool]: ...
    def observe(
        self,
        *,
        drafted: int,
        rows: int,
        accepted: int,
        chosen: int,
        all_compared: bool,
        draft_seconds: float,
        target_seconds: float,
        by_token: Sequence[float] = (),
        by_block: Sequence[float] = (),
    ) -> None: ...
    def seconds(self, rows: int) -> float: ...
    @property
    def expected_rate(self) -> float: ...
    @property
    def plain_rate(self) -> float: ...

class Engine:
    def __init__(self, target: Decoder, drafter: Drafter | None) -> None: ...
    def start(self, prompt: Sequence[int], options: StreamOptions) -> None: ...
    def prefill(self) -> None: ...
    def round(self) -> RoundResult: ...
    def cancel(self) -> None: ...
    def set_draft_length(self, k: int) -> None: ...
    def set_draft_width(self, width: int) -> None: ...
    @property
    def draft_length(self) -> int: ...
    @property
    def draft_width(self) -> int: ...
    @property
    def max_context(self) -> int: ...
    @property
    def longest_draft(self) -> int: ...
    @property
    def widest_draft(self) -> int: ...
    @property
    def target_takes_trees(self) -> bool: ...
    @property
    def totals(self) -> Totals: ...
    @property
    def tokens(self) -> list[int]: ...

def split_step(costs: StepCosts, rows: Sequence[int]) -> list[float]: ...

class Batch:
    def __init__(self, engines: Sequence[Engine]) -> None: ...
    def round(self) -> list[RoundResult | Exception | None]: ...

@overload
def verify_batch(
    rule: str,
    target_probs: npt.NDArray[np.float32],
    draft_probs: npt.NDArray[np.float32],
    draft_tokens: npt.NDArray[np.int32],
    seeds: npt.NDArray[np.uint64],
    position: int,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]: ...
@overload
def verify_batch(
    rule: str,
    target_probs: npt.NDArray[np.float32],
    draft_probs: npt.NDArray[np.float32],
    draft_tokens: npt.NDArray[np.int32],
    seeds: npt.NDArray[np.uint64],
    position: int,
    siblings: npt.NDArray[np.int32],
    sibling_of: Sequence[int],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]: ...
def block_odds(
    target_probs: npt.NDArray[np.float32],
    draft_probs: npt.NDArray[np.float32],
    draft_tokens: npt.NDArray[np.int32],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]: ...
def race_batch(
    probs: npt.NDArray[np.float32],
    seeds: npt.NDArray[np.uint64],
    position: int,
    logits: bool = False,
) -> npt.NDArray[np.int32]: ...
def distribution_of(
    logits: npt.NDArray[np.float32],
    options: SamplingOptions,
    prompt: Sequence[int],
    generated: Sequence[int],
) -> npt.NDArray[np.float32]: ...
def give_back_free_memory() -> None: ...
