"""The SQL cache: the only room that speaks SQL.

schema.py       the tables, as SQLAlchemy Core
database.py     engines and transactions for SQLite and PostgreSQL
refusals.py     what a database says when it refuses, and what to do about it
migrating.py    upgrade, check; migrations/ holds the Alembic scripts and the views
runs.py         the run row: open, generations, counts, close
staging.py      work_item: what a run listed, and what became of it
commits.py      one transaction of a shard: predictions, images, failures, outcomes
models.py       the model row
contract.py     reads through the views that users read too
"""
