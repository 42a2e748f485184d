"""Checks what deploy/ holds by the tools of others: `make check-deploy`, which installs them.

    python -m deploy.check --write            writes the goldens anew first
    python -m deploy.check --schemas FOLDER   reads published schemas there, not from the network

The chart is linted, rendered with each set of values, compared with its goldens, and must refuse
what contradicts itself. Manifests are held against schemas and policies. What can't be checked
here is said to be skipped. The checks of our own are tests/unit/test_deploy*.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from deploy.check import chart, programs, schemas
from deploy.check.inputs import GOLDENS, ROOT

Manifests = dict[str, list[chart.Manifest]]


def _all_manifests() -> Manifests:
    found = {path.stem: list(yaml.safe_load_all(path.read_text())) for path in _goldens()}
    return found | {"kustomize": programs.kustomize_base()}


def _goldens() -> list[Path]:
    return sorted(GOLDENS.glob("*.yaml"))


def _kubernetes(manifests: Manifests) -> Iterator[str]:
    for name, each in manifests.items():
        yield from schemas.check_kubernetes(name, each, chart.KUBERNETES)


def _custom(manifests: Manifests, folder: Path | None) -> Iterator[str]:
    known = schemas.read_custom(schemas.collect(schemas.CUSTOM, folder))
    for name, each in manifests.items():
        yield from schemas.check_custom(name, each, known)


def _compose(folder: Path | None) -> Iterator[str]:
    (text,) = schemas.collect(schemas.COMPOSE, folder).values()
    return schemas.check_compose(ROOT / "deploy" / "compose.yaml", text)


def _report(title: str, check: Callable[[], Iterator[str]]) -> bool:
    """Print how a check ended; return whether nothing was found."""
    try:
        faults = list(check())
    except (programs.Missing, OSError) as error:
        print(f"skipped  {title}: {error}")
        return True
    print(f"{'FAILED ' if faults else 'passed '}  {title}")
    sys.stdout.writelines(f"         {fault}\n" for fault in faults)
    return not faults


def main() -> int:
    """Return 1 if a check found something."""
    parser = argparse.ArgumentParser("python -m deploy.check", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the goldens anew")
    parser.add_argument("--schemas", type=Path, metavar="FOLDER", help="of published schemas")
    given = parser.parse_args()
    passed = [
        _report("helm lint, strict", chart.check_lint),
        _report("goldens", lambda: chart.check_goldens(write=given.write)),
        _report("refusals", chart.check_refusals),
    ]
    manifests = _all_manifests()
    passed += [
        _report(f"schemas of Kubernetes {chart.KUBERNETES}", lambda: _kubernetes(manifests)),
        _report("schemas of custom resources", lambda: _custom(manifests, given.schemas)),
        _report("schema of compose files", lambda: _compose(given.schemas)),
        _report("checkov", lambda: programs.check_policies(GOLDENS)),
        _report("tests of alerts", programs.check_alerts),
    ]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
