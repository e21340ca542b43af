"""Which of Airflow's executors a shard asks for, and under Kubernetes the pod that it gets: one GPU, and a cache of models.

What the pod is made of beyond that (image, secrets, configuration) comes from Airflow's pod template, as for any task.
"""

from __future__ import annotations

import os
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.errors import ConfigurationError
from tasks.settings import load_settings, read_environment

POOL = os.environ.get("AFTERIMAGE_POOL", "gpu")
QUEUE = os.environ.get("AFTERIMAGE_QUEUE", "gpu")

CACHE = "afterimage-home"

# A commit takes seconds; a shard that is told to stop ends with one.
GRACE_SECONDS = 60


def pairs(text: str) -> str:
    """Refuse what is not `key=value,key=value`."""
    for part in filter(None, text.split(",")):
        if part.count("=") != 1 or part.startswith("="):
            raise ValueError("expected labels such as key=value,key=value")
    return text


Quantity = Annotated[str, Field(pattern=r"^[1-9]\d*(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]


class PodSettings(BaseSettings):
    """`AFTERIMAGE_KUBERNETES_*`, in the environment of the DAG processor: deploy/kubernetes/README.md says what each is for."""

    model_config = SettingsConfigDict(
        env_prefix="AFTERIMAGE_KUBERNETES_", env_ignore_empty=True, frozen=True, extra="ignore"
    )

    gpu: Annotated[str, Field(pattern=r"^(none|[a-z0-9.-]+/[a-z0-9.-]+)$")] = Field(
        "nvidia.com/gpu", description="The resource of which a shard gets one; none: shards run on processors."
    )
    cpu: Quantity = Field("4", description="Cores that a shard asks for: images are decoded on them.")
    memory: Quantity = Field("16Gi", description="Memory that a shard asks for, and may not exceed.")
    node_selector: Annotated[str, AfterValidator(pairs)] = Field(
        "", description="Labels of the nodes that shards may go to: key=value,key=value."
    )
    tolerations: Annotated[str, Field(pattern=r"^[^\s=:]*$")] = Field(
        "nvidia.com/gpu", description="Keys of the taints that do not keep shards away, with commas between them."
    )
    cache: Quantity = Field("20Gi", description="Disk for models and what is compiled of them, for the life of a pod.")
    cache_claim: str | None = Field(
        None, description="A PersistentVolumeClaim that all pods share in its place, so that a model is compiled once."
    )


def shard_options(executor: str) -> dict[str, Any]:
    """Arguments of `@task` that send a shard to an executor: local (Airflow's first), celery or kubernetes."""
    if executor == "local":
        return {}
    if executor == "celery":
        return {"executor": "CeleryExecutor"}
    if executor == "kubernetes":
        pod = shard_pod(read_environment(PodSettings), str(load_settings().home.absolute()))
        return {"executor": "KubernetesExecutor", "executor_config": {"pod_override": pod}}
    raise ConfigurationError(f"AFTERIMAGE_EXECUTOR is {executor!r}. Set it to local, celery or kubernetes.")


def shard_pod(settings: PodSettings, home: str) -> Any:
    """The V1Pod that Airflow lays over its pod template; `home` is AFTERIMAGE_HOME in it."""
    # A second or two at each parse, so only where pods are asked for.
    from kubernetes.client import models as k8s

    has_gpu = settings.gpu != "none"
    device = {settings.gpu: "1"} if has_gpu else {}
    container = k8s.V1Container(
        name="base",
        env=[
            k8s.V1EnvVar(name="AFTERIMAGE_HOME", value=home),
            # A node that has lost its GPU must fail the shard, and not go on at a hundredth of the speed.
            k8s.V1EnvVar(name="AFTERIMAGE_DEVICE", value="cuda" if has_gpu else "cpu"),
        ],
        resources=k8s.V1ResourceRequirements(
            requests={"cpu": settings.cpu, "memory": settings.memory, **_disk(settings)},
            limits={"memory": settings.memory, **device},
        ),
        volume_mounts=[k8s.V1VolumeMount(name=CACHE, mount_path=home)],
    )
    tolerations = [k8s.V1Toleration(key=key, operator="Exists") for key in settings.tolerations.split(",") if key]
    return k8s.V1Pod(
        spec=k8s.V1PodSpec(
            containers=[container],
            volumes=[_cache(settings)],
            node_selector=dict(part.split("=") for part in settings.node_selector.split(",") if part) or None,
            tolerations=tolerations or None,
            termination_grace_period_seconds=GRACE_SECONDS,
        )
    )


def _disk(settings: PodSettings) -> dict[str, str]:
    """What a node must have left for the cache; a claim brings its own."""
    return {} if settings.cache_claim else {"ephemeral-storage": settings.cache}


def _cache(settings: PodSettings) -> Any:
    from kubernetes.client import models as k8s

    if settings.cache_claim:
        claim = k8s.V1PersistentVolumeClaimVolumeSource(claim_name=settings.cache_claim)
        return k8s.V1Volume(name=CACHE, persistent_volume_claim=claim)
    return k8s.V1Volume(name=CACHE, empty_dir=k8s.V1EmptyDirVolumeSource(size_limit=settings.cache))
