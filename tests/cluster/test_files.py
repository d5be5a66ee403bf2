"""Every file of cluster/ is what it says: against schemas and by the linters of its kind."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from cvm_batch.cli import cli
from cvm_batch.cli.config import Config
from cvm_batch.cli.until import moment
from cvm_batch.cluster.jobs import JobRequest
from cvm_batch.cluster.submission import ours, stop_request
from cvm_batch.model.registry import MODELS_VARIABLE
from cvm_batch.screening.metrics import Kind, Metric
from tests.cluster.fake_jobs import FakeJobs

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
SCHEMAS = Path(__file__).parent / "schemas"
KUBERNETES = sorted((CLUSTER / "kuberay").glob("*.yaml"))
YAML = sorted(CLUSTER.rglob("*.yaml")) + sorted(CLUSTER.rglob("*.yml"))
SCRIPTS = [
    *(CLUSTER / "slurm").glob("*.sbatch"),
    CLUSTER / "kuberay" / "night.sh",
    CLUSTER / "image" / "healthy",
]


def tool(name: str) -> str:
    """A linter of this environment, or of the machine."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def passes(*command: object) -> None:
    ended = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def named(paths: list[Path]) -> Any:
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.name)


def _documents() -> Iterator[Any]:
    for path in KUBERNETES:
        for number, value in enumerate(yaml.safe_load_all(path.read_text())):
            yield pytest.param(value, id=f"{path.name}-{number}-{value['kind']}")


def strict(schema: Any) -> Any:
    """Refuse unknown fields, where the schema names the known ones."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: strict(value) for name, value in schema.items()}
    preserved = schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and not preserved:
        inner.setdefault("additionalProperties", False)
    return inner


@pytest.mark.parametrize("document", list(_documents()))
def test_kubernetes_takes_it(document: dict[str, Any]) -> None:
    if document["apiVersion"].startswith("ray.io/"):
        schema = strict(json.loads((SCHEMAS / f"{document['kind'].lower()}.json").read_text()))
        # Of the metadata, Kubernetes' own, the custom resource's schema says nothing.
        schema["properties"]["metadata"] = {"type": "object"}
        jsonschema.Draft202012Validator(schema).validate(document)
        return
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_an_unknown_field_is_refused() -> None:
    (cluster,) = yaml.safe_load_all((CLUSTER / "kuberay" / "40-cluster.yaml").read_text())
    schema = strict(json.loads((SCHEMAS / "raycluster.json").read_text()))
    schema["properties"]["metadata"] = {"type": "object"}
    worker = cluster["spec"]["workerGroupSpecs"][0]["template"]["spec"]
    worker["toleration"] = worker.pop("tolerations", [])
    with pytest.raises(jsonschema.ValidationError, match="toleration"):
        jsonschema.Draft202012Validator(schema).validate(cluster)


@pytest.mark.parametrize("document", list(_documents()))
def test_pods_are_restricted_and_secrets_are_references(document: dict[str, Any]) -> None:
    for pod in _pods(document):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
            assert not any("value" in one for one in container.get("env", []))
    assert document["kind"] != "Secret"


def _pods(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for inner in value.values():
            yield from _pods(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _pods(inner)


def test_the_night_is_run_once_at_a_time_on_a_cluster_with_tokens() -> None:
    cron = yaml.safe_load((CLUSTER / "kuberay" / "50-nightly.yaml").read_text())
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    job = yaml.safe_load((CLUSTER / "kuberay" / "rayjob.yaml").read_text())["spec"]
    standing = yaml.safe_load((CLUSTER / "kuberay" / "40-cluster.yaml").read_text())["spec"]
    for cluster in (job["rayClusterSpec"], standing):
        assert cluster["authOptions"] == {"mode": "token"}
        assert (cluster["enableInTreeAutoscaling"], cluster["autoscalerOptions"]["version"]) == (
            *(True, "v2"),
        )
        groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
        assert {"driver", "gpu", "gpu-spot"} <= groups.keys()
        wanted = json.loads(json.loads(groups["driver"]["rayStartParams"]["resources"]))
        assert wanted == {"cvm_batch_driver": 1}
    assert json.loads(job["entrypointResources"]) == {"cvm_batch_driver": 1}


def test_the_night_ends_by_the_laboratorys_clock_before_kubernetes_ends_it() -> None:
    """Also a second try, whose deadline `initRayJobStatusIfNeed` counts anew."""
    (cron,) = _in("50-nightly.yaml")
    spec = _nights_job()["spec"]
    environment, zone, *command = shlex.split(spec["entrypoint"])
    assert (environment, zone) == ("env", f"TZ={cron['spec']['timeZone']}")
    minute, hour, *_ = cron["spec"]["schedule"].split()
    evening = datetime(2026, 1, 10, int(hour), int(minute))
    until = command[command.index("--until") + 1]
    night = (moment(until, evening.astimezone()) or 0) - evening.timestamp()
    assert 0 < night < spec["activeDeadlineSeconds"]
    # A second try, begun as late as a first may end, is over.
    late = datetime.fromtimestamp(evening.timestamp() + spec["activeDeadlineSeconds"]).astimezone()
    assert (moment(until, late) or 0) < late.timestamp()
    waits = cron["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"]
    assert 2 * spec["activeDeadlineSeconds"] < waits < 24 * 3600
    for stage in _stages():
        assert "tzdata" in stage, "TZ would mean UTC"


def _in(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / "kuberay" / name).read_text()))


def test_the_autoscaler_gets_the_account_that_kuberay_makes_for_it() -> None:
    """`GetHeadGroupServiceAccountName`: the head's own, or one named like the cluster, which
    `reconcileAutoscalerServiceAccount` makes only where there is none of that name yet; to it
    `reconcileAutoscalerRoleBinding` gives the right to make and end pods."""
    ours = {one["metadata"]["name"] for one in _in("10-access.yaml") if "Account" in one["kind"]}
    (standing,) = _in("40-cluster.yaml")
    assert standing["metadata"]["name"] not in ours
    for cluster in (standing["spec"], _nights_job()["spec"]["rayClusterSpec"]):
        head = cluster["headGroupSpec"]["template"]["spec"]
        assert "serviceAccountName" not in head
        assert "automountServiceAccountToken" not in head
        for group in cluster["workerGroupSpecs"]:
            worker = group["template"]["spec"]
            assert worker["serviceAccountName"] in ours
            assert worker["automountServiceAccountToken"] is False


def _nights_job() -> dict[str, Any]:
    (job,) = _in("rayjob.yaml")
    return job


def test_kuberay_takes_how_the_nights_cluster_is_cleared_away() -> None:
    """As its operator's `validateDeletionConfiguration` has it, of which the schema says nothing:
    a time to live needs the shutdown, and rules of deletion exclude it (and are behind a feature
    gate in KubeRay 1.5)."""
    spec = _nights_job()["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert "deletionStrategy" not in spec


@pytest.mark.parametrize(
    ("state", "code"), [("Complete", 0), ("Failed", 1), ("ValidationFailed", 1)]
)
def test_the_night_waits_for_every_end_that_kuberay_knows(
    state: str, code: int, tmp_path: Path
) -> None:
    """Those of `IsJobDeploymentTerminal`, and what `Reconcile` sets where a job is not valid."""
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        f'#!/bin/sh\ncase "$1" in create) echo rayjob.ray.io/x ;; *) echo {state} ;; esac\n'
    )
    kubectl.chmod(0o755)
    ended = subprocess.run(
        ["sh", CLUSTER / "kuberay" / "night.sh"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        timeout=10,
        check=False,
    )
    assert ended.returncode == code


def test_the_nights_configuration_is_one(tmp_path: Path) -> None:
    config, environment = _in("20-config.yaml")
    path = tmp_path / "config.toml"
    path.write_text(config["data"]["config.toml"])
    Config.read(cli, path)
    submit = tomllib.loads(path.read_text())["submit"]
    assert submit.keys() >= {"slides", "model", "out"}
    # A name, which `models promote` and `rollback` change; a path would go on meaning the old one.
    assert "/" not in submit["model"]
    assert environment["data"].keys() == {MODELS_VARIABLE}
    assert _nights_job()["spec"]["metadata"]["out"] == submit["out"]


def test_every_pod_knows_the_models_and_the_driver_alone_the_secrets() -> None:
    (standing,) = _in("40-cluster.yaml")
    for cluster in (standing["spec"], _nights_job()["spec"]["rayClusterSpec"]):
        groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
        for name, group in (groups | {"head": cluster["headGroupSpec"]}).items():
            (ray,) = group["template"]["spec"]["containers"]
            sources = [source for one in ray["envFrom"] for source in one.values()]
            secrets = {"cvm-batch-secrets"} if name == "driver" else set()
            assert {source["name"] for source in sources} == secrets | {
                *("cvm-batch-environment", "cvm-batch-storage"),
            }


def test_neither_head_nor_driver_is_drained() -> None:
    """For pods whose controller has no scale subresource, Kubernetes' disruption controller takes
    `minAvailable` alone, as a number (`getExpectedScale`); KubeRay labels the pods of a group."""
    budgets = [one for one in _in("30-network.yaml") if one["kind"] == "PodDisruptionBudget"]
    kept = [one["spec"]["selector"]["matchLabels"] for one in budgets]
    assert [
        {name: value for name, value in labels.items() if name.startswith("ray.io/")}
        for labels in kept
    ] == [{"ray.io/node-type": "head"}, {"ray.io/group": "driver"}]
    for budget in budgets:
        assert "maxUnavailable" not in budget["spec"]
        assert budget["spec"]["minAvailable"] > 10  # clusters at a time


def test_mail_leaves_from_the_driver_and_identities_reach_the_pods() -> None:
    policies = [one for one in _in("30-network.yaml") if one["kind"] == "NetworkPolicy"]
    everywhere, mail = (one["spec"] for one in policies)
    assert mail["podSelector"]["matchLabels"]["ray.io/group"] == "driver"
    assert {port["port"] for rule in mail["egress"] for port in rule["ports"]} == {587, 465, 25}
    blocks = [
        to["ipBlock"]["cidr"]
        for rule in everywhere["egress"]
        for to in rule.get("to", ())
        if "ipBlock" in to
    ]
    assert blocks == ["169.254.170.23/32", "169.254.169.252/32"]
    assert "namespace `kuberay-operator`" in (CLUSTER / "kuberay" / "README.md").read_text()


def test_a_night_of_kuberays_is_known_as_a_run_of_ours() -> None:
    """The operator hands `spec.metadata` on as the job's (`BuildJobSubmitCommand`)."""
    client = FakeJobs()
    metadata = _nights_job()["spec"]["metadata"]
    client.submit(JobRequest(submission_id="cvm-batch-night-x", entrypoint="", metadata=metadata))
    (job,) = ours(client)
    words = shlex.split(stop_request(job).entrypoint)
    assert words == ["python", "-m", "cvm_batch", "stop", "/data/results"]


@named(YAML)
def test_yamllint(path: Path) -> None:
    passes(tool("yamllint"), "--strict", "--config-file", CLUSTER / "yamllint.yaml", path)


@named(SCRIPTS)
def test_shellcheck(path: Path) -> None:
    passes(tool("shellcheck"), path)


def test_hadolint() -> None:
    passes(tool("hadolint"), CLUSTER / "image" / "Dockerfile")


def test_the_image_is_pinned_and_nobodys_root() -> None:
    text = (CLUSTER / "image" / "Dockerfile").read_text()
    assert "--require-hashes --requirement requirements.lock" in text
    assert not re.search(r"^FROM \S+(:latest)?( AS|$)(?<!:\S)", text, re.M) or ":latest" not in text
    stages = _stages()
    assert [stage.partition(" AS ")[2].split()[0] for stage in stages] == ["cpu", "cuda"]
    for stage in stages:
        assert "USER 1000" in stage
        assert "HEALTHCHECK" in stage


def _stages() -> list[str]:
    """Of the images that run: what comes after each FROM, but for the one that builds."""
    text = (CLUSTER / "image" / "Dockerfile").read_text()
    return re.split(r"^FROM ", text, flags=re.M)[2:]


def test_ray_up() -> None:
    """Against the schema that Ray checks it by itself."""
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    value = yaml.safe_load((CLUSTER / "ray-up" / "cluster.yaml").read_text())
    jsonschema.validate(value, schema)
    for commands in (value["head_start_ray_commands"], value["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in commands[-1]
        assert "RAY_JOB_STOP_WAIT_TIME_S=60" in commands[-1], "read where the driver runs"
        assert MODELS_VARIABLE in commands[-1]
        assert "RAY_AUTH_TOKEN=" not in commands[-1], "a token in a list of processes"
    assert "--dashboard-host=127.0.0.1" in value["head_start_ray_commands"][-1]


def test_systemd(tmp_path: Path) -> None:
    units = sorted((CLUSTER / "systemd").glob("cvm-batch.*"))
    for unit in units:  # systemd-analyze wants the commands there
        text = unit.read_text().replace("/opt/cvm-batch/bin/cvm-batch", "/bin/true")
        (tmp_path / unit.name).write_text(text)
    service = configparser.ConfigParser(strict=False)
    service.read(CLUSTER / "systemd" / "cvm-batch.service")
    assert service["Service"]["SuccessExitStatus"] == "3 4"
    passes(tool("systemd-analyze"), "verify", "--man=no", *sorted(tmp_path.iterdir()))


def test_the_service_finds_what_the_guide_lays_out() -> None:
    """The models that were promoted, and folders that belong to the account that runs it."""
    unit = (CLUSTER / "systemd" / "cvm-batch.service").read_text()
    guide = (ROOT / "docs" / "operations.md").read_text()
    settings = re.findall(r"^(\w+)=(.*)$", unit, re.M)
    account = dict(settings)["User"]
    environment = dict(
        word.split("=", 1)
        for key, value in settings
        if key == "Environment"
        for word in value.split()
    )
    (made,) = re.findall(rf"install -d -o {account} (.+)", guide)
    writes = [path for key, value in settings if key == "ReadWritePaths" for path in value.split()]
    wanted = {*writes, environment["HOME"], environment["CVM_BATCH_MODELS"]}
    assert set(made.split()) == wanted
    assert f"sudo -H -u {account} -s" in guide
    assert f"CVM_BATCH_MODELS={environment['CVM_BATCH_MODELS']}" in guide


def test_prometheus() -> None:
    passes(tool("promtool"), "check", "config", CLUSTER / "prometheus" / "prometheus.yml")


QUEUED, TILES = "ray_cvm_batch_queue_tiles", "ray_cvm_batch_tiles_total{replica='1'}"
REPLICAS = "ray_cvm_batch_replicas"


@pytest.mark.parametrize(
    ("alert", "series", "fires"),
    [
        # Promtool's notation: a value each minute, `0+600x60` for 0, 600, ... 36000.
        ("CvmBatchStandsStill", {QUEUED: "9x60"}, True),  # not one tile was ever classified
        ("CvmBatchStandsStill", {QUEUED: "9x60", TILES: "500x60"}, True),
        ("CvmBatchStandsStill", {QUEUED: "9x60", TILES: "0+600x60"}, False),
        ("CvmBatchStandsStill", {QUEUED: "0x60"}, False),
        ("CvmBatchNoReplicas", {QUEUED: "9x60"}, True),
        ("CvmBatchNoReplicas", {QUEUED: "9x60", REPLICAS: "0x60"}, True),
        ("CvmBatchNoReplicas", {QUEUED: "9x60", REPLICAS: "1x60"}, False),
        ("CvmBatchNodesGone", {QUEUED: "9x60"}, True),
        ("CvmBatchNodesGone", {QUEUED: "9x30 0x30"}, False),  # the cluster shrinks with its work
    ],
)
def test_alerts_fire(alert: str, series: dict[str, str], fires: bool, tmp_path: Path) -> None:
    rules = CLUSTER / "prometheus" / "alerts.yml"
    groups = yaml.safe_load(rules.read_text())["groups"]
    (rule,) = [one for group in groups for one in group["rules"] if one["alert"] == alert]
    # Half of the nodes go after half an hour; by a PodMonitor's name of the job, too.
    nodes = {f"up{{job='cvm-batch/cvm-batch', instance='{i}'}}": "1x60" for i in range(2)}
    nodes |= {f"up{{job='cvm-batch/cvm-batch', instance='{i}'}}": "1x30" for i in range(2, 4)}
    expected = {"exp_labels": rule["labels"], "exp_annotations": rule["annotations"]}
    test = {
        "interval": "1m",
        "input_series": [
            {"series": name, "values": values} for name, values in (series | nodes).items()
        ],
        "alert_rule_test": [
            {"eval_time": "55m", "alertname": alert, "exp_alerts": [expected] if fires else []}
        ],
    }
    path = tmp_path / "test.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(rules)], "tests": [test]}))
    passes(tool("promtool"), "test", "rules", path)


def test_the_pod_monitor_finds_what_the_network_lets_it_reach() -> None:
    """KubeRay calls the port `metrics` and opens it on 8080 (`DefaultWorkerPodTemplate`)."""
    monitor = yaml.safe_load((CLUSTER / "prometheus" / "podmonitor.yaml").read_text())["spec"]
    network = _in("30-network.yaml")[0]["spec"]
    assert monitor["selector"] == network["podSelector"]
    assert [one["port"] for one in monitor["podMetricsEndpoints"]] == ["metrics"]
    assert 8080 in {port["port"] for one in network["ingress"] for port in one.get("ports", ())}


def queries_of_dashboard() -> list[str]:
    board = json.loads((CLUSTER / "grafana" / "cvm-batch.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def names_in(queries: list[str]) -> set[str]:
    found = {name for query in queries for name in re.findall(r"ray_\w+", query)}
    histograms = [one.exported_name for one in Metric if one.kind is Kind.HISTOGRAM]
    for histogram in histograms:
        found = {re.sub(rf"^{histogram}_(bucket|sum|count)$", histogram, name) for name in found}
    return found


def test_the_dashboard_shows_every_figure_and_no_other() -> None:
    assert names_in(queries_of_dashboard()) == {metric.exported_name for metric in Metric}


def test_alerts_are_made_of_figures_that_there_are_and_explained() -> None:
    rules = yaml.safe_load((CLUSTER / "prometheus" / "alerts.yml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    known = {metric.exported_name for metric in Metric}
    assert names_in([rule["expr"] for rule in alerts]) <= known
    explained = set(re.findall(r"`(CvmBatch\w+)`", (ROOT / "docs" / "operations.md").read_text()))
    assert {rule["alert"] for rule in alerts} == explained


def test_the_object_stores_policy_is_the_least() -> None:
    policy = json.loads((CLUSTER / "object-store" / "s3-policy.json").read_text())
    allowed = {
        action
        for statement in policy["Statement"]
        if statement["Effect"] == "Allow"
        for action in statement["Action"]
    }
    assert not any("*" in action for action in allowed)
    slides = [one for one in policy["Statement"] if "LAB-SLIDES" in str(one["Resource"])]
    writing = {"s3:PutObject", "s3:DeleteObject"}
    assert not any(writing & set(one["Action"]) for one in slides if one["Effect"] == "Allow")


def test_every_folder_has_a_readme_that_the_first_names() -> None:
    folders = {path.name for path in CLUSTER.iterdir() if path.is_dir()}
    assert folders == set(re.findall(r"`([a-z-]+)/`", (CLUSTER / "README.md").read_text()))
    assert all((CLUSTER / folder / "README.md").is_file() for folder in folders)
