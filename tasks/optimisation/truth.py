"""What is really on the images: a CSV of keys and labels, matched with a listing."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tasks.errors import ConfigurationError

Truth = Mapping[str, int]
"""Key of an image -> index of its label."""


def read_truth(path: Path, labels: Sequence[str], judged: Iterable[str], also: Iterable[str] = ()) -> dict[str, int]:
    """The labels of those images that the CSV knows; `labels` are the model's, in the order of its outputs.

    `judged` and `also` are keys: of the images that judge, and of others that may have a label.

    The columns are `key` and `label`; others are passed over. A key is the whole key, or the name of the file where only
    one of the images has it. A label is a label of the model, or its index. Raises ConfigurationError, which names the
    line, where a label is unknown or a key has two, and where no image that judges has one.
    """
    written = _rows(path, labels)
    judged = list(judged)
    keys = {*judged, *also}
    names = Counter(map(_name, keys))
    found = {}
    for key in keys:
        name = _name(key)
        if key in written:
            found[key] = written[key]
        elif name in written and names[name] == 1:
            found[key] = written[name]
    if not any(key in found for key in judged):
        example = (
            f"it has {next(iter(written))!r}, and the first image is {judged[0]!r}" if written else "it has no row"
        )
        raise ConfigurationError(
            f"{path} has a label for none of the {len(judged):,} images that judge: {example}. Write the whole key below the "
            "folder or the bucket, or the file's name where it is unique."
        )
    return found


def _rows(path: Path, labels: Sequence[str]) -> dict[str, int]:
    """{key: label's index} of the whole file."""
    indices = _indices(labels)
    rows: dict[str, int] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in ("key", "label") if name not in (reader.fieldnames or ())]
            if missing:
                columns = ", ".join(reader.fieldnames or ()) or "none"
                raise ConfigurationError(
                    f"{path} lacks the column {missing[0]!r}; it has {columns}. Give the first line `key,label`."
                )
            for row in reader:
                key, index = row["key"] or "", _index(path, reader.line_num, row["label"], indices, labels)
                if rows.setdefault(key, index) != index:
                    raise ConfigurationError(
                        f"{path}, line {reader.line_num}: {key!r} has two labels, {labels[rows[key]]!r} and "
                        f"{labels[index]!r}. Leave the right one."
                    )
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}. Give the path of a CSV of labels."
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"{path} is no CSV in UTF-8: {error}. Save it as one.") from None
    return rows


def _indices(labels: Sequence[str]) -> dict[str, int]:
    """What may stand in the column `label`: names that are unique, and indices that are no names themselves."""
    counts = Counter(labels)
    numbers = {str(index): index for index in range(len(labels))}
    return numbers | {label: index for index, label in enumerate(labels) if counts[label] == 1}


def _index(path: Path, line: int, label: str | None, indices: Mapping[str, int], labels: Sequence[str]) -> int:
    stated = (label or "").strip()
    if stated in indices:
        return indices[stated]
    why = "stands for two outputs of the model: write its index" if stated in labels else "is no label of the model"
    raise ConfigurationError(
        f"{path}, line {line}: {stated!r} {why}. Expected one of its {len(labels):,} labels, such as {labels[0]!r}, or an index "
        f"from 0 to {len(labels) - 1}."
    )


def _name(key: str) -> str:
    return key.rpartition("/")[2]
