"""Records one answer, plain and drafted, and draws both at their real speed: docs/stream.svg.

Run it on a quiet machine: ``python docs/make_stream_svg.py``.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path

from specdec import Generator, Model

COLUMNS = 46
LINE_HEIGHT = 20
CHARACTER_WIDTH = 8.4
PANE_WIDTH = COLUMNS * CHARACTER_WIDTH + 40
PAUSE = 2.0  # seconds that the finished text stays


@dataclass(frozen=True)
class Piece:
    """A token's text, when it came (seconds), and whether it was drafted."""

    text: str
    seconds: float
    drafted: bool


@dataclass(frozen=True)
class Recording:
    """One answer as it came."""

    title: str
    pieces: list[Piece]


def record(title: str, generator: Generator, prompt: str, max_tokens: int) -> Recording:
    """Stream an answer greedily and note when each token came; the draft length settles before."""
    settings = {"temperature": 0, "max_tokens": max_tokens}
    for _ in range(3):
        generator.generate(prompt, **settings)
    tokenizer = generator.target.tokenizer
    pieces = []
    start = time.perf_counter()
    for chunk in generator.stream(prompt, **settings):
        seconds = time.perf_counter() - start
        for index, token in enumerate(chunk.tokens):
            text = tokenizer.token_bytes(token).decode("utf-8", "replace")
            pieces.append(Piece(text, seconds, index < chunk.drafted))
    rate = generator.stats.tokens_per_second
    return Recording(f"{title}: {rate:.0f} tokens/s", pieces)


def place(pieces: list[Piece]) -> list[tuple[Piece, int, int]]:
    """Each piece with its column and line, wrapped between words."""
    placed = []
    column = line = 0
    for piece in pieces:
        if column + len(piece.text.rstrip("\n")) > COLUMNS:
            column, line = 0, line + 1
        text = piece.text.lstrip(" ") if column == 0 else piece.text
        for index, part in enumerate(text.split("\n")):
            if index:
                column, line = 0, line + 1
            if part:
                placed.append((Piece(part, piece.seconds, piece.drafted), column, line))
                column += len(part)
    return placed


def draw(recordings: list[Recording]) -> str:
    """The recordings side by side as an animated SVG."""
    end = max(recording.pieces[-1].seconds for recording in recordings) + PAUSE
    body = []
    lines = 0
    for pane, recording in enumerate(recordings):
        left = 20 + pane * PANE_WIDTH
        body.append(f'<text x="{left}" y="28" class="title">{escape(recording.title)}</text>')
        for piece, column, line in place(recording.pieces):
            lines = max(lines, line + 1)
            x = left + column * CHARACTER_WIDTH
            y = 60 + line * LINE_HEIGHT
            at = piece.seconds / end
            body.append(
                f'<text x="{x:.1f}" y="{y}" class="{"drafted" if piece.drafted else "target"}"'
                f' xml:space="preserve" opacity="0">{escape(piece.text)}'
                '<animate attributeName="opacity" calcMode="discrete" values="0;1"'
                f' keyTimes="0;{at:.4f}" dur="{end:.2f}s" repeatCount="indefinite"/></text>'
            )
    width = 20 + len(recordings) * PANE_WIDTH
    height = 70 + lines * LINE_HEIGHT
    style = (
        "text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;fill:#d8dee9}"
        ".title{font-weight:bold;fill:#ffffff}.drafted{fill:#8fd18b}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}">'
        f"<style>{style}</style>"
        f'<rect width="{width:.0f}" height="{height}" rx="8" fill="#1b1f27"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def main() -> None:
    """Record and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", default="Why is the sky blue?")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "stream.svg")
    arguments = parser.parse_args()
    target = Model.load("smollm2-135m")
    contestants = [
        ("target alone", Generator(target)),
        ("with the drafter", Generator(target, "smollm2-135m-drafter")),
    ]
    recordings = [
        record(title, generator, arguments.prompt, arguments.max_tokens)
        for title, generator in contestants
    ]
    arguments.output.write_text(draw(recordings), encoding="utf-8")


if __name__ == "__main__":
    main()
