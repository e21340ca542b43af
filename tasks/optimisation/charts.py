"""Pictures of what was measured, as PNG. matplotlib is imported here only, and drawn without a screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, DOTS = 9.0, 3.2, 120  # inches, inches, dots per inch
ORIGINAL, NEW = "#8a8f98", "#1f77b4"


def draw_report(content: Mapping[str, Any], path: Path) -> None:
    """Three pairs of bars: size, speed, and accuracy or agreement."""
    from matplotlib.figure import Figure

    original, new, accuracy = content["original"], content["new"], content["accuracy"]
    panels = [
        ("size, MB", original["size_bytes"] / 1e6, new["size_bytes"] / 1e6, "{:,.2f}"),
        ("forward pass, images/s", original["images_per_second"], new["images_per_second"], "{:,.0f}"),
    ]
    if accuracy is None:
        panels.append(("agreement with the original, %", 100.0, 100 * content["agreement"]["share"], "{:.1f}"))
    else:
        panels.append(("accuracy, %", 100 * accuracy["original"]["share"], 100 * accuracy["new"]["share"], "{:.1f}"))
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DOTS, layout="constrained")  # a figure of its own draws with Agg
    for axes, (title, before, after, form) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        bars = axes.bar((f"original\n{original['precision']}", f"new\n{new['precision']}"), (before, after), width=0.6)
        for bar, colour in zip(bars, (ORIGINAL, NEW), strict=True):
            bar.set_color(colour)
        axes.bar_label(bars, labels=[form.format(value) for value in (before, after)], padding=2)
        axes.set_ylim(0, 1.15 * max(before, after, 1e-9))
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")


def draw_frontier(rows: Sequence[Mapping[str, Any]], measure: str, path: Path) -> None:
    """Each bundle as a point, images/s against accuracy or agreement; those on the frontier are full and joined.

    Names stand in a legend below the axes, a line each: beside points that lie close together they would cover each other.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 4.2 + 0.21 * len(rows)), dpi=DOTS, layout="constrained")
    axes = figure.subplots()
    best = sorted((row for row in rows if row["on_frontier"]), key=lambda row: row["images_per_second"])
    speeds, shares = [row["images_per_second"] for row in best], [100 * row["share"] for row in best]
    axes.plot(speeds, shares, linestyle="--", color=ORIGINAL, zorder=1, label="frontier")
    for number, row in enumerate(rows):
        colour = f"C{number % 10}"
        axes.scatter(
            [row["images_per_second"]],
            [100 * row["share"]],
            s=80,
            marker="osD^vP*X"[number // 10 % 8],
            edgecolors=colour,
            facecolors=colour if row["on_frontier"] else "white",
            linewidths=1.8,
            zorder=2,
            label=f" {row['name']}".replace("$", r"\$"),  # `$` begins a formula, a first `_` hides the line
        )
    axes.set_xlim(left=0)
    axes.margins(x=0.1, y=0.15)
    axes.set_xlabel("forward pass, images/s")
    axes.set_ylabel(f"{measure}, %")
    axes.set_title("full points: no other is both faster and more often right", fontsize=10)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower left", fontsize=9, frameon=False)
    figure.savefig(path, format="png", bbox_inches="tight")  # wider, where a name needs it
