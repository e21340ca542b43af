# Two images from one file:
#
#   core     Airflow and the program without torch: API server, DAG processor, triggerer, and the scheduler of Celery or
#            Kubernetes
#   worker   all of it: whatever runs tasks, which under LocalExecutor is the scheduler
#
# They share the layers of core's packages. Nothing is fetched when a container starts. Each has a list of its Python
# packages with their licences in /opt/sbom.json (CycloneDX); `docker buildx build --sbom=true` attests Debian's as well.
# The health check asks what the container runs; services of docker-compose.yaml have stricter ones.
FROM python:3.12.13-slim-trixie AS installer
COPY requirements-uv.txt /
RUN pip install --no-cache-dir --require-hashes -r /requirements-uv.txt
COPY requirements-sbom.txt /
RUN uv venv /sbom && uv pip install --no-cache --python /sbom/bin/python --require-hashes -r /requirements-sbom.txt


FROM python:3.12.13-slim-trixie AS core-packages

# tini passes signals on and reaps what ended: Airflow forks for every task.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*

# A new volume takes its owner from the folder that it covers, so the folders must exist and be this user's.
RUN useradd --uid 50000 --gid 0 --create-home afterimage \
    && install --directory --owner=afterimage --group=root --mode=775 \
        /opt/airflow /opt/airflow/logs /var/lib/afterimage

# The packages are one layer that changes with their lock only. The installer and its cache stay outside.
# Compiled now, because the user below cannot write beside the packages.
RUN --mount=type=bind,from=installer,source=/usr/local/bin/uv,target=/usr/local/bin/uv \
    --mount=type=bind,source=requirements-core.txt,target=/requirements.txt \
    --mount=type=cache,target=/root/.cache/uv \
    UV_LINK_MODE=copy uv pip install --system --compile-bytecode --require-hashes -r /requirements.txt

# AFTERIMAGE_HOME keeps models and what was compiled of them, and what torchvision fetches for a pipeline that asks for it.
ENV AIRFLOW_HOME=/opt/airflow \
    AFTERIMAGE_HOME=/var/lib/afterimage \
    TORCH_HOME=/var/lib/afterimage/torch \
    PYTHONPATH=/opt/afterimage \
    PYTHONUNBUFFERED=1 \
    AIRFLOW__USAGE_DATA_COLLECTION__ENABLED=False
WORKDIR /opt/afterimage
# Signals go to the whole process group (-g): the supervisor of a shard hands SIGTERM on to it, and the shard commits what
# it has finished and leaves the rest open. With a signal to the first process alone, Celery and the scheduler of
# LocalExecutor wait for the end of the shard, and are killed between two commits when their time is over.
ENTRYPOINT ["tini", "-g", "--"]
CMD ["python", "-m", "tasks", "--help"]
HEALTHCHECK --interval=60s --timeout=30s --start-period=120s --retries=3 CMD ["sh", "/opt/afterimage/docker/healthy.sh"]


# What the worker has beyond core: requirements.txt has core's packages in the same versions, so only the others are added.
FROM core-packages AS worker-packages

# torch compiles networks for a GPU with it.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

RUN --mount=type=bind,from=installer,source=/usr/local/bin/uv,target=/usr/local/bin/uv \
    --mount=type=bind,source=requirements.txt,target=/requirements.txt \
    --mount=type=cache,target=/root/.cache/uv \
    UV_LINK_MODE=copy uv pip install --system --compile-bytecode --require-hashes -r /requirements.txt

# Packages that only some need: --build-arg EXTRAS="ray onnx". extras/NAME.in says what each is for.
ARG EXTRAS=""
RUN --mount=type=bind,from=installer,source=/usr/local/bin/uv,target=/usr/local/bin/uv \
    --mount=type=bind,source=extras,target=/extras \
    --mount=type=cache,target=/root/.cache/uv \
    for extra in $EXTRAS; do \
        UV_LINK_MODE=copy uv pip install --system --compile-bytecode --require-hashes -r "/extras/$extra.txt" || exit 1; \
    done


FROM core-packages AS core-sbom
RUN --mount=type=bind,from=installer,source=/sbom,target=/sbom \
    /sbom/bin/python -m cyclonedx_py environment --output-reproducible --output-file /opt/sbom.json /usr/local/bin/python


FROM worker-packages AS worker-sbom
RUN --mount=type=bind,from=installer,source=/sbom,target=/sbom \
    /sbom/bin/python -m cyclonedx_py environment --output-reproducible --output-file /opt/sbom.json /usr/local/bin/python


# A checkout under a strict umask would give files that the user below cannot read.
FROM installer AS code
WORKDIR /opt/afterimage
COPY dags/ dags/
COPY plugins/ plugins/
COPY tasks/ tasks/
COPY demo/ demo/
COPY docker/ docker/
RUN chmod -R a+rX /opt/afterimage


FROM core-packages AS core
COPY --from=core-sbom /opt/sbom.json /opt/sbom.json
COPY --from=code /opt/afterimage/ /opt/afterimage/
USER 50000:0


FROM worker-packages AS worker
COPY --from=worker-sbom /opt/sbom.json /opt/sbom.json
COPY --from=code /opt/afterimage/ /opt/afterimage/
USER 50000:0
