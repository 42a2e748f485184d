"""The chart rendered with each of deploy/chart/ci, and the manifests that this should give."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import helm_python as helm
import yaml

from deploy.check.inputs import CHART, GOLDENS, ROOT, heading

DASHBOARD = ROOT / "deploy" / "grafana" / "plait.json"
KUBERNETES = "1.37.0"

Manifest = dict[str, Any]
_SIZES = {"cpu": "2", "memory": "2Gi"}
GROUP = {"name": "a", "replicas": 1, "gpus": 0, "resources": {"requests": _SIZES, "limits": _SIZES}}
SMALL = {"requests": _SIZES, "limits": _SIZES | {"cpu": "500m"}}
# What contradicts itself, and the value that the refusal has to name.
REFUSED: dict[str, dict[str, Any]] = {
    "replcas": {"replcas": 2},
    "drain": {"options": {"drain": 30}},
    "terminationGracePeriodSeconds": {"terminationGracePeriodSeconds": 30},
    "probes.startupSeconds": {"options": {"ready_timeout_s": 900}},
    "autoscaling.maxReplicas": {"autoscaling": {"kind": "hpa", "minReplicas": 4}},
    "autoscaling": {
        "workload": "RayCluster",
        "ray": {"tokenSecret": "token"},
        "autoscaling": {"kind": "keda"},
    },
    "metric": {"autoscaling": {"kind": "hpa", "metric": "vllm:num_requests_waiting"}},
    "kind": {"autoscaling": {"kind": "both"}},
    "disruptionBudget": {"disruptionBudget": {"minAvailable": 1}},
    "disruptionBudget.minAvailable": {
        "disruptionBudget": {"minAvailable": 1, "maxUnavailable": None}
    },
    "image.tag": {"image": {"tag": "latest"}},
    "model.image.reference": {"model": {"source": "image", "image": {"reference": "a/model"}}},
    "model.pvc.claimName": {"model": {"source": "pvc"}},
    "model.fetch.image": {"model": {"source": "fetch"}},
    "model.pvc": {"model": {"pvc": {"claimName": "models"}}},
    "gpu.runtimeClassName": {"gpu": {"runtimeClassName": "nvidia"}},
    "drain_s": {"options": {"drain_s": None}},
    "limits.cpu": {
        "workload": "RayCluster",
        "ray": {"tokenSecret": "token", "workerGroups": [GROUP | {"resources": SMALL}]},
    },
    "as many GPUs": {
        "workload": "RayCluster",
        "ray": {"tokenSecret": "token", "workerGroups": [GROUP, GROUP | {"name": "b", "gpus": 1}]},
    },
    "networkPolicy.egress": {"model": {"source": "fetch", "fetch": {"image": "a/b:1"}}},
    "model.source": {"worker": "vllm"},
    "workload": {"workload": "StatefulSet"},
    "draftStore.size": {"draftStore": {"size": "1Gi"}},
    "apiKeys": {"apiKeys": {"existingSecret": "keys", "values": ["a-key-of-16-chars"]}},
    "monitoring.authorization": {
        "options": {"protect_metrics": True},
        "monitoring": {"scrape": "PodMonitor"},
    },
    "inferencePool.endpointPicker.name": {"inferencePool": {"enabled": True}},
    "options.replicas": {
        "inferencePool": {"enabled": True, "endpointPicker": {"name": "picker"}},
        "options": {"replicas": 2},
    },
    "httpRoute.parentRefs": {"httpRoute": {"enabled": True}},
    "ray.tokenSecret": {"workload": "RayCluster"},
    "options.ray_weights": {"options": {"ray_weights": "object-store"}},
    "extraEnv, PLAIT_DRAIN_S": {"extraEnv": [{"name": "PLAIT_DRAIN_S", "value": "90"}]},
    "extraArgs, --drain-s": {"extraArgs": ["--drain-s=90"]},
    "count": {"gpu": {"count": 17}},
    "gpu.count": {"gpu": {"count": 2}},
    "options.tensor_parallel_size": {
        "worker": "vllm",
        "model": {"source": "pvc", "pvc": {"claimName": "models"}},
        "gpu": {"count": 4},
        "options": {"tensor_parallel_size": 2},
    },
}


def value_sets() -> dict[str, dict[str, Any]]:
    """Return the values of deploy/chart/ci by the names of their files."""
    return {
        path.name.removesuffix("-values.yaml"): yaml.safe_load(path.read_text()) or {}
        for path in sorted((CHART / "ci").glob("*-values.yaml"))
    }


@cache
def _chart() -> helm.Chart:
    return helm.Chart.load(str(CHART))


def render(values: dict[str, Any]) -> list[Manifest]:
    """Return the manifests of a release `plait` in the namespace `llm`."""
    chart = _chart()
    chart.validate_schema(values)
    texts = chart.render(values, name="plait", namespace="llm")
    found = (each for name, text in texts.items() if name.endswith(".yaml") for each in _load(text))
    return sorted(found, key=lambda each: (each["kind"], each["metadata"]["name"]))


def _load(text: str) -> Iterator[Manifest]:
    return (each for each in yaml.safe_load_all(text) if each)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines stand as they are."""


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent)


def golden_text(manifests: list[Manifest]) -> str:
    """Return manifests as their golden has them, the dashboard's text replaced by its path."""
    for each in manifests:
        data = each.get("data", {})
        if data.get("plait.json", "").strip() == DASHBOARD.read_text().strip():
            data["plait.json"] = str(DASHBOARD.relative_to(ROOT))
    return yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, width=100)


def check_goldens(*, write: bool) -> Iterator[str]:
    """Yield what differs from the goldens, after writing them if that is wanted."""
    values = value_sets()
    if write:
        GOLDENS.mkdir(parents=True, exist_ok=True)
    for name, own in values.items():
        golden, text = GOLDENS / f"{name}.yaml", heading(name) + golden_text(render(own))
        if write:
            golden.write_text(text)
        if not golden.exists() or golden.read_text() != text:
            yield f"{golden.relative_to(ROOT)}: not what the chart gives; look at what --write does"
    for stray in {path.stem for path in GOLDENS.glob("*.yaml")} - values.keys():
        yield f"{stray}.yaml: a golden without values"


def check_lint() -> Iterator[str]:
    """Yield what `helm lint --strict` finds."""
    for name, values in value_sets().items():
        found = helm.lint(str(CHART), values, strict=True, kube_version=f"v{KUBERNETES}")
        yield from (f"{name}: {error}" for error in found["errors"])


def check_refusals() -> Iterator[str]:
    """Yield the values that should be refused and are not, or without being named."""
    for named, values in REFUSED.items():
        try:
            render(values)
        except helm.HelmError as error:
            if named not in str(error):
                yield f"{values}: refused by {str(error)[:200]!r}, which does not name {named}"
        else:
            yield f"{values}: not refused"
