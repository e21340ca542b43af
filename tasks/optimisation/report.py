"""The report on a new bundle: report.json for programs, report.md for people, report.png to look at.

All three say the same; the Markdown shows the worst of long lists and says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.models.bundle import Bundle
from tasks.models.spec import Option
from tasks.optimisation.charts import draw_report
from tasks.optimisation.choosing import Sample
from tasks.optimisation.figures import Figures, Gate
from tasks.optimisation.measuring import Speed, machine, ratio

SHOWN = 20  # rows of a list in the Markdown


@dataclass(frozen=True)
class Story:
    """What the report tells. `folder` is None where the new bundle was not kept."""

    original: Bundle
    new: Bundle
    folder: Path | None
    judged: Sample
    left_out: int
    figures: Figures
    gate: Gate
    misses: Sequence[str]
    advice: str
    speeds: Sequence[Speed]
    facts: Mapping[str, Option]


def size_of(bundle: Bundle) -> int:
    """Bytes of a bundle's files."""
    return sum(path.stat().st_size for path in (*bundle.files, bundle.folder / "model.toml"))


def content_of(story: Story) -> dict[str, Any]:
    """Plain values, as they stand in report.json."""
    figures = story.figures
    accuracy = None
    if figures.accuracy is not None:
        before, after = figures.accuracy
        accuracy = {"original": before.plain(), "new": after.plain(), "drop": figures.drop}
    return {
        "original": _model(story.original, story.speeds[0]),
        "new": _model(story.new, story.speeds[1]),
        "folder": None if story.folder is None else str(story.folder),
        "gate": {
            **asdict(story.gate),
            "passed": not story.misses,
            "misses": list(story.misses),
            "advice": story.advice,
        },
        "judged": {"uri": story.judged.uri, "images": len(story.judged.images), "left_out": story.left_out},
        "agreement": figures.agreement.plain(),
        "accuracy": accuracy,
        "classes": [{**asdict(each), "lost": each.lost} for each in figures.classes],
        "losses": [{**asdict(each), "lost": each.lost} for each in figures.losses],
        "disagreements": [asdict(each) for each in figures.disagreements],
        "machine": machine(),
        "times_faster": ratio(*story.speeds),
        "making": dict(story.facts),
        "provenance": dict(story.new.spec.provenance),
    }


def _model(bundle: Bundle, speed: Speed) -> dict[str, Any]:
    return {
        "name": bundle.spec.name,
        "model_id": bundle.model_id,
        "precision": bundle.spec.precision,
        "size_bytes": size_of(bundle),
        "device": speed.device,
        "runtime": speed.runtime,
        "images_per_second": speed.images_per_second,
        "rounds": list(speed.rates),
        "peak_bytes": speed.peak_bytes,
    }


def write(content: Mapping[str, Any], folder: Path) -> None:
    """Write the three files; those of an earlier try are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "report.md").write_text("\n".join(_lines(content)) + "\n", encoding="utf-8")
    draw_report(content, folder / "report.png")


def summary(content: Mapping[str, Any]) -> list[str]:
    """The figures in a few lines, for the terminal and for the top of the report."""
    original, new, agreement = content["original"], content["new"], content["agreement"]
    lines = [
        f"size: {original['size_bytes']:,} bytes -> {new['size_bytes']:,} bytes "
        f"({new['size_bytes'] / original['size_bytes']:.2f} of it)",
        f"forward pass: {_speed(original)} -> {_speed(new)}: {content['times_faster']:.2f} times, the median of "
        f"{len(new['rounds'])} rounds in turn ({content['machine']})",
        f"top-1 agreement: {agreement['count']:,} of {agreement['images']:,} images ({agreement['share']:.2%})",
    ]
    if content["accuracy"] is not None:
        before, after = content["accuracy"]["original"], content["accuracy"]["new"]
        lines.append(
            f"accuracy: {before['count']:,} -> {after['count']:,} of {before['images']:,} images with a label "
            f"({before['share']:.2%} -> {after['share']:.2%}, {0.0 - 100 * content['accuracy']['drop']:+.2f} points)"
        )
    judged = content["judged"]
    left_out = (
        f"{judged['left_out']:,} left out because they could not be read" if judged["left_out"] else "none left out"
    )
    lines.append(f"judged on: {judged['images']:,} images of {judged['uri']}, {left_out}")
    return lines


def verdict(content: Mapping[str, Any]) -> str:
    """Whether the bundle was kept, and if not, why and what to try."""
    gate = content["gate"]
    if gate["passed"]:
        return f"It passed the gate ({_gate(gate)}) and lies in {content['folder']}."
    return f"It missed the gate and was not kept: {'; '.join(gate['misses'])}. Try {gate['advice']}."


def _gate(gate: Mapping[str, Any]) -> str:
    drop, agreement = gate["max_accuracy_drop"], gate["min_agreement"]
    parts = [] if drop is None else [f"accuracy falls by at most {100 * drop:g} points"]
    return " and ".join(parts + ([] if agreement is None else [f"agreement of at least {agreement:.2%}"]))


def _speed(model: Mapping[str, Any]) -> str:
    return f"{model['images_per_second']:,.0f} images/s ({model['runtime']} {model['precision']}, {model['device']})"


def _lines(content: Mapping[str, Any]) -> Iterator[str]:
    yield f"# {_cell(content['original']['name'])} -> {_cell(content['new']['name'])}"
    yield from ("", _cell(verdict(content)), "", "![size, speed and agreement](report.png)", "")
    yield from (f"- {_cell(line)}" for line in summary(content))
    yield from _classes(content)
    yield from _disagreements(content["disagreements"], content["agreement"]["images"])
    yield from ("", "## How it was made", "")
    yield f"- original: model_id `{content['original']['model_id']}`"
    yield f"- new: model_id `{content['new']['model_id']}`"
    yield from (f"- {_cell(name)}: {_cell(value)}" for name, value in content["making"].items())
    yield from (f"- {_cell(name.replace('_', ' '))}: {_cell(value)}" for name, value in content["provenance"].items())


def _classes(content: Mapping[str, Any]) -> Iterator[str]:
    columns: tuple[str, ...] = ("class", "images", "original is right", "new is right")
    keys: tuple[str, ...] = ("label", "images", "original", "new")
    if content["accuracy"] is not None:
        yield from ("", "## Classes on which it is right less often", "")
    else:
        yield from ("", "## Agreement by what the original sees", "")
        columns, keys = ("class", "images", "new agrees"), ("label", "images", "new")
    losses = [[row[key] for key in keys] for row in content["losses"]]
    yield from _table(columns, losses, "None: every class is seen as before.", "classes")


def _disagreements(rows: Sequence[Mapping[str, Any]], images: int) -> Iterator[str]:
    yield from ("", "## Images on which they disagree", "")
    keys = ("key", "original", "original_score", "new", "new_score", "truth")
    columns = ("image", "original", "score", "new", "score", "really")
    cells = [[row[key] for key in keys] for row in rows]
    yield from _table(columns, cells, f"None of the {images:,}.", "images")


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]], empty: str, what: str) -> Iterator[str]:
    if not rows:
        yield empty
        return
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    yield from (f"| {' | '.join(map(_cell, row))} |" for row in rows[:SHOWN])
    if len(rows) > SHOWN:
        yield ""
        yield f"{SHOWN} of {len(rows):,} {what} are shown; report.json has all of them."


def _cell(value: object) -> str:
    """A value that cannot break a line or a table: keys and labels may hold anything."""
    if value is None:
        return "-"
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    plain = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return plain.replace("|", "\\|").replace("<", "&lt;")
