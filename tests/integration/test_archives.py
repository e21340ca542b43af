"""Predictions go out as a file and come back: all of them, unchanged, once, and nothing else is believed. On both databases."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from sqlalchemy import Engine, text

from tasks.archives import checking, reading, writing
from tasks.archives.layout import KEY
from tasks.archives.packed import pack_all, unpack_all
from tasks.archives.reading import import_file
from tasks.archives.writing import export
from tasks.cache import archive
from tasks.cache.archive import Asked
from tasks.cache.database import connect, is_sqlite
from tasks.cache.database import writing as writing_in
from tasks.cache.erasing import Target, erase
from tasks.cache.keeping import pruning
from tasks.cache.keeping.retention import Retention
from tasks.cache.migrating import migrate
from tasks.cache.packing import pack, unpack
from tasks.errors import ConfigurationError
from tests.conftest import ROOT, outer_environment
from tests.database_roles import as_owner
from tests.pictures import picture, write_pictures, write_small_bundle
from tests.runner import Runner, outcomes

Make = Callable[..., Runner]
Changed = Callable[[pa.Table], pa.Table]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "images", 8)
    return tmp_path / "images"


@pytest.fixture
def make(tmp_path: Path, home: Path, images: Path, database_url: str) -> Make:
    """Makes runners over one folder and one cache; `seed` is another model."""

    def runner(seed: int = 0, url: str = database_url, **table: Any) -> Runner:
        model = write_small_bundle(tmp_path / f"model-{seed}", seed=seed, name=f"small-{seed}")
        return Runner(home, url, **{"images": str(images), "model": str(model), **table})

    return runner


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    found = connect(database_url)
    yield found
    found.dispose()


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Engine]:
    """Another cache, without a row."""
    found = connect(f"sqlite:///{tmp_path / 'empty.db'}")
    migrate(found)
    yield found
    found.dispose()


ROWS = (
    "SELECT m.model_id, m.name, m.version, m.spec, p.digest, p.label_index, p.score, p.margin, p.entropy, p.top_k, "
    "p.predicted_at FROM {schema}prediction p JOIN {schema}model m ON m.model_no = p.model_no"
)


def rows(engine: Engine) -> list[tuple[Any, ...]]:
    """All predictions as they are stored, with their models, in an order of their own."""
    with engine.connect() as connection:
        found = connection.execute(text(ROWS.format(schema="" if is_sqlite(engine) else "afterimage."))).all()
    return sorted(tuple(_plain(value) for value in row) for row in found)


def _plain(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("20"):
        return datetime.fromisoformat(value).replace(tzinfo=UTC)
    if isinstance(value, float):
        return np.float32(value).item()
    return value.astimezone(UTC) if isinstance(value, datetime) else value


def cascade(make: Make, tmp_path: Path) -> Runner:
    models = [str(write_small_bundle(tmp_path / f"model-{seed}", seed=seed, name=f"small-{seed}")) for seed in (0, 1)]
    return make(model=models, cascade_margin=0.02)


def test_out_of_one_database_into_the_other_and_back_nothing_changes(
    make: Make, engine: Engine, postgres_url: str, tmp_path: Path
) -> None:
    make().run()
    cascade(make, tmp_path).run()
    there = connect(f"sqlite:///{tmp_path / 'there.db'}")
    migrate(there)
    if is_sqlite(engine):
        there = connect(postgres_url)
    before, file = rows(engine), tmp_path / "predictions.parquet"
    assert export(engine, Asked(), file, 5).rows == len(before) == 16
    assert import_file(there, file) == reading.Imported(16, 16, 0, 0, 2)
    assert rows(there) == before
    back = connect(f"sqlite:///{tmp_path / 'back.db'}")
    migrate(back)
    export(there, Asked(), tmp_path / "back.parquet")
    import_file(back, tmp_path / "back.parquet")
    assert rows(back) == before


def test_what_was_dropped_comes_back_and_needs_no_forward_pass(make: Make, engine: Engine, tmp_path: Path) -> None:
    make(0).run()
    make(1).run()
    before, file = rows(engine), tmp_path / "small-0.parquet"
    assert export(engine, Asked(model="small-0@1"), file).rows == 8
    owner = connect(as_owner(make().settings.database_url))
    pruning.prune(owner, Retention(model="small-0@1"))
    assert len(rows(engine)) == 8
    assert import_file(engine, file) == reading.Imported(8, 8, 0, 0, 1)
    assert import_file(engine, file) == reading.Imported(8, 0, 8, 0, 1)
    assert rows(engine) == before
    assert outcomes(make(0).run()) == {"cached": 8}
    (found,) = make().rows(
        "SELECT DISTINCT dag_id, label FROM v_prediction WHERE model_name = 'small-0' AND key = '00003.png'"
    )
    assert found["dag_id"] is None


def test_a_fresh_cache_with_imported_predictions_reads_and_predicts_nothing(
    make: Make, engine: Engine, empty: Engine, tmp_path: Path
) -> None:
    make().run()
    export(engine, Asked(), tmp_path / "all.parquet")
    import_file(empty, tmp_path / "all.parquet")
    counts = make(url=str(empty.url)).run()
    assert (outcomes(counts), counts["forward_passes"]) == ({"reused": 8}, 0)


def test_filters_count_what_they_write(make: Make, images: Path, engine: Engine, tmp_path: Path) -> None:
    write_pictures(images / "more", 3, start=20)
    make(0).run()
    make(0, name="some", images=f"{images}/more/").run()
    make(1, name="other").run()
    middle = datetime.now(UTC) + timedelta(seconds=1)
    file = tmp_path / "some.parquet"
    for asked, expected in (
        (Asked(), 22),
        (Asked(model="small-1@1"), 11),
        (Asked(pipeline="some"), 6),
        (Asked(pipeline="some", model="small-0@1"), 3),
        (Asked(before=middle), 22),
        (Asked(since=middle), 0),
    ):
        written = export(engine, asked, file)
        found = parquet.read_table(file)
        assert written.rows == found.num_rows == expected, asked
        assert written.bytes == file.stat().st_size
        assert import_file(engine, file).there == expected
    for asked in (Asked(model="'; DROP TABLE model; --"), Asked(pipeline="%"), Asked(pipeline="")):
        with pytest.raises(ConfigurationError, match="The cache knows no"):
            export(engine, asked, file)


def test_a_row_says_what_the_view_says(make: Make, engine: Engine, tmp_path: Path) -> None:
    make().run()
    export(engine, Asked(), tmp_path / "all.parquet")
    found = {row["digest"].hex(): row for row in parquet.read_table(tmp_path / "all.parquet").to_pylist()}
    for row in make().rows("SELECT * FROM v_prediction"):
        mine = found[row["digest"]]
        assert {name: mine[name] for name in ("model_id", "label", "label_index", "dag_id", "run_id")} == {
            name: row[name] for name in ("model_id", "label", "label_index", "dag_id", "run_id")
        }
        best = json.loads(row["top_k"]) if isinstance(row["top_k"], str) else row["top_k"]
        assert [one["label"] for one in mine["top_k"]] == [one["label"] for one in best]
        assert [one["score"] for one in mine["top_k"]] == pytest.approx([one["score"] for one in best], abs=1e-6)
        assert mine["top_k"][0] == {"label_index": mine["label_index"], "label": mine["label"], "score": mine["score"]}


def test_rows_that_come_meanwhile_are_in_neither_count_nor_file(
    make: Make, images: Path, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make().run()
    groups = archive._groups

    def late(*arguments: Any) -> Any:
        write_pictures(images, 5, start=100)
        make().run()
        return groups(*arguments)

    monkeypatch.setattr(archive, "_groups", late)
    assert export(engine, Asked(), tmp_path / "all.parquet").rows == 8
    assert len(rows(engine)) == 13


def test_what_was_erased_for_good_stays_out(make: Make, engine: Engine, tmp_path: Path) -> None:
    import hashlib

    make().run()
    export(engine, Asked(), tmp_path / "all.parquet")
    owner = connect(as_owner(make().settings.database_url))
    erase(owner, Target(digest=hashlib.sha256(picture(3)).digest()), block=True, dry_run=False)
    assert import_file(engine, tmp_path / "all.parquet") == reading.Imported(8, 0, 7, 1, 1)
    assert len(rows(engine)) == 7


def test_the_first_row_wins(make: Make, engine: Engine, tmp_path: Path) -> None:
    make().run()
    export(engine, Asked(), tmp_path / "all.parquet")
    with writing_in(connect(as_owner(make().settings.database_url))) as connection:
        connection.execute(text(f"UPDATE {'' if is_sqlite(engine) else 'afterimage.'}prediction SET entropy = 0.5"))
    before = rows(engine)
    assert import_file(engine, tmp_path / "all.parquet").there == 8
    assert rows(engine) == before


# From here on the databases do not differ.


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Path:
    """A folder with a file of eight predictions of a model, and the cache that it came out of."""
    folder = tmp_path_factory.mktemp("eight")
    write_pictures(folder / "images", 8)
    model = write_small_bundle(folder / "model", name="small-0")
    url = f"sqlite:///{folder / 'cache.db'}"
    Runner(home, url, images=str(folder / "images"), model=str(model)).run()
    export(connect(url), Asked(), folder / "exported.parquet")
    return folder


@pytest.fixture
def exported(eight: Path, tmp_path: Path) -> Path:
    """The file, for this test alone."""
    return Path(shutil.copy(eight / "exported.parquet", tmp_path))


def put(table: pa.Table, name: str, place: int, value: Any) -> pa.Table:
    """Another value in a row."""
    values = table.column(name).to_pylist()
    values[place] = value
    number = table.schema.get_field_index(name)
    return table.set_column(number, table.schema.field(name), pa.array(values, table.schema.field(name).type))


def entries(table: pa.Table, place: int, **changed: Any) -> pa.Table:
    """Another value in an entry of the first row's top_k."""
    found = table.column("top_k").to_pylist()[0]
    found[place] = {**found[place], **changed}
    return put(table, "top_k", 0, found)


WRONG_ROWS: dict[str, tuple[Changed, str]] = {
    "score NaN": (lambda table: put(table, "score", 3, float("nan")), "score is not between"),
    "score 2": (lambda table: put(table, "score", 3, 2.0), "score is not between"),
    "margin -1": (lambda table: put(table, "margin", 3, -1.0), "margin is not between"),
    "entropy inf": (lambda table: put(table, "entropy", 3, float("inf")), "entropy is not between"),
    "label": (lambda table: put(table, "label", 3, "another"), "label is not what the model calls"),
    "label index": (lambda table: put(table, "label_index", 3, 99), "label is no output"),
    "negative index": (lambda table: put(table, "label_index", 3, -1), "label is no output"),
    "moment": (lambda table: put(table, "predicted_at", 3, datetime(1999, 1, 1, tzinfo=UTC)), "predicted_at"),
    "far moment": (lambda table: put(table, "predicted_at", 3, datetime(9999, 1, 1, tzinfo=UTC)), "predicted_at"),
    "stage": (lambda table: put(table, "cascade_stage", 3, 1), "cascade_stage is none of the model"),
    "twice": (lambda table: put(table, "digest", 3, table.column("digest")[4].as_py()), "a digest stands twice"),
    "model": (lambda table: put(table, "model_id", 3, "f" * 64), "does not list the model"),
    "no entries": (lambda table: put(table, "top_k", 0, []), "top_k has no entry"),
    "entry label": (lambda table: entries(table, 1, label="another"), "a label of top_k is not"),
    "entry index": (lambda table: entries(table, 1, label_index=2**20), "a label of top_k is no output"),
    "entry score": (lambda table: entries(table, 1, score=float("nan")), "a score of top_k"),
    "other best": (lambda table: entries(table, 0, score=0.0), "does not begin with the best"),
}


@pytest.mark.parametrize(("change", "told"), WRONG_ROWS.values(), ids=WRONG_ROWS.keys())
def test_a_row_that_no_export_wrote_is_refused(exported: Path, empty: Engine, change: Changed, told: str) -> None:
    parquet.write_table(change(parquet.read_table(exported)), exported)
    with pytest.raises(ConfigurationError, match=f"{told}.* from row 0 on. Export it anew"):
        import_file(empty, exported)
    assert rows(empty) == []


def facts(change: Callable[[dict[str, Any]], Any]) -> Changed:
    """A table with other metadata."""

    def changed(table: pa.Table) -> pa.Table:
        found = json.loads(table.schema.metadata[KEY])
        change(found)
        return table.replace_schema_metadata({KEY: json.dumps(found)})

    return changed


WRONG_FILES: dict[str, tuple[Changed, str]] = {
    "no metadata": (lambda table: table.replace_schema_metadata(None), "no metadata of an export"),
    "no JSON": (lambda table: table.replace_schema_metadata({KEY: "[" * 100_000}), "no metadata of an export"),
    "a column less": (lambda table: table.drop_columns(["entropy"]), "its columns"),
    "another type": (
        lambda table: table.cast(table.schema.set(4, pa.field("score", pa.float64(), nullable=False))),
        "its columns",
    ),
    "another format": (facts(lambda found: found.update(format=2)), "format 2"),
    "fewer rows": (lambda table: table.slice(1), "holds 7 rows and says 8"),
    "no models": (facts(lambda found: found.update(models=None)), "does not list its models"),
    "a model twice": (facts(lambda found: found.update(models=found["models"] * 2)), "lists a model twice"),
    "swapped labels": (facts(lambda found: found["models"][0]["labels"].reverse()), None),
    "other labels": (
        facts(lambda found: found["models"][0]["labels"][0].__setitem__(1, "mine")),
        "not those of its model_id",
    ),
    "other spec": (
        facts(lambda found: found["models"][0]["spec"].update(precision="int8")),
        "not those of its model_id",
    ),
    "a cascade": (
        facts(lambda found: found["models"][0].update(spec={"stages": [1], "margins": []})),
        "not those of its",
    ),
    "no id": (facts(lambda found: found["models"][0].update(model_id="'; --")), "is no model_id"),
    "half a letter": (facts(lambda found: found["models"][0].update(name="\ud800")), "lacks name"),
    "no index": (facts(lambda found: found["models"][0]["labels"].append([True, "x"])), "is no label of the model"),
}


@pytest.mark.parametrize(("change", "told"), WRONG_FILES.values(), ids=WRONG_FILES.keys())
def test_a_file_that_no_export_wrote_is_refused_before_a_row_is_written(
    exported: Path, empty: Engine, change: Changed, told: str | None
) -> None:
    parquet.write_table(change(parquet.read_table(exported)), exported)
    if told is None:  # The order of the list says nothing.
        assert import_file(empty, exported).inserted == 8
        return
    with pytest.raises(ConfigurationError, match=told):
        import_file(empty, exported)
    assert rows(empty) == []
    with empty.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM model")).scalar_one() == 0


def test_bytes_that_are_damaged_or_missing_are_told_of(exported: Path, empty: Engine) -> None:
    whole = exported.read_bytes()
    for damaged in (b"", b"PAR1", whole[:-1], whole[: len(whole) // 2], b"\0" * 100, b"{}"):
        exported.write_bytes(damaged)
        with pytest.raises(ConfigurationError, match="cannot be read as an export"):
            import_file(empty, exported)
    exported.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(ConfigurationError, match=r"exported\.parquet"):
        import_file(empty, exported)
    for missing in (exported.parent / "nothing.parquet", exported.parent):
        with pytest.raises(ConfigurationError, match="cannot be read as an export"):
            import_file(empty, missing)
    assert rows(empty) == []


def test_a_row_group_that_would_fill_the_memory_is_not_unpacked(
    exported: Path, empty: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bound, most in (("GROUP_ROWS", 7), ("GROUP_BYTES", 100), ("MOST_MODELS", 0)):
        with monkeypatch.context() as patched:
            patched.setattr(checking, bound, most)
            with pytest.raises(ConfigurationError, match=r"more than an export|does not list"):
                import_file(empty, exported)
    assert import_file(empty, exported).inserted == 8


def test_a_wrong_row_far_behind_is_found_before_the_first_is_written(
    exported: Path, empty: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BATCH_ROWS", 2)
    parquet.write_table(put(parquet.read_table(exported), "score", 6, float("nan")), exported)
    with pytest.raises(ConfigurationError, match="from row 6 on"):
        import_file(empty, exported)
    assert rows(empty) == []


def test_a_model_that_the_cache_knows_otherwise_is_refused(exported: Path, empty: Engine) -> None:
    import_file(empty, exported)
    with writing_in(empty) as connection:
        connection.execute(text("UPDATE model_label SET label = 'another' WHERE label_index = 1"))
    with pytest.raises(ConfigurationError, match="calls its output 1 'red' in the file and 'another' in the cache"):
        import_file(empty, exported)


def test_an_export_that_cannot_be_finished_leaves_what_was_there(
    exported: Path, eight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, before = connect(f"sqlite:///{eight / 'cache.db'}"), exported.read_bytes()
    files = sorted(tmp_path.iterdir())
    table = writing._table

    def broken(*arguments: Any) -> Any:
        table(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(writing, "_table", broken)
        with pytest.raises(KeyboardInterrupt):
            export(engine, Asked(), exported)
    assert (sorted(tmp_path.iterdir()), exported.read_bytes()) == (files, before)
    for impossible in (tmp_path / "nowhere" / "file.parquet", tmp_path):
        with pytest.raises(ConfigurationError, match="cannot be written"):
            export(engine, Asked(), impossible)
    export(engine, Asked(), exported)
    assert exported.stat().st_mode & 0o077 == 0o044


SLOW = """
import sys, time
from tasks import cli
from tasks.archives import writing

def wait(*_):
    print("writing", flush=True)
    time.sleep(60)

writing._table = wait
sys.argv = ["afterimage", "cache", "export", sys.argv[1]]
cli.main()
"""


def test_an_export_that_is_told_to_end_leaves_nothing(eight: Path, tmp_path: Path) -> None:
    files = sorted(tmp_path.iterdir())
    environment = outer_environment(AFTERIMAGE_DATABASE=f"sqlite:///{eight / 'cache.db'}")
    command = [sys.executable, "-c", SLOW, str(tmp_path / "new.parquet")]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        assert len(sorted(tmp_path.iterdir())) > len(files)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert b"nothing was exported" in err
    assert sorted(tmp_path.iterdir()) == files


def test_many_at_once_are_packed_as_one_by_one() -> None:
    draw = np.random.default_rng(0)
    cases = []
    for number in range(500):
        scores = draw.random(draw.integers(0, 9))
        listed = [(int(draw.integers(0, 2**20)), float(score)) for score in scores]
        cases.append((listed, int(draw.integers(1, 256)) if number % 3 else None))
    packed = [pack(*case) for case in cases]
    counts, indices, scores, stages = unpack_all(packed)
    assert stages == [stage for _, stage in cases]
    place = 0
    for one, count in zip(packed, counts.tolist(), strict=True):
        expected = unpack(one)[0]
        assert indices[place : place + count].tolist() == [index for index, _ in expected]
        assert scores[place : place + count].tolist() == [np.float32(score).item() for _, score in expected]
        place += count
    assert pack_all(counts, indices, scores, stages) == packed
    every = np.arange(2**20, dtype=np.int32)
    alone = [pack([(0, number / 1048575)]) for number in every[:: 2**8].tolist()]
    assert pack_all(*unpack_all(alone)) == alone
