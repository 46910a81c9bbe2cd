"""SentencePiece vocabularies (BPE with byte fallback, as Llama 2's) as a ``tokenizers`` model.

SentencePiece joins the neighbours whose joint piece has the best score, the leftmost first. As
merges that is: every way to cut a piece into two pieces, in the order of the joint pieces' scores.
The result gives the same tokens, and the runtime needs one tokenizer library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from specdec.convert.tokenizer_files import END_TOKENS
from specdec.errors import CheckpointError

# The kinds of pieces, by SentencePiece's own numbers (GGUF has the same).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_SPACE = "\u2581"

_PROBES = (
    *("", " ", "a", " a", "a  b ", "\u2581a", "a\tb\r\n\n", "\u3000\u00a0x", "\x00\x7f"),
    *(
        "e\u0301 \u00e9 \ufb01 \uff21\u00bd \u2460",
        "\u6f22\u5b57\uac00",
        "\U0001f469\u200d\U0001f680\U0010fffd",
    ),
    *(
        "3.14 1000000 a1b2",
        "def f(x):\n        return x  # ===== ----",
        "<s>[INST]</s> <unk><0x0A>",
    ),
    "The quick brown fox didn't jump over THE lazy dogs; thereafter it understood everything.",
)


@dataclass(frozen=True)
class SentencePieces:
    """A vocabulary: one entry per id in each of the three lists."""

    pieces: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    leading_space: bool
    """Whether a space is put in front of every text."""


def build_tokenizer(vocabulary: SentencePieces, source: str) -> Tokenizer:
    """A tokenizer with exactly the ids of ``vocabulary``.

    Raises:
        CheckpointError: ``source`` has a vocabulary that cannot be had exactly.
    """
    pieces = vocabulary.pieces
    if not len(pieces) == len(vocabulary.scores) == len(vocabulary.kinds):
        raise CheckpointError(
            f"{source}: {len(pieces)} pieces with {len(vocabulary.scores)} scores and "
            f"{len(vocabulary.kinds)} types"
        )
    ids = {piece: index for index, piece in enumerate(pieces)}
    if len(ids) != len(pieces):
        twice = next(piece for index, piece in enumerate(pieces) if ids[piece] != index)
        raise CheckpointError(f"{source}: has the piece {twice!r} twice")
    found = {piece for piece, kind in zip(pieces, vocabulary.kinds, strict=True) if kind == BYTE}
    if found != {f"<0x{byte:02X}>" for byte in range(256)}:
        raise CheckpointError(
            f"{source}: has no piece for each of the 256 bytes; a SentencePiece vocabulary without "
            "byte fallback is not supported"
        )
    unknown = [p for p, kind in zip(pieces, vocabulary.kinds, strict=True) if kind == UNKNOWN]
    model = models.BPE(
        vocab=ids,
        merges=_merges(vocabulary, ids),
        byte_fallback=True,
        fuse_unk=True,
        unk_token=unknown[0] if unknown else None,
    )
    tokenizer = Tokenizer(model)
    front = [normalizers.Prepend(_SPACE)] if vocabulary.leading_space else []
    tokenizer.normalizer = normalizers.Sequence([*front, normalizers.Replace(" ", _SPACE)])
    tokenizer.decoder = _decoder(vocabulary.leading_space)
    for piece, kind in zip(pieces, vocabulary.kinds, strict=True):
        if kind == USER_DEFINED and not _is_control_name(piece):
            if vocabulary.leading_space:
                # The library would put the space in front of the text behind this piece, too.
                raise CheckpointError(
                    f"{source}: has the user-defined piece {piece!r} and puts a space in front of "
                    "texts; the two together are not supported: use a folder with tokenizer.json"
                )
            if " " not in piece:  # SentencePiece looks for it when spaces are rewritten already
                tokenizer.add_tokens([AddedToken(piece, special=False, normalized=True)])
        elif kind in (UNKNOWN, CONTROL, USER_DEFINED):
            tokenizer.add_tokens([AddedToken(piece, special=True, normalized=False)])
    return tokenizer


def read_sentencepiece(path: Path) -> tuple[Tokenizer, SentencePieces]:
    """A tokenizer that gives the tokens of a ``tokenizer.model``, and the vocabulary in it.

    Raises:
        CheckpointError: The file is no such vocabulary, or works in a way that is not supported.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    try:
        content = path.read_bytes()
        model.ParseFromString(content)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except DecodeError:
        model.Clear()
    # Text that is no UTF-8 comes as bytes.
    if not model.pieces or not all(isinstance(piece.piece, str) for piece in model.pieces):
        raise CheckpointError(f"{path}: not a SentencePiece model, or damaged; fetch it again")
    if model.trainer_spec.model_type != model.trainer_spec.BPE:
        raise CheckpointError(
            f"{path}: a SentencePiece model of another kind than BPE is not supported"
        )
    vocabulary = SentencePieces(
        [piece.piece for piece in model.pieces],
        [piece.score for piece in model.pieces],
        [piece.type for piece in model.pieces],
        leading_space=model.normalizer_spec.add_dummy_prefix,
    )
    tokenizer = build_tokenizer(vocabulary, str(path))
    # Models may rewrite characters or drop spaces before they cut a text; this one must not.
    try:
        reference = SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: refused by SentencePiece ({reason})") from error
    tokenizer.encode_special_tokens = True  # "<s>" in a text is text
    for text in _PROBES:
        if tokenizer.encode(text, add_special_tokens=False).ids != reference.encode(text):
            raise CheckpointError(
                f"{path}: this SentencePiece model rewrites texts like {text!r} in a way that is "
                "not supported: use a folder with tokenizer.json"
            )
    return tokenizer, vocabulary


def _merges(vocabulary: SentencePieces, ids: dict[str, int]) -> list[tuple[str, str]]:
    joinable = {
        piece
        for piece, kind in zip(vocabulary.pieces, vocabulary.kinds, strict=True)
        if kind == NORMAL
    }
    found: list[tuple[float, int, int, str, str]] = []
    for piece in joinable:
        token = ids[piece]
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in joinable and right in joinable:
                found.append((-vocabulary.scores[token], token, cut, left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _decoder(leading_space: bool) -> decoders.Decoder:
    # For others who read the file; specdec puts texts together from the bytes of tokens.
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if leading_space:
        steps.append(decoders.Strip(content=" ", left=1, right=0))
    return decoders.Sequence(steps)


def _is_control_name(piece: str) -> bool:
    """Older converters filed control tokens under user-defined; their form tells them apart."""
    return piece in END_TOKENS or piece == "<s>" or (piece[:2], piece[-2:]) == ("<|", "|>")
