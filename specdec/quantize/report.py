"""What was measured, as a table, as JSON and as a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from specdec.quantize.quality import Quality

_ROW = 26  # pixels
_LABELS = 190
_PANEL = 150
_GAP = 24


def table(qualities: Sequence[Quality]) -> str:
    """A Markdown table."""
    lines = [
        "| choice | perplexity | to float | top-1 agreement | mean KL (nats) |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {entry.choice} | {entry.perplexity:.3f} | {entry.perplexity_ratio:.4f} "
        f"| {entry.top1:.4f} | {entry.kl:.5f} ± {entry.kl_error:.5f} |"
        for entry in qualities
    ]
    return "\n".join(lines) + "\n"


def plot(qualities: Sequence[Quality]) -> str:
    """An SVG: one row for each choice, one panel of bars for each measure."""
    panels = (
        ("perplexity", [entry.perplexity for entry in qualities], "{:.2f}"),
        ("top-1 agreement", [entry.top1 for entry in qualities], "{:.3f}"),
        ("KL to float (nats)", [entry.kl for entry in qualities], "{:.4f}"),
    )
    width = _LABELS + len(panels) * (_PANEL + _GAP + 50)
    height = _ROW * (len(qualities) + 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for row, entry in enumerate(qualities):
        parts.append(_text(8, row + 1, entry.choice))
    for index, (title, values, form) in enumerate(panels):
        left = _LABELS + index * (_PANEL + _GAP + 50)
        parts.append(_text(left, 0, title))
        largest = max(*values, 1e-9)
        for row, value in enumerate(values, 1):
            length = _PANEL * max(value, 0) / largest
            top = row * _ROW + 5
            parts.append(
                f'<rect x="{left}" y="{top}" width="{length:.1f}" height="16" fill="#4878a8"/>'
            )
            parts.append(_text(left + length + 4, row, form.format(value)))
    return "\n".join([*parts, "</svg>"]) + "\n"


def write(file: Path, qualities: Sequence[Quality], about: dict[str, Any]) -> list[Path]:
    """Writes ``file`` with the endings .md, .json and .svg; ``about`` goes into the JSON.

    Returns the three. OSError where they cannot be written.
    """
    document = {**about, "choices": [entry.as_dict() for entry in qualities]}
    contents = {
        ".md": table(qualities),
        ".json": json.dumps(document, indent=2, ensure_ascii=False) + "\n",
        ".svg": plot(qualities),
    }
    files = []
    for ending, content in contents.items():
        files.append(file.with_name(file.name + ending))
        files[-1].write_text(content, encoding="utf-8")
    return files


def _text(x: float, row: int, text: str) -> str:
    return f'<text x="{x:.1f}" y="{row * _ROW + 17}">{escape(text)}</text>'
