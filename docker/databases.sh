#!/bin/sh
# Run once by the postgres image, when its volume is new: two databases, and for each an owner who cannot see the other.
# The cache's owner migrates it; whatever runs tasks is `afterimage`, who may write rows and make no tables.
set -eu
psql --set=ON_ERROR_STOP=1 --username="${POSTGRES_USER:-postgres}" --dbname=postgres \
    --set=airflow_password="$AIRFLOW_DATABASE_PASSWORD" \
    --set=afterimage_password="$AFTERIMAGE_DATABASE_PASSWORD" \
    --set=owner_password="$AFTERIMAGE_OWNER_PASSWORD" <<'SQL'
CREATE ROLE airflow LOGIN PASSWORD :'airflow_password';
CREATE DATABASE airflow OWNER airflow;
REVOKE CONNECT ON DATABASE airflow FROM PUBLIC;

CREATE ROLE afterimage_owner LOGIN PASSWORD :'owner_password';
CREATE DATABASE afterimage OWNER afterimage_owner;
CREATE ROLE afterimage LOGIN PASSWORD :'afterimage_password';
SQL
psql --set=ON_ERROR_STOP=1 --username="${POSTGRES_USER:-postgres}" --dbname=afterimage \
    --file="${ROLES:-/opt/roles.sql}" --command="GRANT afterimage_writer TO afterimage"
