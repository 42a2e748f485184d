"""What a golden was rendered from, so that one that is out of date is seen without Helm."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "chart"
GOLDENS = ROOT / "tests" / "unit" / "goldens" / "chart"


def values_file(name: str) -> Path:
    """Return the values that a golden is rendered with."""
    return CHART / "ci" / f"{name}-values.yaml"


def heading(name: str) -> str:
    """Return the first line of a golden: how it is made, and a digest of what it is made from."""
    digest = hashlib.sha256()
    rendered = [CHART / "Chart.yaml", CHART / "values.yaml", *sorted(CHART.glob("templates/*.*"))]
    for path in [*rendered, CHART / "files" / "alerts.yaml", values_file(name)]:
        digest.update(path.read_bytes())
    return f"# make check-deploy DEPLOY=--write; made from {digest.hexdigest()[:16]}\n"
