"""deploy/kubernetes/values.yaml, and the pod of a shard, put together by Airflow's own pod generator.

Neither Helm nor a cluster is here: KEYS are those of the chart that values.yaml uses, read off its schema.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from afterimage_executor import PodSettings, shard_options, shard_pod
from kubernetes.client import ApiClient
from kubernetes.utils import parse_quantity

from tasks.errors import ConfigurationError
from tasks.settings import PROJECT, Settings, read_environment
from tests.conftest import ROOT, outer_environment

FOLDER = PROJECT / "deploy" / "kubernetes"
VALUES: dict[str, Any] = yaml.safe_load((FOLDER / "values.yaml").read_text(encoding="utf-8"))
README = (FOLDER / "README.md").read_text(encoding="utf-8")
HOME = "/var/lib/afterimage"

KEYS = {
    "airflowVersion",
    "executor",
    "fernetKeySecretName",
    "apiSecretKeySecretName",
    "jwtSecretName",
    "env",
    "secret",
    "volumes",
    "volumeMounts",
    "images.airflow.repository",
    "images.airflow.tag",
    "images.pod_template.repository",
    "images.pod_template.tag",
    "images.migrationsWaitTimeout",
    "postgresql.enabled",
    "data.metadataSecretName",
    "migrateDatabaseJob.args",
    "migrateDatabaseJob.env",
    "createUserJob.args",
    "createUserJob.env",
    "workers.kubernetes.resources",
    "scheduler.resources",
    "dagProcessor.resources",
    "apiServer.resources",
    "triggerer.resources",
    "triggerer.persistence.enabled",
    "logs.persistence.enabled",
    "logs.persistence.size",
    "statsd.extraMappings",
}


def paths(node: Any, *before: str) -> set[str]:
    """Dotted paths to the leaves of nested mappings; resources are leaves, and [config] is Airflow's, not the chart's."""
    if not isinstance(node, dict) or before[-1:] == ("resources",):
        return {".".join(before)}
    return {path for key, value in node.items() for path in paths(value, *before, key)}


def environment() -> dict[str, str]:
    """The plain variables that the chart gives to all containers."""
    return {variable["name"]: variable["value"] for variable in VALUES["env"]}


def test_values_use_keys_that_the_chart_has() -> None:
    assert paths({key: value for key, value in VALUES.items() if key != "config"}) == KEYS


def test_values_set_options_that_airflow_has() -> None:
    """Read by an Airflow of this version, with the provider's own options."""
    code = (
        "import json, sys; from airflow.configuration import conf; from airflow.providers_manager import ProvidersManager;"
        "ProvidersManager().initialize_providers_configuration();"
        "print([name for name in sys.argv[1:] if not conf.has_option(*name.split('.', 1))])"
    )
    options = [f"{section}.{option}" for section, table in VALUES["config"].items() for option in table]
    done = subprocess.run(
        [sys.executable, "-c", code, *options], cwd=ROOT, env=outer_environment(), capture_output=True
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().splitlines()[-1] == "[]"
    assert all(isinstance(value, str) for table in VALUES["config"].values() for value in table.values())


def test_variables_of_values_are_ours() -> None:
    known = {f"AFTERIMAGE_{name.upper()}" for name in Settings.model_fields}
    known |= {f"AFTERIMAGE_KUBERNETES_{name.upper()}" for name in PodSettings.model_fields}

    assert set(environment()) | {secret["envName"] for secret in VALUES["secret"]} <= known
    assert environment()["AFTERIMAGE_EXECUTOR"] == "kubernetes"
    assert all(isinstance(value, str) for value in environment().values())


def test_values_hold_no_secret_and_the_readme_makes_each() -> None:
    wanted = {(secret["secretName"], secret["secretKey"]) for secret in VALUES["secret"]}
    wanted |= {
        (variable["valueFrom"]["secretKeyRef"]["name"], "admin-password") for variable in VALUES["createUserJob"]["env"]
    }
    wanted |= {
        (VALUES["data"]["metadataSecretName"], "connection"),
        (VALUES["fernetKeySecretName"], "fernet-key"),
        (VALUES["apiSecretKeySecretName"], "api-secret-key"),
        (VALUES["jwtSecretName"], "jwt-secret"),
    }
    commands = README.replace("\\\n", " ")

    for name, key in wanted:
        assert re.search(rf"create secret generic {name} .*--from-literal={key}=", commands), (name, key)
    assert f"create configmap {VALUES['volumes'][0]['configMap']['name']} --from-file=pipelines.toml" in commands


def test_the_images_are_the_two_targets_and_the_pod_template_wins() -> None:
    assert [VALUES["images"][name]["repository"].rpartition("/")[2] for name in ("airflow", "pod_template")] == [
        "afterimage-core",
        "afterimage-worker",
    ]
    assert VALUES["config"]["kubernetes_executor"]["worker_container_repository"] == ""
    assert VALUES["config"]["kubernetes_executor"]["worker_container_tag"] == ""
    assert VALUES["airflowVersion"] in (PROJECT / "requirements-core.txt").read_text(encoding="utf-8")


def test_metrics_get_the_labels_that_they_have_under_compose() -> None:
    mappings = yaml.safe_load((PROJECT / "docker" / "statsd.yaml").read_text(encoding="utf-8"))["mappings"]

    assert VALUES["statsd"]["extraMappings"] == mappings
    assert VALUES["config"]["metrics"]["statsd_influxdb_enabled"] == "True"


def test_the_migration_makes_all_tables_and_the_pool() -> None:
    command = VALUES["migrateDatabaseJob"]["args"][-1]

    assert [step.split(" gpu")[0] for step in command.split(" && ")] == [
        "airflow db migrate",
        "python -m tasks migrate",
        "airflow pools set",
    ]
    assert VALUES["migrateDatabaseJob"]["env"][0]["name"] == "GPU_SLOTS"


def test_every_setting_of_the_pod_is_in_the_readme_with_its_default() -> None:
    for name, field in PodSettings.model_fields.items():
        row = re.search(rf"^\| `AFTERIMAGE_KUBERNETES_{name.upper()}` \| (\S+) \|", README, re.MULTILINE)
        assert row is not None, name
        assert row[1].strip("`") == (field.default or "none"), name


# The pod of a shard.

RENDER = """
import json, sys
sys.path.insert(0, "dags")
from airflow.dag_processing.dagbag import DagBag
from airflow.providers.cncf.kubernetes.kube_config import KubeConfig
from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator
from airflow.serialization.serialized_objects import DagSerialization
from kubernetes.client import ApiClient

bag = DagBag("dags", bundle_path="dags", bundle_name="dags-folder", known_pools={"default_pool", "gpu"})
assert bag.import_errors == {}, bag.import_errors
stored = json.loads(json.dumps(DagSerialization.to_dict(bag.dags["predict_digits"])))
task = DagSerialization.from_dict(stored).task_dict["predict_and_upsert"]
others = [other for other in DagSerialization.from_dict(stored).tasks if other.task_id != "predict_and_upsert"]
assert not any(other.executor_config or other.executor for other in others)
pod = PodGenerator.construct_pod(
    dag_id="predict_digits", task_id=task.task_id, pod_id="predict-digits", try_number=1, date=None,
    kube_image=KubeConfig().kube_image, args=["python", "-m", "airflow.sdk.execution_time.execute_workload"],
    pod_override_object=PodGenerator.from_obj(task.executor_config), namespace="afterimage", scheduler_job_id="1",
    run_id="manual", map_index=7, base_worker_pod=PodGenerator.deserialize_model_file(sys.argv[1]),
)
print(json.dumps({"executor": task.executor, "queue": task.queue, "pool": task.pool,
                  "pod": ApiClient().sanitize_for_serialization(pod)}))
"""


def template() -> dict[str, Any]:
    """A pod template as the chart makes it of values.yaml: the same parts, in the same places."""
    image = VALUES["images"]["pod_template"]
    container = {
        "name": "base",
        "image": f"{image['repository']}:{image['tag']}",
        "env": [{"name": "AIRFLOW__CORE__EXECUTOR", "value": VALUES["executor"]}, *VALUES["env"]],
        "resources": VALUES["workers"]["kubernetes"]["resources"],
        "volumeMounts": [{"name": "logs", "mountPath": "/opt/airflow/logs"}, *VALUES["volumeMounts"]],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "placeholder-name", "labels": {"tier": "airflow", "component": "worker"}},
        "spec": {
            "containers": [container],
            "restartPolicy": "Never",
            "securityContext": {"runAsUser": 50000, "fsGroup": 0},
            "nodeSelector": {},
            "tolerations": [],
            "terminationGracePeriodSeconds": 600,
            "serviceAccountName": "airflow-worker",
            "volumes": [{"name": "logs", "emptyDir": {}}, *VALUES["volumes"]],
        },
    }


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the scheduler would send, from a DAG that was parsed, stored as JSON and read again."""
    folder = tmp_path_factory.mktemp("airflow")
    (folder / "template.yaml").write_text(yaml.safe_dump(template()), encoding="utf-8")
    repository = VALUES["config"]["kubernetes_executor"]["worker_container_repository"]
    given = outer_environment(
        **environment()
        | {
            "AIRFLOW_HOME": str(folder),
            "AFTERIMAGE_PIPELINES": str(PROJECT / "docker" / "pipelines.toml"),
            "AFTERIMAGE_HOME": HOME,
            "AIRFLOW__CORE__EXECUTOR": VALUES["executor"],
            "AIRFLOW__KUBERNETES_EXECUTOR__WORKER_CONTAINER_REPOSITORY": repository,
            "AIRFLOW__KUBERNETES_EXECUTOR__NAMESPACE": "afterimage",
        }
    )
    command = [sys.executable, "-c", RENDER, str(folder / "template.yaml")]
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def pod(rendered: dict[str, Any]) -> Any:
    """The pod as the Kubernetes client's models take it."""
    # Airflow reads its pod templates with it, too; the client has no public way.
    return ApiClient()._ApiClient__deserialize(rendered["pod"], "V1Pod")


def test_a_shard_asks_for_kubernetes_and_its_pool(rendered: dict[str, Any]) -> None:
    assert (rendered["executor"], rendered["queue"], rendered["pool"]) == ("KubernetesExecutor", "gpu", "gpu")


def test_the_pod_holds_one_gpu_and_the_memory_of_values(pod: Any) -> None:
    resources = pod.spec.containers[0].resources
    wanted = environment()

    assert resources.limits == {"nvidia.com/gpu": "1", "memory": wanted["AFTERIMAGE_KUBERNETES_MEMORY"]}
    assert resources.requests == {
        "cpu": wanted["AFTERIMAGE_KUBERNETES_CPU"],
        "memory": wanted["AFTERIMAGE_KUBERNETES_MEMORY"],
        "ephemeral-storage": wanted["AFTERIMAGE_KUBERNETES_CACHE"],
    }
    assert parse_quantity(resources.limits["memory"]) == 16 * 2**30


def test_the_pod_goes_to_nodes_with_a_gpu(pod: Any) -> None:
    assert pod.spec.node_selector == {"nvidia.com/gpu.present": "true"}
    assert [(one.key, one.operator) for one in pod.spec.tolerations] == [("nvidia.com/gpu", "Exists")]


def test_the_cache_lies_on_a_volume_where_the_program_looks(pod: Any) -> None:
    container = pod.spec.containers[0]
    mounts = {mount.name: mount.mount_path for mount in container.volume_mounts}
    volumes = {volume.name: volume for volume in pod.spec.volumes}
    variables = {variable.name: variable.value for variable in container.env}

    assert mounts["afterimage-home"] == variables["AFTERIMAGE_HOME"] == HOME
    assert volumes["afterimage-home"].empty_dir.size_limit == "20Gi"
    assert variables["AFTERIMAGE_DEVICE"] == "cuda"
    assert len(set(mounts.values())) == len(container.volume_mounts), "two volumes at one place"


def test_the_rest_of_the_pod_is_the_templates(pod: Any) -> None:
    container = pod.spec.containers[0]

    assert len(pod.spec.containers) == 1
    assert container.image == "registry.example.com/afterimage-worker:0.1.0"
    assert container.args[:2] == ["python", "-m"]
    assert {"logs", "pipelines"} < {mount.name for mount in container.volume_mounts}
    assert pod.spec.security_context.run_as_user == 50000
    assert pod.spec.service_account_name == "airflow-worker"
    assert pod.spec.termination_grace_period_seconds == 60
    assert pod.metadata.annotations["map_index"] == "7"


def test_a_claim_takes_the_place_of_the_pods_own_disk() -> None:
    spec = shard_pod(PodSettings(cache_claim="models"), HOME).spec

    assert spec.volumes[0].persistent_volume_claim.claim_name == "models"
    assert spec.volumes[0].empty_dir is None
    assert "ephemeral-storage" not in spec.containers[0].resources.requests


def test_shards_run_on_processors_where_no_gpu_is_asked_for() -> None:
    spec = shard_pod(PodSettings(gpu="none", tolerations="", node_selector=""), HOME).spec

    assert spec.containers[0].resources.limits == {"memory": "16Gi"}
    assert {one.name: one.value for one in spec.containers[0].env}["AFTERIMAGE_DEVICE"] == "cpu"
    assert (spec.node_selector, spec.tolerations) == (None, None)


def test_several_labels_and_taints() -> None:
    spec = shard_pod(PodSettings(tolerations="gpu,spot", node_selector="pool=gpu,zone=a"), HOME).spec

    assert spec.node_selector == {"pool": "gpu", "zone": "a"}
    assert [one.key for one in spec.tolerations] == ["gpu", "spot"]


def test_other_executors_bring_no_pod() -> None:
    assert shard_options("local") == {}
    assert shard_options("celery") == {"executor": "CeleryExecutor"}
    with pytest.raises(ConfigurationError, match="AFTERIMAGE_EXECUTOR is 'dask'"):
        shard_options("dask")


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("GPU", "two", "none|"),
        ("MEMORY", "16 gigabytes", "Ki|Mi|Gi"),
        ("MEMORY", "0", "Ki|Mi|Gi"),
        ("CPU", "-1", "Ki|Mi|Gi"),
        ("NODE_SELECTOR", "gpu", "key=value,key=value"),
        ("NODE_SELECTOR", "a=b=c", "key=value,key=value"),
        ("TOLERATIONS", "gpu=true:NoSchedule", "pattern"),
    ],
)
def test_a_wrong_setting_is_told_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv(f"AFTERIMAGE_KUBERNETES_{name}", value)

    with pytest.raises(ConfigurationError) as refused:
        shard_options("kubernetes")

    assert f"AFTERIMAGE_KUBERNETES_{name} is {value!r}" in str(refused.value)
    assert allowed in str(refused.value)


def test_an_empty_setting_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERIMAGE_KUBERNETES_MEMORY", "")

    assert read_environment(PodSettings).memory == "16Gi"


def test_the_docs_name_files_that_are_there() -> None:
    for name in ("dags/afterimage_executor.py", "deploy/kubernetes/values.yaml"):
        assert name in README
        assert (Path(PROJECT) / name).is_file()
