"""What deploy/ holds fits the server: its options, routes, ports, times and metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.routing import APIRoute

from benchmarks.rolling_restart import DEPLOYMENT, Times
from plait.server import cli
from plait.server.api.routes.operations import router
from plait.server.options.serve import ServeOptions
from plait.server.settings import Settings
from plait.server.telemetry.engine_collector import (
    EngineCollector,
    EngineSnapshot,
    GrammarCollector,
)
from plait.server.telemetry.metrics import Metrics
from plait.server.wire.counters import EngineCounters, SpeculationCounters
from tests.fixtures.source_tree import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yaml"
STOPPING_S = 5  # from the last answer to the end of the process
DASHBOARD = ROOT / "deploy" / "grafana" / "plait.json"
# Of PromQL, not of a metric.
FUNCTIONS = {"sum", "max", "by", "rate", "increase", "histogram_quantile"}
TARGET = {"job", "instance"}  # labels that Prometheus adds

Manifest = dict[str, Any]


def manifests_of_the_base() -> list[Manifest]:
    resources = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    return [
        each for name in resources for each in yaml.safe_load_all((KUBERNETES / name).read_text())
    ]


def _spec(kind: str) -> Manifest:
    (spec,) = [each["spec"] for each in manifests_of_the_base() if each["kind"] == kind]
    return spec  # type: ignore[no-any-return]


def _pod() -> Manifest:
    return _spec("Deployment")["template"]["spec"]  # type: ignore[no-any-return]


def _container() -> Manifest:
    (container,) = _pod()["containers"]
    return container  # type: ignore[no-any-return]


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings that the container's command line stands for."""
    for name in ServeOptions.model_fields:
        monkeypatch.delenv(f"PLAIT_{name.upper()}", raising=False)
    seen: list[Settings] = []
    monkeypatch.setattr(cli, "run", seen.append)  # whose None is exit code 0
    mounted = {"/etc/plait/plait.yaml": str(KUBERNETES / "plait.yaml")}
    with pytest.raises(SystemExit) as ended:
        cli.main([mounted.get(argument, argument) for argument in _container()["args"]])
    assert not ended.value.code
    return seen[0]


def test_every_file_is_part_of_the_base() -> None:
    base = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    (options,) = base["configMapGenerator"]
    files = {"kustomization.yaml", *base["resources"], *options["files"]}
    assert {path.name for path in KUBERNETES.iterdir()} == files


def test_the_container_reads_the_options_that_are_mounted() -> None:
    container, pod = _container(), _pod()
    base = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    (options,) = base["configMapGenerator"]
    path = Path(container["args"][container["args"].index("--config") + 1])
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}

    assert sorted(mounts.values()) == sorted(volumes)
    assert volumes[mounts[str(path.parent)]]["configMap"]["name"] == options["name"]
    assert options["files"] == [path.name]
    assert "/tmp" in mounts  # the root is read-only


def test_variables_are_options() -> None:
    names = {each["name"] for each in _container()["env"]}
    assert names <= {f"PLAIT_{option.upper()}" for option in ServeOptions.model_fields}


def test_probes_ask_what_the_server_answers() -> None:
    container = _container()
    paths = {route.path for route in router.routes if isinstance(route, APIRoute)}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    probes = {
        name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")
    }

    assert {probe["path"] for probe in probes.values()} <= paths
    assert probes["liveness"]["path"] != probes["readiness"]["path"]  # or a full queue restarts it
    assert {probe["port"] for probe in probes.values()} == {"http"} == set(ports)
    assert ports["http"] == ServeOptions.model_fields["port"].default
    assert _spec("Service")["ports"][0]["targetPort"] == "http"
    assert _spec("NetworkPolicy")["ingress"] == [{"ports": [{"port": "http"}]}]


def test_a_pod_may_load_and_drain_for_as_long_as_the_server(settings: Settings) -> None:
    container = _container()
    startup = container["startupProbe"]
    wait_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]

    assert startup["periodSeconds"] * startup["failureThreshold"] >= settings.pool.ready_timeout_s
    assert _spec("Deployment")["progressDeadlineSeconds"] > settings.pool.ready_timeout_s
    grace_s = _pod()["terminationGracePeriodSeconds"]
    assert grace_s >= wait_s + settings.api.drain_s + STOPPING_S
    assert settings.telemetry.log_format == "json"


def test_pods_are_replaced_in_the_benchmark_as_the_manifest_says() -> None:
    container, pod = _container(), _pod()
    assert Times.read(DEPLOYMENT) == Times(
        probe_period=container["readinessProbe"]["periodSeconds"],
        probe_timeout=container["readinessProbe"]["timeoutSeconds"],
        pre_stop=container["lifecycle"]["preStop"]["sleep"]["seconds"],
        grace=pod["terminationGracePeriodSeconds"],
    )


def test_selectors_are_those_of_the_pods() -> None:
    labels = _spec("Deployment")["template"]["metadata"]["labels"]
    selectors = [
        _spec("Deployment")["selector"]["matchLabels"],
        _spec("Service")["selector"],
        _spec("PodDisruptionBudget")["selector"]["matchLabels"],
        _spec("NetworkPolicy")["podSelector"]["matchLabels"],
        *(each["labelSelector"]["matchLabels"] for each in _pod()["topologySpreadConstraints"]),
    ]
    assert labels
    assert all(selector == labels for selector in selectors)


def test_pods_pass_the_restricted_standard_and_can_be_scheduled() -> None:
    pod, container = _pod(), _container()
    resources = container["resources"]
    user = re.search(r"--uid (\d+)", (ROOT / "Dockerfile").read_text())

    assert user
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == int(user[1])
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert resources["requests"] == resources["limits"]  # neither throttled late nor evicted first


def _exported() -> dict[str, set[str]]:
    """Return the labels of all samples that a server with a worker exports, by their names."""
    metrics = Metrics()
    metrics.engine("m", "0")
    counted = {"n-gram": 1}
    speculation = SpeculationCounters(1, draft_tokens=counted, accepted_tokens=counted)
    counters = EngineCounters(generation_tokens=1, speculation=speculation)
    metrics.registry.register(
        EngineCollector(lambda: [EngineSnapshot("m", "0", None, 0, 0, 0.0, counters)])
    )
    metrics.registry.register(GrammarCollector(dict))
    suffixes = {
        "counter": ("_total",),
        "gauge": ("",),
        "histogram": ("_bucket", "_sum", "_count"),
    }
    found: dict[str, set[str]] = {}
    for collector in list(metrics.registry._collector_to_names):
        own = {*getattr(collector, "_labelnames", ())}
        for each in collector.collect():
            labels = own.union(*(sample.labels for sample in each.samples))
            for suffix in suffixes[each.type]:
                found[f"{each.name}{suffix}"] = labels
    return found


def _named(expression: str) -> Iterator[str]:
    """Yield the metrics of an expression of PromQL."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|by \([^)]*\)", "", expression)
    for word in re.findall(r"[A-Za-z_][\w:]*", bare):
        if word not in FUNCTIONS:
            yield word


def _labels(expression: str) -> set[str]:
    """Return the labels that an expression of PromQL groups or selects by."""
    groups = re.findall(r"by \(([^)]*)\)", expression)
    selected = re.findall(r"([A-Za-z_]\w*)(?==|!=|=~|!~)", expression)
    return {name.strip() for group in groups for name in group.split(",")} | {*selected}


def _faults(expression: str) -> list[str]:
    """Return what an expression names that the server does not export."""
    exported = _exported()
    metrics = list(_named(expression))
    faults = [name for name in metrics if name not in exported]
    if not metrics:
        return ["it names no metric"]
    known = set.intersection(*(exported.get(name, set()) for name in metrics)) | TARGET
    known |= {"le"} if any(name.endswith("_bucket") for name in metrics) else set()
    return faults + sorted(_labels(expression) - known)


def _alerts() -> list[Manifest]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return group["rules"]  # type: ignore[no-any-return]


def _panels() -> list[Manifest]:
    panels: list[Manifest] = json.loads(DASHBOARD.read_text())["panels"]
    return panels


def test_alerts_are_about_metrics_and_labels_that_the_server_exports() -> None:
    assert [fault for rule in _alerts() for fault in _faults(rule["expr"])] == []


def test_panels_are_about_metrics_and_labels_that_the_server_exports() -> None:
    targets = [target for panel in _panels() for target in panel.get("targets", ())]
    assert len(targets) > 20
    assert [fault for target in targets for fault in _faults(target["expr"])] == []
    for target in targets:
        shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert shown <= _labels(target["expr"]), "a legend names a label that is summed away"


@pytest.mark.parametrize(
    "expression",
    [
        "rate(vllm:no_such_metric_total[5m])",
        "sum by (status) (rate(plait_requests_rejected_total[5m]))",
        'vllm:num_requests_running{route="/"}',
        "sum by (le) (plait_sse_clients)",
    ],
)
def test_other_metrics_and_labels_are_seen(expression: str) -> None:
    assert _faults(expression)


def test_variables_of_the_dashboard_are_defined_and_used() -> None:
    text = DASHBOARD.read_text()
    defined = {each["name"] for each in json.loads(text)["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", text))
    assert used == defined


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in _panels()]
    assert len(set(ids)) == len(ids)
    for panel in _panels():
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_alert_has_a_test() -> None:
    tests = yaml.safe_load((ALERTS.parent / "alerts_test.yaml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tests
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in _alerts()}


def test_metrics_that_the_page_names_are_exported() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    named = set(re.findall(r"`((?:vllm:|plait_(?!engine_))\w+)`", page))
    assert len(named) >= 5
    assert named <= _exported().keys()
