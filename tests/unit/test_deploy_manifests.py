"""What the chart gives contradicts itself nowhere, and the checks that say so can fail."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from deploy.check.inputs import GOLDENS, heading, values_file
from tests.fixtures.manifests import (
    CHECKS,
    Check,
    Manifest,
    disruption_budgets,
    images,
    options,
    pickers,
    pods,
    ports,
    references,
    resources,
    scalers,
    security,
    selectors,
    times,
    volumes,
)

NAMES = sorted(path.name.removesuffix("-values.yaml") for path in values_file("*").parent.iterdir())


def _golden(name: str) -> list[Manifest]:
    return list(yaml.safe_load_all((GOLDENS / f"{name}.yaml").read_text()))


def _the(manifests: list[Manifest], kind: str, name: str = "plait") -> Manifest:
    """Return the spec of a manifest."""
    (found,) = [
        each["spec"]
        for each in manifests
        if (each["kind"], each["metadata"]["name"]) == (kind, name)
    ]
    return found  # type: ignore[no-any-return]


def _pod(manifests: list[Manifest]) -> Manifest:
    return next(iter(pods(manifests))).spec


def _server(manifests: list[Manifest]) -> Manifest:
    found = next(each for each in _pod(manifests)["containers"] if each["name"] == "plait")
    return found  # type: ignore[no-any-return]


def test_every_set_of_values_has_a_golden() -> None:
    assert {path.stem for path in GOLDENS.glob("*.yaml")} == set(NAMES)
    assert len(NAMES) >= 6


@pytest.mark.parametrize("name", NAMES)
def test_goldens_are_made_from_the_chart_as_it_is(name: str) -> None:
    first = (GOLDENS / f"{name}.yaml").read_text().splitlines(keepends=True)[0]
    assert first == heading(name), "make check-deploy DEPLOY=--write"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_goldens_pass(name: str, check: Check) -> None:
    assert list(check(_golden(name))) == []


def _set(manifests: list[Manifest], kind: str, **values: Any) -> None:
    _the(manifests, kind).update(values)


def _option(manifests: list[Manifest], text: str) -> None:
    (found,) = [each for each in manifests if "plait.yaml" in each.get("data", {})]
    found["data"]["plait.yaml"] += text


def _doubled(manifests: list[Manifest], kind: str) -> None:
    (found,) = [each for each in manifests if each["kind"] == kind]
    manifests.append(copy.deepcopy(found))


Breaking = Callable[[list[Manifest]], Any]
# What breaks a golden, and the check that must see it.
BROKEN: list[tuple[str, Check, Breaking]] = [
    ("default", times, lambda m: _pod(m).update(terminationGracePeriodSeconds=10)),
    ("default", times, lambda m: _pod(m).update(terminationGracePeriodSeconds=49)),
    ("default", times, lambda m: _option(m, "drain_s: 31\n")),
    ("ray", times, lambda m: _pod(m).update(terminationGracePeriodSeconds=45)),
    ("default", resources, lambda m: _server(m)["resources"]["requests"].update(cpu="2.5")),
    ("default", resources, lambda m: _server(m)["resources"]["limits"].pop("memory")),
    ("stateful", resources, lambda m: _pod(m)["initContainers"][0].update(resources={})),
    ("default", volumes, lambda m: _pod(m)["volumes"].pop()),
    ("default", volumes, lambda m: _server(m)["volumeMounts"].pop()),
    ("stateful", volumes, lambda m: _the(m, "StatefulSet")["volumeClaimTemplates"].pop()),
    ("ray", volumes, lambda m: _server(m)["volumeMounts"][1].update(mountPath="/models")),
    ("default", disruption_budgets, lambda m: _set(m, "PodDisruptionBudget", minAvailable=1)),
    ("default", disruption_budgets, lambda m: _set(m, "PodDisruptionBudget", maxUnavailable=0)),
    ("native", disruption_budgets, lambda m: _set(m, "PodDisruptionBudget", minAvailable=2)),
    ("native", scalers, lambda m: _set(m, "HorizontalPodAutoscaler", minReplicas=6)),
    ("vllm-gpu", scalers, lambda m: _set(m, "ScaledObject", maxReplicaCount=1)),
    ("vllm-gpu", scalers, lambda m: _set(m, "Deployment", replicas=2)),
    ("vllm-gpu", scalers, lambda m: _doubled(m, "ScaledObject")),
    (
        "native",
        scalers,
        lambda m: _the(m, "HorizontalPodAutoscaler")["scaleTargetRef"].update(name="other"),
    ),
    (
        "native",
        scalers,
        lambda m: _the(m, "HorizontalPodAutoscaler")["metrics"][0]["pods"]["metric"].update(
            name="vllm:num_requests_waiting"
        ),
    ),
    ("default", selectors, lambda m: _the(m, "Service")["selector"].update(app="other")),
    ("ray", selectors, lambda m: _the(m, "PodMonitor")["selector"].update(
        matchLabels={"app.kubernetes.io/component": "other"}
    )),
    ("gateway", selectors, lambda m: _the(m, "InferencePool")["selector"].update(
        matchLabels={"app": "other"}
    )),
    ("stateful", selectors, lambda m: _pod(m)["topologySpreadConstraints"][0].update(
        labelSelector={"matchLabels": {"app": "other"}}
    )),
    ("vllm-gpu", selectors, lambda m: _the(m, "ServiceMonitor")["selector"].update(
        matchLabels={"app": "other"}
    )),
    ("default", ports, lambda m: _server(m)["livenessProbe"]["httpGet"].update(port="health")),
    ("default", ports, lambda m: _the(m, "Service")["ports"][0].update(targetPort="web")),
    ("gateway", ports, lambda m: _the(m, "InferencePool")["targetPorts"][0].update(number=80)),
    ("gateway", pickers, lambda m: _the(m, "InferencePool")["endpointPickerRef"].pop("port")),
    ("gateway", pickers, lambda m: _the(m, "HTTPRoute")["rules"][0]["backendRefs"][0].update(
        name="other"
    )),
    ("default", options, lambda m: _option(m, "drain: 30\n")),
    ("default", options, lambda m: _server(m)["env"].append({"name": "PLAIT_DRAIN"})),
    ("default", options, lambda m: _server(m)["env"].append({"name": "PLAIT_THREADS"})),
    ("default", images, lambda m: _server(m).update(image="plait")),
    ("default", images, lambda m: _server(m).update(image="host:5000/plait:latest")),
    ("vllm-gpu", images, lambda m: _pod(m)["volumes"][-1]["image"].update(reference="a/b")),
    ("default", references, lambda m: _pod(m)["volumes"][0]["configMap"].update(name="plait")),
    ("default", references, lambda m: _pod(m).update(serviceAccountName="other")),
    ("default", security, lambda m: _pod(m)["securityContext"].update(runAsNonRoot=False)),
    ("default", security, lambda m: _pod(m).update(automountServiceAccountToken=True)),
    ("ray", security, lambda m: _pod(m)["containers"][0].update(securityContext={})),
    ("stateful", security, lambda m: _pod(m)["initContainers"][0].update(volumeMounts=[])),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "check", "damage"),
    BROKEN,
    ids=[f"{check.__name__}-{index}" for index, (_, check, _) in enumerate(BROKEN)],
)
def test_damage_is_seen(name: str, check: Check, damage: Breaking) -> None:
    manifests = _golden(name)
    damage(manifests)
    assert list(check(manifests))


def test_every_check_is_seen_to_fail() -> None:
    assert {check for _, check, _ in BROKEN} == set(CHECKS)
