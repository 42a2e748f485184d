"""What deploy/compose.yaml starts is confined, and fits the server and what it mounts."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from plait.server.options.serve import ServeOptions
from tests.fixtures.source_tree import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EACH = pytest.mark.parametrize("name", SERVICES)


def _yaml(path: str) -> Any:
    return yaml.safe_load((DEPLOY / path).read_text())


@EACH
def test_services_are_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"cpus", "memory"} <= service["deploy"]["resources"]["limits"].keys()
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])  # no image of another day
    assert "test" in service["healthcheck"]


@EACH
def test_what_is_mounted_is_there(name: str) -> None:
    for mount in SERVICES[name].get("volumes", ()):
        source, _, rest = mount.partition(":")
        if source.startswith("."):
            assert (DEPLOY / source).exists(), mount
            assert rest.endswith(":ro")
        else:
            assert source in COMPOSE["volumes"]


def test_plait_is_started_as_its_image_expects() -> None:
    plait = SERVICES["plait"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f" AS {plait['build']['target']}\n" in dockerfile
    known = {f"PLAIT_{name.upper()}" for name in ServeOptions.model_fields}
    assert plait["environment"].keys() <= known
    limits = plait["deploy"]["resources"]["limits"]
    assert plait["environment"]["PLAIT_THREADS"] == limits["cpus"]
    assert "/tmp" in plait["tmpfs"]  # the root is read-only
    assert plait["healthcheck"]["test"][1:] == ["python", "-m", "plait.server.health"]
    grace = int(plait["stop_grace_period"].removesuffix("s"))
    assert grace >= ServeOptions.model_fields["drain_s"].default + 10
    load = int(plait["healthcheck"]["start_period"].removesuffix("s"))
    assert load >= ServeOptions.model_fields["ready_timeout_s"].default


def test_no_key_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ServeOptions.model_fields:
        monkeypatch.delenv(f"PLAIT_{name.upper()}", raising=False)
    monkeypatch.setenv("PLAIT_API_KEY", "")  # as compose gives it where it is not set
    options = ServeOptions()  # type: ignore[call-arg]  # every option has a default
    assert options.settings().api.api_keys == ()


def test_prometheus_reads_plait_and_its_alerts() -> None:
    config = _yaml("prometheus/prometheus.yaml")
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["plait:8000"]}]
    targets = {mount.split(":")[1] for mount in SERVICES["prometheus"]["volumes"]}
    assert set(config["rule_files"]) < targets


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    (source,) = _yaml("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    host, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()  # type: ignore[union-attr]
    assert any(each.endswith(f":{port}") for each in SERVICES[host]["ports"])
    (provider,) = _yaml("grafana/provisioning/dashboards/plait.yaml")["providers"]
    mounts = [mount.split(":")[1] for mount in SERVICES["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/plait.json" in mounts
    assert "/etc/grafana/provisioning" in mounts
