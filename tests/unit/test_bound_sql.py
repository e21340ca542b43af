"""SQL is made of constants and of names that the program knows; every value is bound."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.settings import PROJECT

FILES = sorted(path for path in (PROJECT / "tasks" / "cache").rglob("*.py"))

# What may stand in braces: the schema and a view's name, both constants, and a clause that is one of two constants.
# bulk.py copies into columns and tables of schema.py.
KNOWN = {
    "SCHEMA",
    "where",
    "order",
    "schema",
    "name",
    "filled",
    "query",
    "table",
    "column",
    "new",
    "like",
    "listed",
    "target",
}
MIGRATIONS = PROJECT / "tasks" / "cache" / "migrations"
RUN_SQL = {"text", "execute", "exec_driver_sql", "copy"}


def statements(path: Path) -> Iterator[ast.expr]:
    """The first argument of each call that takes SQL as text."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in RUN_SQL or name == "_rows":
                yield node.args[1] if name == "_rows" and len(node.args) > 1 else node.args[0]


def parts(statement: ast.expr) -> Iterator[ast.expr]:
    """What an f-string or a concatenation is made of, besides text."""
    for node in ast.walk(statement):
        if isinstance(node, ast.FormattedValue):
            yield node.value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_value_is_written_into_a_statement(path: Path) -> None:
    for statement in statements(path):
        for part in parts(statement):
            assert isinstance(part, ast.Name | ast.Subscript | ast.IfExp | ast.Attribute | ast.Call), ast.unparse(part)
            names = {node.id for node in ast.walk(part) if isinstance(node, ast.Name)}
            known = names <= KNOWN | {"words"} or MIGRATIONS in path.parents
            assert known, f"{path}:{part.lineno}: {ast.unparse(part)} stands in SQL; bind it as a parameter"
        assert not any(isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) for node in ast.walk(statement)), (
            f"{path}:{statement.lineno}: SQL is not made with %"
        )


def test_the_clauses_that_are_put_together_are_constants() -> None:
    """contract.py makes conditions of the columns in `wanted`, and an order of _FAILURES or _RUNS: texts of the program's own."""
    tree = ast.parse((PROJECT / "tasks" / "cache" / "contract.py").read_text(encoding="utf-8"))
    columns, orders = 0, 0
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        if node.targets[0].id == "wanted":
            assert isinstance(node.value, ast.IfExp), ast.unparse(node)
            for one in (node.value.body, node.value.orelse):
                assert isinstance(one, ast.Dict), ast.unparse(node)
                assert all(isinstance(key, ast.Constant) for key in one.keys), ast.unparse(node)
                columns += len(one.keys)
        if node.targets[0].id in ("_FAILURES", "_RUNS"):
            assert isinstance(node.value, ast.Constant), ast.unparse(node)
            orders += 1
    assert (columns, orders) == (4, 2)


def test_there_is_sql_to_look_at() -> None:
    assert sum(1 for path in FILES for _ in statements(path)) > 20


def test_a_value_in_a_statement_would_be_found(tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text("connection.execute(text(f\"SELECT * FROM image WHERE key = '{key}'\"))\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="key stands in SQL"):
        test_no_value_is_written_into_a_statement(file)
