"""Accuracy against tokens per forward pass, as PNG and SVG. Needs the extra bench: matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.decoders.presets import AUTOREGRESSIVE, ONE_TOKEN
from benchmarks.decoders.summary import Line, Score

FORMATS = ("png", "svg")
ANCHORS = {AUTOREGRESSIVE: "*", ONE_TOKEN: "P"}  # drawn in every panel, in black
MARKERS = "osvD^X<>hdp"
COLORS = 10


def save_plot(lines: Sequence[Line], stem: Path, title: str) -> list[Path]:
    """Draw the measured settings; return the files written: stem.png and stem.svg.

    A line joins the settings of one sweep; bars are the 95 % intervals. The same lines give the
    same files.
    """
    scores = {line.name: line.total for line in lines if line.total is not None}
    anchors = {name: scores[name] for name in ANCHORS if name in scores}
    panels = _panels([line for line in lines if line.name in scores and _is_drawn(line)])
    with mpl.rc_context({"svg.hashsalt": "plait", "font.size": 8.0}):  # the salt: of ids
        figure = Figure(figsize=(4.6 * len(panels) + 0.4, 6.4), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, (name, sweeps) in zip(axes, panels.items(), strict=True):
            _draw(axis, anchors, sweeps)
            axis.set_title(name)
        axes[0].set_ylabel("exact match, %")
        figure.suptitle(title)
        paths = [stem.with_suffix(f".{kind}") for kind in FORMATS]
        for path in paths:
            stamp = {"Date": None} if path.suffix == ".svg" else {}
            figure.savefig(path, dpi=160, metadata=stamp)
    return paths


def _panels(lines: Sequence[Line]) -> dict[str, dict[str, list[Score]]]:
    """Return the scores by panel and sweep; a setting without a sweep is one of its own."""
    panels: dict[str, dict[str, list[Score]]] = {}
    for line in lines:
        assert line.total is not None, "only measured settings are drawn"
        sweep = line.setting["sweep"] or line.name
        panels.setdefault(_panel_of(line), {}).setdefault(sweep, []).append(line.total)
    return panels or {"": {}}


def _is_drawn(line: Line) -> bool:
    """Tell whether a setting is drawn by its sweep; those without one may be anchors."""
    return line.name not in ANCHORS or bool(line.setting["sweep"])


def _panel_of(line: Line) -> str:
    if line.setting["weights"] == "distilled":
        return "distilled weights"
    canvas = line.setting["decoding"].get("canvas", {})
    return "full attention" if canvas.get("attention") == "full" else "blocks"


def _draw(axis: Axes, anchors: Mapping[str, Score], sweeps: Mapping[str, Sequence[Score]]) -> None:
    looks = cycle((f"C{i % COLORS}", MARKERS[i % len(MARKERS)]) for i in range(110))
    for name, score in anchors.items():
        _plot(axis, name, [score], ("black", ANCHORS[name]))
    for (name, scores), look in zip(sweeps.items(), looks, strict=False):
        _plot(axis, name, scores, look)
    axis.set_xlabel("tokens per forward pass")
    axis.grid(alpha=0.3)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)


def _plot(axis: Axes, name: str, scores: Sequence[Score], look: tuple[str, str]) -> None:
    color, marker = look
    values = [100 * score.accuracy.value for score in scores]
    below = [100 * (score.accuracy.value - score.accuracy.low) for score in scores]
    above = [100 * (score.accuracy.high - score.accuracy.value) for score in scores]
    axis.errorbar(
        [score.tokens_per_forward for score in scores],
        values,
        yerr=[below, above],
        label=name,
        color=color,
        marker=marker,
        markersize=5,
        linewidth=1,
        elinewidth=0.4,
        capsize=0,
    )
