"""A head in 6 bits, but for the few inputs that count most, which keep 8.

What a norm gives has some channels far larger than the others, and errors of their weights are
nearly all that rounding a head to 6 bits costs. So inputs are put in the order of what they can
add to a logit, as far as weights alone say it: their column's norm times the norm's gain. The
first eighth stays in 8 bits, and the operator takes its activations in twice 8. Columns are
divided by the square root of their norm, and the gain is multiplied by it, so that the columns of
a block are more alike: half of the difference is left to the activations, which have blocks too.

``codes`` uint8 [tiles, 512 wide + 256 (blocks - wide)]: of each tile ``wide`` blocks as
``blocks`` packs them in 8 bits, then the upper 4 bits of those of 6, as it packs 4 bits. ``fine``
uint8 [tiles, 128 (blocks - wide)] has the lower two: byte 64 h + 4 c + j of a block those of
inputs 4 g + j and 16 + 4 g + j (g = 2 h), and of the same for g = 2 h + 1, from its lowest bits
up. ``w = scale * (code - 32)``. ``scales`` are the bits of IEEE halves, uint16 [tiles, blocks, 16].

Where the greatest output is all that is wanted, most of ``fine`` is not read: without it an output
is known to within ``spread`` times the norm of the row that it is made from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specdec.convert.blocks import CHUNK, TILE, Blocks, pack
from specdec.convert.byte_scales import WordArray
from specdec.convert.checkpoint import BLOCK
from specdec.convert.matrix import CodeArray, FloatArray, Matrix

_WIDE = 8  # one block in so many is in 8 bits
_SEARCH = (1.0, 0.5, 0.0, -0.5, -1.0)
"""How far beyond the lowest code a block's largest weight may lie: what has the least error."""
_LOSS = 0.025  # of the matrix, as the norm scales it: what loses more keeps its 8 bits


@dataclass(frozen=True)
class MixedMatrix:
    """A matrix of 8 and 6 bits as the operators read it."""

    codes: CodeArray
    fine: CodeArray
    scales: WordArray
    order: NDArray[np.int32]
    """[inputs]: which input of the norm each of the matrix's is."""
    gain: FloatArray
    """[inputs], in the matrix's order: the norm's, with what the columns were divided by."""
    divided: FloatArray
    """[inputs], in the matrix's order: that alone."""
    spread: FloatArray
    """[16 tiles], of each output: the norm of what the weights are beyond their upper bits, these
    taken as the middle of what they may be."""
    size: float
    """The greatest norm that an output's weights could have by their scales, as large as any are on
    the way to a sum: 128 scales in 8 bits, and there counted twice, and 60 + 30.5 in 6 (both parts
    of 4 (code >> 2) - 30.5). What floats round on that way is in proportion to it."""
    outputs: int
    bits: int = 6


def pack_mixed(matrix: Matrix, gain: FloatArray) -> MixedMatrix | None:
    """The nearest matrix of this kind, behind a norm of gain [inputs].

    None where there are too few inputs for both kinds of blocks, or too much would be lost.
    """
    rows, columns = matrix.shape
    blocks = columns // BLOCK
    wide = max(1, blocks // _WIDE)
    if wide == blocks:
        return None
    squares = np.zeros(columns)
    for part in _chunks(matrix):
        squares += np.square(part.astype(np.float64)).sum(0)
    energy = squares * np.square(gain.astype(np.float64))
    if not np.isfinite(energy.sum()):
        return None
    order = np.argsort(-energy, kind="stable").astype(np.int32)
    divided = _divided_by(squares)[order]
    gain = gain[order] * divided

    first = slice(0, wide * BLOCK), 128
    others = slice(wide * BLOCK, columns), 32
    found: list[list[_Rounded]] = [[], []]
    for part in _chunks(matrix):
        ordered = part[:, order] / divided
        for kind, (inputs, middle) in zip(found, (first, others), strict=True):
            kind.append(_round(ordered[:, inputs], np.square(gain[inputs]), middle))
    if not sum(part.error for kind in found for part in kind) <= _LOSS**2 * energy.sum():
        return None
    (codes8, words8), (codes6, words6) = (
        (np.concatenate([p.codes for p in kind]), np.concatenate([p.words for p in kind]))
        for kind in found
    )
    eight = pack([Blocks(codes8, words8, 8)])
    six, fine, scales = _pack6(codes6, words6)
    spread = np.zeros(TILE * len(six), np.float32)
    spread[:rows] = _spread(codes6, words6) * (1 + 1e-6)
    size = np.sqrt((2 * _squares(words8) * 128**2 + _squares(words6) * 90.5**2).max() * BLOCK)
    return MixedMatrix(
        np.concatenate([eight.codes.reshape(len(six), -1), six], axis=1),
        fine,
        np.concatenate([eight.scales, scales], axis=1),
        order,
        gain,
        divided,
        spread,
        float(size) * (1 + 1e-6),
        rows,
    )


def _chunks(matrix: Matrix) -> Iterator[FloatArray]:
    for start in range(0, matrix.shape[0], CHUNK):
        yield matrix.take_rows(slice(start, start + CHUNK)).dequantise()


def _divided_by(squares: NDArray[np.float64]) -> FloatArray:
    norms = np.sqrt(squares)
    mean = norms.mean()
    roots = np.sqrt(np.where(norms > 0, norms / mean, 1) if mean > 0 else np.ones_like(norms))
    found: FloatArray = roots.astype(np.float32)
    return found


@dataclass(frozen=True)
class _Rounded:
    codes: CodeArray  # [rows, columns]
    words: WordArray  # [rows, blocks]
    error: float


def _round(values: FloatArray, weight: FloatArray, middle: int) -> _Rounded:
    """Codes below 2 ``middle``, with the scales of the least squared error by ``weight``."""
    rows, columns = values.shape
    blocks = values.reshape(rows, -1, BLOCK)
    by_input = weight.reshape(-1, BLOCK)
    at = np.abs(blocks).argmax(-1)[..., None]
    largest = np.take_along_axis(blocks, at, -1)[..., 0]
    least = np.full(largest.shape, np.inf, np.float32)
    codes = np.zeros(blocks.shape, np.uint8)
    scales = np.zeros(largest.shape, np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        for beyond in _SEARCH:
            tried = (largest / np.float32(-middle - beyond)).astype(np.float16)
            # A block too small for the least of the halves becomes zeros.
            steps = np.where(tried == 0, 1, tried).astype(np.float32)[..., None]
            whole = np.clip(np.rint(blocks / steps), -middle, middle - 1)
            error = np.einsum("rbk,bk->rb", np.square(whole * steps - blocks), by_input)
            better = error < least
            least[better] = error[better]
            scales[better] = tried[better]
            codes[better] = (whole[better] + middle).astype(np.uint8)
    # What no half can scale has no error less than infinity, and so the matrix is refused.
    total = float(least.sum(dtype=np.float64))
    return _Rounded(codes.reshape(rows, columns), scales.view(np.uint16), total)


def _squares(words: WordArray) -> NDArray[np.float64]:
    """[rows]: of the scales, added up."""
    found: NDArray[np.float64] = np.square(words.view(np.float16).astype(np.float64)).sum(-1)
    return found


def _spread(codes: CodeArray, words: WordArray) -> NDArray[np.float64]:
    """[rows]: the norm of ``scale * ((code & 3) - 1.5)``."""
    rows, blocks = words.shape
    squares = np.zeros(rows)
    for start in range(0, rows, CHUNK):
        part = slice(start, start + CHUNK)
        left = (codes[part] & np.uint8(3)).reshape(-1, blocks, BLOCK) - np.float32(1.5)
        scales = words[part].view(np.float16).astype(np.float64)
        squares[part] = (np.square(left).sum(-1) * np.square(scales)).sum(-1)
    return np.sqrt(squares)


def _pack6(codes: CodeArray, words: WordArray) -> tuple[CodeArray, CodeArray, WordArray]:
    """Bytes [tiles, 256 blocks] and [tiles, 128 blocks], and scales [tiles, blocks, 16]."""
    upper = pack([Blocks(codes >> np.uint8(2), words, 4)])
    tiles, blocks = upper.codes.shape[:2]
    missing = [(0, tiles * TILE - len(codes)), (0, 0)]
    # Of an input 16 half + 4 (2 h + odd) + j: tile, c, block, half, h, odd, j.
    lower = np.pad(codes & np.uint8(3), missing).reshape(tiles, TILE, blocks, 2, 2, 2, 4)
    half, odd = np.arange(2)[:, None, None, None], np.arange(2)[:, None]
    together = (lower << (4 * odd + 2 * half).astype(np.uint8)).sum((3, 5), dtype=np.uint8)
    fine = together.transpose(0, 2, 3, 1, 4).reshape(tiles, -1)  # tile, block, h, c, j
    return upper.codes.reshape(tiles, -1), fine, upper.scales
