#!/bin/sh
# Run once by the postgres image, when its volume is new: two databases, and for each an owner who cannot see the other.
set -eu
psql --set=ON_ERROR_STOP=1 --username="${POSTGRES_USER:-postgres}" --dbname=postgres \
    --set=airflow_password="$AIRFLOW_DATABASE_PASSWORD" \
    --set=afterimage_password="$AFTERIMAGE_DATABASE_PASSWORD" <<'SQL'
CREATE ROLE airflow LOGIN PASSWORD :'airflow_password';
CREATE DATABASE airflow OWNER airflow;
REVOKE CONNECT ON DATABASE airflow FROM PUBLIC;

CREATE ROLE afterimage LOGIN PASSWORD :'afterimage_password';
CREATE DATABASE afterimage OWNER afterimage;
REVOKE CONNECT ON DATABASE afterimage FROM PUBLIC;
SQL
