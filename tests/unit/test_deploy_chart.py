"""The chart's values, its schema, and what it has in common with the kustomize base."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from docs.tables import value_comments

from benchmarks.rolling_restart import DEPLOYMENT, Times
from deploy.check.inputs import CHART, GOLDENS
from plait.server import cli
from plait.server.options.serve import ServeOptions
from plait.server.settings import Settings
from tests.fixtures.manifests import Manifest, pods, server_options
from tests.fixtures.source_tree import ROOT
from tests.unit.test_deploy import KUBERNETES, manifests_of_the_base

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
# Options that values of their own stand for, or that the image or the pod decides.
OWN = {
    "models", "model", "served_name", "worker", "device", "draft_store", "api_key",
    "config", "engines", "host", "port", "api_key_file", "threads",
    "pool", "ray_address", "ray_host", "ray_cpus", "ray_gpus",
}  # fmt: skip


def _golden(name: str) -> list[Manifest]:
    return list(yaml.safe_load_all((GOLDENS / f"{name}.yaml").read_text()))


def _faults(values: Mapping[str, Any]) -> list[str]:
    merged = copy.deepcopy(VALUES)
    for name, value in values.items():
        merged[name] = merged.get(name, {}) | value if isinstance(value, dict) else value
    found = jsonschema.Draft7Validator(SCHEMA).iter_errors(merged)
    return [error.message for error in found]


def test_values_are_what_the_schema_wants() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert _faults({}) == []


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"replcas": 2}, "replcas"),
        ({"replicas": -1}, "-1"),
        ({"worker": "ray"}, "ray"),
        ({"workload": "DaemonSet"}, "DaemonSet"),
        ({"options": {"drain": 3}}, "drain"),
        ({"options": {"port": 9000}}, "port"),
        ({"options": {"drain_s": "30"}}, "30"),
        ({"image": {"digest": "sha256:12"}}, "sha256:12"),
        ({"resources": {"limits": {"cpu": "2"}}}, "memory"),
        ({"resources": {"limits": {"cpu": "2", "memory": "3 GB"}}}, "3 GB"),
        ({"gpu": {"count": 17}}, "17"),
        ({"autoscaling": {"metric": "vllm:num_requests_waiting"}}, "vllm:num_requests_waiting"),
        ({"autoscaling": {"minReplicas": 0}}, "0"),
        ({"disruptionBudget": {"maxUnavailable": "120%"}}, "120%"),
        ({"service": {"port": 70000}}, "70000"),
        ({"apiKeys": {"values": ["short"]}}, "short"),
        ({"extraArgs": ["other-model"]}, "other-model"),
        ({"model": {"path": "/models/a"}}, "/models/a"),
        ({"ray": {"workerGroups": []}}, "[]"),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], named: str) -> None:
    (fault,) = _faults(values)
    assert named in fault


def _undescribed(schema: Mapping[str, Any], values: Any, path: str = "") -> Iterator[str]:
    """Yield the values without a place in the schema, and the places without a value."""
    properties = schema.get("properties")
    if not properties or path == "options":
        return
    if schema["additionalProperties"] is not False:
        yield f"{path}: open"
    yield from (f"{path}.{name}" for name in properties.keys() ^ values.keys())
    for name in properties.keys() & values.keys():
        yield from _undescribed(properties[name], values[name], f"{path}.{name}".strip("."))


def test_schema_and_values_have_the_same_names() -> None:
    schema = copy.deepcopy(SCHEMA)
    del schema["properties"]["global"]  # Helm gives it to every chart
    assert list(_undescribed(schema, VALUES)) == []


def test_options_are_all_that_the_server_has() -> None:
    listed = set(SCHEMA["properties"]["options"]["properties"])
    assert listed == set(ServeOptions.model_fields) - OWN


def test_arguments_can_set_nothing_that_values_stand_for() -> None:
    text = (CHART / "templates" / "_validate.tpl").read_text()
    refused = re.search(r"\$owned := list (.*) }}", text)
    assert refused
    names = {name.replace("-", "_") for name in re.findall(r'"([\w-]+)"', refused[1])}
    assert names >= OWN - {"models", "engines"}  # an argument, and only in YAML
    assert names - OWN <= set(ServeOptions.model_fields)


def test_alerts_and_dashboard_are_those_of_their_folders() -> None:
    for name, source in {
        "alerts.yaml": ROOT / "deploy" / "prometheus" / "alerts.yaml",
        "dashboard.json": ROOT / "deploy" / "grafana" / "plait.json",
    }.items():
        assert (CHART / "files" / name).read_text() == source.read_text()
    native = _golden("native")
    (rule,) = [each for each in native if each["kind"] == "PrometheusRule"]
    alerts = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())
    assert rule["spec"] == alerts
    (board,) = [each for each in native if "plait.json" in each.get("data", {})]
    assert board["data"]["plait.json"] == "deploy/grafana/plait.json"  # its text, in the golden


def test_the_chart_is_of_this_version() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert f'\nversion = "{chart["appVersion"]}"\n' in project


@pytest.fixture
def settings(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Settings:
    """Settings that a golden's options stand for."""
    for name in ServeOptions.model_fields:
        monkeypatch.delenv(f"PLAIT_{name.upper()}", raising=False)
    golden = _golden(request.param)
    (tmp_path / "plait.yaml").write_text(yaml.safe_dump(server_options(golden)))
    pod = next(iter(pods(golden)))
    (arguments,) = [each["args"] for each in pod.containers if each["name"] == "plait"]
    seen: list[Settings] = []
    monkeypatch.setattr(cli, "run", seen.append)  # whose None is exit code 0
    mounted = {"/etc/plait/plait.yaml": str(tmp_path / "plait.yaml")}
    with pytest.raises(SystemExit) as ended:
        cli.main([mounted.get(argument, argument) for argument in arguments])
    assert not ended.value.code
    return seen[0]


@pytest.mark.parametrize(
    ("settings", "model", "device"),
    [
        ("default", "smollm2-135m-instruct", "cpu"),
        ("native", "/models/smollm2-1.7b.gguf", "cpu"),
        ("gateway", "/models/model", "cuda"),
        ("stateful", "/models/model.gguf", "cpu"),
        ("vllm-gpu", "/models/Qwen3-8B", "cpu"),  # vLLM runs where it is built for
        ("ray-cpu", "smollm2-135m-instruct", "cpu"),
        ("ray", "/models/model.gguf", "cuda"),
    ],
    indirect=["settings"],
)
def test_the_server_reads_the_options(settings: Settings, model: str, device: str) -> None:
    (engine,) = settings.engines
    assert (engine.model, engine.device) == (model, device)
    assert settings.telemetry.log_format == "json"


def _without(manifest: Manifest, *paths: str) -> Manifest:
    """Return a manifest without some of its parts, whose names have ">" for a slash."""
    left = copy.deepcopy(manifest)
    for path in paths:
        *parents, last = path.split("/")
        part: Any = left
        for name in parents:
            part = part[int(name)] if isinstance(part, list) else part.get(name, {})
        part.pop(last.replace(">", "/"), None)
    return left


POD = "spec/template"
# Parts in which both differ, and why.
DIFFERENCES = (
    "metadata/labels",  # Helm's own
    "spec/selector",  # the chart's releases are told apart by their instance
    "spec/podSelector",
    f"{POD}/metadata/labels",
    f"{POD}/metadata/annotations/checksum>options",  # kustomize gives the ConfigMap another name
    f"{POD}/spec/topologySpreadConstraints/0/labelSelector",  # as selectors
    f"{POD}/spec/containers/0/image",  # kustomize's images: names it
    f"{POD}/spec/containers/0/imagePullPolicy",  # what Kubernetes does with a tag
    "spec/type",  # ClusterIP is what Kubernetes takes
)


def _alike(manifest: Manifest) -> Manifest:
    left = copy.deepcopy(manifest)
    for container in left["spec"].get("template", {}).get("spec", {}).get("containers", ()):
        # The base takes a Secret that need not be there; the chart names one only if told to.
        container["env"] = [each for each in container["env"] if each["name"] != "PLAIT_API_KEY"]
    return _without(left, *DIFFERENCES)


KINDS = ("Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy")


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_is_what_the_chart_gives_by_default(kind: str) -> None:
    (have,) = [each for each in _golden("default") if each["kind"] == kind]
    (want,) = [each for each in manifests_of_the_base() if each["kind"] == kind]
    assert _alike(have) == _alike(want)


def test_chart_and_base_have_the_same_objects_and_options() -> None:
    kinds = sorted(each["kind"] for each in manifests_of_the_base())
    assert sorted(each["kind"] for each in _golden("default")) == ["ConfigMap", *kinds]
    options = yaml.safe_load((KUBERNETES / "plait.yaml").read_text())
    assert server_options(_golden("default")) == options


def test_pods_of_the_chart_are_replaced_as_the_benchmark_does_it() -> None:
    (deployment,) = [each for each in _golden("default") if each["kind"] == "Deployment"]
    assert Times.of(deployment) == Times.read(DEPLOYMENT)


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def test_every_value_has_a_comment() -> None:
    comments = value_comments((CHART / "values.yaml").read_text().splitlines())
    parts = [leaf.split(".") for leaf in _leaves(VALUES)]
    above = [{".".join(names[: end + 1]) for end in range(len(names))} for names in parts]
    assert [max(names) for names in above if not names & comments.keys()] == []
