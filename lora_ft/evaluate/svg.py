"""Small plots as SVG text: bars and histograms, without a library and without the network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 460, 150
LEFT, BOTTOM, TOP = 8, 22, 14
BAR_HEIGHT = 20
SOUND_HEIGHT = 80
NAME_WIDTH = 150
NUMBER_WIDTH = 70
LONGEST_NAME = 24


def bars(values: Sequence[tuple[str, int]]) -> str:
    """Horizontal bars with their names and numbers.

    Args:
        values: Name and number of each, in order.
    """
    most = max((number for _, number in values), default=0) or 1
    room = WIDTH - NAME_WIDTH - NUMBER_WIDTH
    drawn = []
    for index, (name, number) in enumerate(values):
        top, width = index * BAR_HEIGHT, max(1.0, room * number / most) if number else 0.0
        shown = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "\u2026"
        drawn.append(
            f'<text x="{NAME_WIDTH - 6}" y="{top + 14}" text-anchor="end"><title>{escape(name)}</title>'
            f'{escape(shown)}</text><rect x="{NAME_WIDTH}" y="{top + 3}" width="{width:.1f}" '
            f'height="{BAR_HEIGHT - 6}"/><text x="{NAME_WIDTH + width + 5:.1f}" y="{top + 14}">{number}</text>'
        )
    return _svg(drawn, height=BAR_HEIGHT * max(1, len(values)))


def histogram(edges: Sequence[int], counts: Sequence[int], *, line: int | None = None, line_name: str = "") -> str:
    """A histogram with a vertical line at a value of interest.

    Args:
        edges: Of the bins, one more than `counts`; the last bin holds all that is larger, too.
        counts: Rows in each bin.
        line: Where the line is, in the unit of the edges; beyond the last bin it is drawn at the right end.
        line_name: What is written beside it.
    """
    most, bins, right = max(counts, default=0) or 1, max(1, len(counts)), WIDTH - LEFT
    room, span = (right - LEFT) / bins, HEIGHT - TOP - BOTTOM
    drawn = []
    for index, count in enumerate(counts):
        height = span * count / most
        what = f"{edges[index]} to {edges[index + 1] - 1}" if index < bins - 1 else f"{edges[index]} and more"
        drawn.append(
            f'<rect x="{LEFT + index * room:.1f}" y="{TOP + span - height:.1f}" width="{max(1.0, room - 1):.1f}" '
            f'height="{height:.1f}"><title>{what}: {count} rows</title></rect>'
        )
    for index in range(0, bins, max(1, bins // 6)):
        drawn.append(f'<text x="{LEFT + index * room:.1f}" y="{HEIGHT - 6}" class="tick">{edges[index]}</text>')
    if line is not None:
        at = min(right, LEFT + (right - LEFT) * line / max(1, edges[-1]))
        side, shift = ("end", -4) if at > WIDTH / 2 else ("start", 4)
        drawn.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 10}" y2="{TOP + span}" class="mark"/>'
            f'<text x="{at + shift:.1f}" y="{TOP - 2}" text-anchor="{side}" class="mark">{escape(line_name)}</text>'
        )
    return _svg(drawn, height=HEIGHT)


def waveform(samples: Sequence[float]) -> str:
    """A sound over time: its highest and lowest sample in each column, full scale from edge to edge.

    Args:
        samples: `(samples,)`; beyond -1 and 1 they are drawn at the edges.
    """
    values = np.clip(np.asarray(samples, dtype=np.float64), -1.0, 1.0)
    parts = np.array_split(values, min(WIDTH, max(1, len(values))))
    middle = SOUND_HEIGHT / 2
    drawn = []
    for at, part in enumerate(parts):
        top, low = (float(part.max()), float(part.min())) if len(part) else (0.0, 0.0)
        height = max(1.0, (top - low) * middle)
        drawn.append(f'<rect x="{at}" y="{middle - top * middle:.1f}" width="1" height="{height:.1f}"/>')
    return _svg(drawn, height=SOUND_HEIGHT)


def _svg(drawn: Sequence[str], *, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img">{"".join(drawn)}</svg>'
    )
