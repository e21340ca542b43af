#!/bin/sh
# What must be there before any other service starts. Every step may run again: `docker compose up` does so each time.
set -eu

# The tables of Airflow, those of its users among them, and the tables of the cache.
airflow db migrate
python -m tasks migrate

# A task whose pool is missing is never scheduled.
airflow pools set gpu "$GPU_SLOTS" "one slot for each GPU"

# A user who exists stays as he is, password included.
airflow users create --role Admin --username "$AIRFLOW_ADMIN_USER" --password "$AIRFLOW_ADMIN_PASSWORD" \
    --firstname Afterimage --lastname Admin --email admin@localhost

# The bucket and the model of [digits] in pipelines.toml. Remove this line together with that table.
python -m demo.seed
