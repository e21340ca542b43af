# One image for every service: Airflow, the pipeline and the demo.
FROM python:3.12.13-slim-trixie AS installer
COPY requirements-uv.txt /
RUN pip install --no-cache-dir --require-hashes -r /requirements-uv.txt


FROM python:3.12.13-slim-trixie

# tini passes signals on and reaps what ended: Airflow forks for every task.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*

# The packages are one layer that changes with requirements.txt only. The installer and its cache stay outside.
# Compiled now, because the user below cannot write beside the packages.
RUN --mount=type=bind,from=installer,source=/usr/local/bin/uv,target=/usr/local/bin/uv \
    --mount=type=bind,source=requirements.txt,target=/requirements.txt \
    --mount=type=cache,target=/root/.cache/uv \
    UV_LINK_MODE=copy uv pip install --system --compile-bytecode --require-hashes -r /requirements.txt

# A new volume takes its owner from the folder that it covers, so the folders must exist and be this user's.
RUN useradd --uid 50000 --gid 0 --create-home afterimage \
    && install --directory --owner=afterimage --group=root --mode=775 \
        /opt/airflow /opt/airflow/logs /var/lib/afterimage

WORKDIR /opt/afterimage
COPY dags/ dags/
COPY plugins/ plugins/
COPY tasks/ tasks/
COPY demo/ demo/
COPY docker/ docker/
# A checkout under a strict umask would give files that this user cannot read.
RUN chmod -R a+rX /opt/afterimage

ENV AIRFLOW_HOME=/opt/airflow \
    AFTERIMAGE_HOME=/var/lib/afterimage \
    PYTHONPATH=/opt/afterimage \
    PYTHONUNBUFFERED=1
USER 50000:0
ENTRYPOINT ["tini", "--"]
CMD ["python", "-m", "tasks", "--help"]
