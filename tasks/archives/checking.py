"""What is believed of a file, whoever made it: nothing that was not looked at.

A model_id is a fingerprint of what a model is, its labels included, so that a file cannot say something else under its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from tasks.archives.layout import FORMAT, KEY, schema
from tasks.cache.archive import KeptModel
from tasks.cache.packing import MOST_LABELS
from tasks.errors import ConfigurationError
from tasks.models.fingerprint import fingerprint

if TYPE_CHECKING:
    from pyarrow import parquet

# What a row group may be, unpacked: memory is bounded by it.
GROUP_ROWS = 1_000_000
GROUP_BYTES = 2**29

MOST_MODELS = 10_000
TEXT_CHARACTERS = 10_000

_MODEL_ID = re.compile(r"[0-9a-f]{64}")


def check_layout(path: Path, file: parquet.ParquetFile) -> dict[str, KeptModel]:
    """{model_id: model} of a file whose columns, metadata and row groups are those of an export. Raises ConfigurationError."""
    found = file.schema_arrow
    if not found.remove_metadata().equals(schema()):
        raise _wrong(path, "its columns are not those of an export")
    facts = _facts(path, (found.metadata or {}).get(KEY, b""))
    if facts.get("format") != FORMAT:
        raise _wrong(path, f"it has the format {facts.get('format')!r}, and this program reads {FORMAT}")
    if facts.get("rows") != file.metadata.num_rows:
        raise _wrong(path, f"it holds {file.metadata.num_rows} rows and says {facts.get('rows')!r}")
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        if not (0 <= group.num_rows <= GROUP_ROWS and 0 <= group.total_byte_size <= GROUP_BYTES):
            raise _wrong(
                path,
                f"row group {number} has {group.num_rows} rows of {group.total_byte_size} bytes, more than an export",
            )
    return _models(path, facts.get("models"))


def _facts(path: Path, text: bytes) -> Mapping[str, Any]:
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise _wrong(path, "it has no metadata of an export")
    return facts


def _models(path: Path, listed: object) -> dict[str, KeptModel]:
    if not isinstance(listed, list) or len(listed) > MOST_MODELS:
        raise _wrong(path, "it does not list its models")
    models = [_model(path, one) for one in listed]
    by_id = {one.model_id: one for one in models}
    if len(by_id) < len(models):
        raise _wrong(path, "it lists a model twice")
    return by_id


def _model(path: Path, one: object) -> KeptModel:
    if not isinstance(one, dict):
        raise _wrong(path, "a model of its list is none")
    model_id, name, version, spec, labels = (one.get(key) for key in ("model_id", "name", "version", "spec", "labels"))
    if not (isinstance(model_id, str) and _MODEL_ID.fullmatch(model_id)):
        raise _wrong(path, f"{model_id!r} is no model_id")
    if not (_is_text(name) and _is_text(version) and isinstance(spec, dict) and isinstance(labels, list)):
        raise _wrong(path, f"the model {model_id[:12]} lacks name, version, spec or labels")
    named = _labels(path, model_id, labels)
    if not _is_identity(model_id, spec, named):
        raise _wrong(path, f"spec or labels of the model {model_id[:12]} are not those of its model_id")
    return KeptModel(model_id, name, version, spec, named)


def _labels(path: Path, model_id: str, labels: list[Any]) -> dict[int, str]:
    for pair in labels:
        is_pair = isinstance(pair, list) and len(pair) == 2 and type(pair[0]) is int and _is_text(pair[1])
        if not is_pair or not 0 <= pair[0] < MOST_LABELS:
            raise _wrong(path, f"{str(pair)[:100]!r} is no label of the model {model_id[:12]}")
    named = {index: label for index, label in labels}  # noqa: C416  # mypy knows no pairs among lists
    if len(named) < len(labels):
        raise _wrong(path, f"an output of the model {model_id[:12]} has two labels")
    return named


def _is_text(value: object) -> TypeGuard[str]:
    """Whether a database can hold it, and it is no book."""
    if not isinstance(value, str) or len(value) > TEXT_CHARACTERS or "\0" in value:
        return False
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_identity(model_id: str, spec: Mapping[str, Any], labels: Mapping[int, str]) -> bool:
    """Whether a bundle, or the bundles of a cascade, with these labels have this model_id."""
    listed = [labels.get(index) for index in range(len(labels))]
    try:
        if "stages" not in spec:
            return bool(fingerprint(spec) == model_id and spec["labels"] == listed)
        stages = spec["stages"]
        ids = [stage["model_id"] for stage in stages]
        whole = fingerprint({"stages": ids, "margins": spec["margins"]}) == model_id
        return whole and all(_is_stage(stage, listed) for stage in stages)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return False


def _is_stage(stage: Mapping[str, Any], labels: list[str | None]) -> bool:
    identity = {key: value for key, value in stage.items() if key not in ("name", "version", "model_id")}
    named = _is_text(stage["name"]) and _is_text(stage["version"])
    return named and fingerprint({**identity, "labels": labels}) == stage["model_id"]


def _wrong(path: Path, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{path} is no export of ./afterimage cache export, or was changed: {what}. Export it anew."
    )


def wrong_row(path: Path, what: str, number: int) -> ConfigurationError:
    """What is said of a row; `number` is its place in the file, from 0 on."""
    return _wrong(path, f"{what} from row {number:,} on")
