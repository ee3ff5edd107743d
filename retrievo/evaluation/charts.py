"""Charts as inline SVG, which scale with the page, print well and load nothing from the network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

import numpy as np

# Okabe & Ito 2008: distinguishable for color-blind readers; dashes distinguish lines in grayscale print.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9")
_DASHES = ("none", "6 3", "2 2", "8 3 2 3", "12 4", "1 3")
# Text of 11 units stays legible when 380 units are scaled to the 340 pixels of a phone.
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 380, 230, 52, 40, 12, 18
_BARS = 400  # most bars of a chart; with more queries, each bar stands for several


def line_chart(lines: Mapping[str, Mapping[int, float]], x_label: str, y_label: str) -> str:
    """Lines over a logarithmic x axis, y from 0 to 1, with a legend below."""
    depths = sorted({depth for line in lines.values() for depth in line})
    if not depths:
        return ""
    span = max(math.log10(depths[-1] / depths[0]), 1e-9)
    x, y = _scale(0, span, _LEFT, _WIDTH - _RIGHT), _scale(0, 1, _HEIGHT - _BOTTOM, _TOP)
    ticks = [depth for depth in depths if math.log10(depth) % 1 == 0] or depths
    parts = [_grid(y, (0, 0.2, 0.4, 0.6, 0.8, 1))]
    parts += [_text(x(math.log10(depth / depths[0])), _HEIGHT - _BOTTOM + 15, f"{depth:,}") for depth in ticks]
    for number, line in enumerate(lines.values()):
        points = " ".join(f"{x(math.log10(depth / depths[0])):.1f},{y(value):.1f}" for depth, value in line.items())
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{_color(number)}" stroke-width="2" '
            f'stroke-dasharray="{_DASHES[number % len(_DASHES)]}"/>'
        )
    return _chart(parts, x_label, y_label) + legend(lines)


def difference_chart(differences: np.ndarray, x_label: str, y_label: str) -> str:
    """A chart with one bar per query, best first: upward where the run is better, downward where it is worse."""
    values = np.sort(differences)[::-1]
    if len(values) > _BARS:
        values = np.array([part.mean() for part in np.array_split(values, _BARS)])
    reach = float(np.abs(values).max(initial=0)) or 1.0
    x, y = _scale(0, max(len(values), 1), _LEFT, _WIDTH - _RIGHT), _scale(-reach, reach, _HEIGHT - _BOTTOM, _TOP)
    parts = [_grid(y, _ticks(-reach, reach))]
    edges = [x(number) for number in range(len(values) + 1)]
    for color, part in zip(COLORS, (np.maximum(values, 0), np.minimum(values, 0)), strict=False):
        parts.append(f'<path d="{_steps(edges, y, part.tolist())}" fill="{color}"/>')
    return _chart(parts, x_label, y_label)


def histogram(groups: Mapping[str, np.ndarray], x_label: str, y_label: str, bins: int = 30) -> str:
    """Histograms of several groups of numbers over common bins, each normalized to its own group."""
    known = {name: values for name, values in groups.items() if len(values)}
    if not known:
        return ""
    every = np.concatenate(list(known.values())).astype(np.float64)
    low, high = float(every.min()), float(every.max())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    shares = {name: np.histogram(values, edges)[0] / len(values) for name, values in known.items()}
    top = max(float(share.max()) for share in shares.values())
    x, y = _scale(edges[0], edges[-1], _LEFT, _WIDTH - _RIGHT), _scale(0, top, _HEIGHT - _BOTTOM, _TOP)
    parts = [_grid(y, _ticks(0, top))]
    parts += [_text(x(at), _HEIGHT - _BOTTOM + 15, _short(at)) for at in _ticks(edges[0], edges[-1])]
    for number, share in enumerate(shares.values()):
        outline = _steps([x(edge) for edge in edges.tolist()], y, share.tolist())
        color = _color(number)
        parts.append(
            f'<path d="{outline}" fill="{color}" fill-opacity="0.25" stroke="{color}" '
            f'stroke-dasharray="{_DASHES[number % len(_DASHES)]}"/>'
        )
    return _chart(parts, x_label, y_label) + legend(shares)


def legend(names: Iterable[str]) -> str:
    """The legend of a chart, as text that wraps on a narrow page."""
    keys = "".join(
        f'<span><svg class="key" viewBox="0 0 24 8"><line x1="0" y1="4" x2="24" y2="4" stroke="{_color(number)}" '
        f'stroke-width="3" stroke-dasharray="{_DASHES[number % len(_DASHES)]}"/></svg>{escape(name)}</span>'
        for number, name in enumerate(names)
    )
    return f'<p class="legend">{keys}</p>'


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _steps(edges: Sequence[float], y: Callable[[float], float], values: Sequence[float]) -> str:
    """The outline of adjacent bars, as one path."""
    tops = "".join(
        f"L{left:.1f},{y(value):.1f}L{right:.1f},{y(value):.1f}"
        for left, right, value in zip(edges[:-1], edges[1:], values, strict=True)
    )
    return f"M{edges[0]:.1f},{y(0):.1f}{tops}L{edges[-1]:.1f},{y(0):.1f}Z"


def _ticks(low: float, high: float) -> list[float]:
    """Four to ten tick values between low and high: multiples of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next((size * power for size in (5, 2) if (high - low) / (size * power) >= 4), power)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _grid(y: Callable[[float], float], values: Sequence[float]) -> str:
    lines = [
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" class="grid"/>'
        f'<text x="{_LEFT - 5}" y="{y(value) + 4:.1f}" text-anchor="end">{_short(value)}</text>'
        for value in values
    ]
    return "".join(lines)


def _short(value: float) -> str:
    return f"{value:.4g}"


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(text)}</text>'


def _chart(parts: Sequence[str], x_label: str, y_label: str) -> str:
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    up = (_HEIGHT - _BOTTOM + _TOP) / 2
    labels = _text(middle, _HEIGHT - 8, x_label) + (
        f'<text x="12" y="{up}" text-anchor="middle" transform="rotate(-90 12 {up})">{escape(y_label)}</text>'
    )
    label = escape(f"{y_label} by {x_label}", quote=True)
    content = "".join(parts) + labels
    return f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{content}</svg>'
