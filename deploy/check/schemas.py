"""Manifests against the schemas of Kubernetes, of custom resources and of compose files."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

Schema = dict[str, Any]
Manifest = dict[str, Any]
RAW = "https://raw.githubusercontent.com"
_OPERATOR = f"{RAW}/prometheus-operator/prometheus-operator/v0.93.0/example/prometheus-operator-crd"
# Where a schema lies, by the name of the file that a folder of your own may hold it in.
CUSTOM = {
    "scaledobjects.yaml": f"{RAW}/kedacore/keda/v2.20.2/config/crd/bases/"
    "keda.sh_scaledobjects.yaml",
    "podmonitors.yaml": f"{_OPERATOR}/monitoring.coreos.com_podmonitors.yaml",
    "servicemonitors.yaml": f"{_OPERATOR}/monitoring.coreos.com_servicemonitors.yaml",
    "prometheusrules.yaml": f"{_OPERATOR}/monitoring.coreos.com_prometheusrules.yaml",
    "httproutes.yaml": f"{RAW}/kubernetes-sigs/gateway-api/v1.6.0/config/crd/standard/"
    "gateway.networking.k8s.io_httproutes.yaml",
    "inferencepools.yaml": f"{RAW}/kubernetes-sigs/gateway-api-inference-extension/v1.6.0/config/"
    "crd/bases/inference.networking.k8s.io_inferencepools.yaml",
    "rayclusters.yaml": f"{RAW}/ray-project/kuberay/v1.7.0/ray-operator/config/crd/bases/"
    "ray.io_rayclusters.yaml",
}
COMPOSE = {
    "compose-spec.json": f"{RAW}/compose-spec/compose-spec/"
    "170098ba07d9f53c383a41bfd4c5166b0a4529a6/schema/compose-spec.json"
}

# Of Kubernetes itself, though its group has a dot.
BUILT_IN = {("networking.k8s.io/v1", "NetworkPolicy")}


def collect(sources: dict[str, str], folder: Path | None) -> dict[str, str]:
    """Return the texts of files, from a folder or from where they are published.

    Raises:
        OSError: one can't be had.
    """
    if folder:
        return {name: (folder / name).read_text() for name in sources}
    found = {}
    for name, url in sources.items():
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:  # only the addresses above
                found[name] = answer.read().decode()
        except urllib.error.URLError as error:
            raise OSError(f"{url}: {error.reason}") from error
    return found


def check_kubernetes(name: str, manifests: list[Manifest], version: str) -> Iterator[str]:
    """Yield what Kubernetes' own schema refuses; custom resources are left out."""
    for each in manifests:
        try:
            kubernetes_validate.validate(each, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            if not _is_custom(each):
                yield f"{name}: no schema of {each['apiVersion']} {each['kind']}"
        except kubernetes_validate.ValidationError as error:
            yield f"{name}: {each['kind']}: {error.message}"


def _is_custom(manifest: Manifest) -> bool:
    key = manifest["apiVersion"], manifest["kind"]
    return "." in key[0].partition("/")[0] and key not in BUILT_IN


def read_custom(texts: dict[str, str]) -> dict[tuple[str, str], Schema]:
    """Return the closed schemas of custom resources by apiVersion and kind."""
    found = {}
    for text in texts.values():
        spec = yaml.safe_load(text)["spec"]
        for version in spec["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            _close(schema)
            schema["properties"]["metadata"] = {"type": "object"}
            key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
            found[key] = schema
    return found


def _close(schema: Schema) -> None:
    """Refuse fields that a schema does not name, as an API server does when asked to be strict."""
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("anyOf", None)
        schema["type"] = ["integer", "string"]
    inner = schema.get("properties", {})
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if inner and not is_open:
        schema["additionalProperties"] = False
    for each in [*inner.values(), schema.get("items"), schema.get("additionalProperties")]:
        if isinstance(each, dict):
            _close(each)


def check_custom(
    name: str, manifests: list[Manifest], known: dict[tuple[str, str], Schema]
) -> Iterator[str]:
    """Yield what the schemas of custom resources refuse. Their CEL rules need an API server."""
    for each in manifests:
        key = each["apiVersion"], each["kind"]
        if not _is_custom(each):
            continue
        if key not in known:
            yield f"{name}: no schema of {key[0]} {key[1]}"
            continue
        for error in jsonschema.Draft202012Validator(known[key]).iter_errors(each):
            yield f"{name}: {key[1]}: {'/'.join(map(str, error.path))}: {error.message[:200]}"


def check_compose(path: Path, text: str) -> Iterator[str]:
    """Yield what the schema of compose files refuses."""
    validator = jsonschema.Draft7Validator(json.loads(text))
    for error in validator.iter_errors(yaml.safe_load(path.read_text())):
        yield f"{path.name}: {'/'.join(map(str, error.path))}: {error.message[:200]}"
