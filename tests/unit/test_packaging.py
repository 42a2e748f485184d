"""What is installed is what lies on disk, and what it imports is declared and pinned."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.source_tree import LAYERS, ROOT, plant, sources

# Import names that differ from the name of the distribution that brings them.
DISTRIBUTIONS = {"pydantic_core": "pydantic", "yaml": "pyyaml", "zmq": "pyzmq"}
# Dependencies that other libraries import for us.
UNSEEN = frozenset({"httptools"})
NEVER = ("torchvision", "triton", "llama-cpp-python", "llm")


def _project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())


def _name(requirement: str) -> str:
    name = re.split(r"[\s<>=!~;\[]", requirement.strip(), maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def unlisted_packages(root: Path) -> set[str]:
    """Return the packages on disk and in pyproject.toml's list that have no counterpart."""
    listed = set(_project(root)["tool"]["setuptools"]["packages"])
    folders = {source.path.parent for source in sources(root, *LAYERS)}
    folders |= {parent for folder in folders for parent in folder.parents if parent.parts}
    return listed ^ {"plait." + ".".join(folder.parts) for folder in folders}


def packages_without_init(root: Path) -> list[str]:
    """Return the folders of Python files that lack an __init__.py, and kernels if it has one.

    A regular package of that name in the current directory would hide the PyPI package `kernels`,
    which other libraries import; a namespace folder does not.
    """
    folders = {source.path.parent for source in sources(root, *LAYERS)} - {Path("kernels")}
    faults = [str(folder) for folder in folders if not (root / folder / "__init__.py").exists()]
    return faults + ["kernels"] * (root / "kernels" / "__init__.py").exists()


def undeclared_imports(root: Path) -> list[str]:
    """Return third-party imports that no dependency or extra used at run time declares."""
    project = _project(root)["project"]
    extras = project.get("optional-dependencies", {})
    optional = [text for name in ("otel", "bench") for text in extras.get(name, [])]
    declared = {_name(text) for text in [*project["dependencies"], *optional]}
    declared |= {name.split("-")[0] for name in declared if name.startswith("opentelemetry")}
    known = sys.stdlib_module_names | {"plait"}
    return [
        f"{source.path}:{line}: {name}"
        for source in sources(root, *LAYERS)
        for line, name in source.imports()
        if (top := name.split(".")[0]) not in known
        and DISTRIBUTIONS.get(top, _name(top)) not in declared
    ]


def unused_dependencies(root: Path) -> set[str]:
    """Return the dependencies that nothing imports."""
    imports = {
        name.split(".")[0] for source in sources(root, *LAYERS) for _, name in source.imports()
    }
    used = {DISTRIBUTIONS.get(top, _name(top)) for top in imports}
    return {_name(text) for text in _project(root)["project"]["dependencies"]} - used - UNSEEN


def lock_faults(lock: str, wanted: Mapping[str, str]) -> list[str]:
    """Return what a lock file lacks, leaves unpinned or must not hold."""
    lines = [line for line in lock.splitlines() if line and not line.startswith("#")]
    pinned = dict(line.split("==") for line in lines if "==" in line)
    faults = [f"{line}: not pinned" for line in lines if "==" not in line]
    faults += [f"{name}: must not be installed" for name in NEVER if name in pinned]
    differing = (name for name, version in wanted.items() if pinned.get(name) != version)
    return faults + [f"{name}: not as in pyproject.toml" for name in differing]


def _direct(*extras: str) -> dict[str, str]:
    project = _project(ROOT)["project"]
    optional = [text for extra in extras for text in project["optional-dependencies"][extra]]
    texts = [text for text in [*project["dependencies"], *optional] if _name(text) != "torch"]
    return {_name(text): text.split("==")[1] for text in texts}


def test_the_package_list_equals_the_disk() -> None:
    assert unlisted_packages(ROOT) == set()


def test_every_package_has_an_init_but_kernels_has_none() -> None:
    assert packages_without_init(ROOT) == []


def test_every_import_is_declared() -> None:
    assert undeclared_imports(ROOT) == []


def test_every_dependency_is_used() -> None:
    assert unused_dependencies(ROOT) == set()


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("runtime", ["model", "kernels"]),
        ("dev", ["model", "kernels", "otel", "bench", "dev"]),
    ],
)
def test_locks_pin_what_pyproject_names(lock: str, extras: list[str]) -> None:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    assert lock_faults(text, _direct(*extras)) == []


def test_torch_is_the_one_pinned_build() -> None:
    script = (ROOT / "requirements" / "install.sh").read_text()
    want = next(text for text in _project(ROOT)["project"]["dependencies"] if "torch" in text)
    assert re.search(r"^torch=(.+)$", script, re.M).group(1) == want.split("==")[1]  # type: ignore[union-attr]
    assert metadata.version("torch").split("+")[0] == want.split("==")[1]


def test_no_torchvision_stands_beside_torch() -> None:
    installed = {_name(found.name) for found in metadata.distributions()}
    assert "torchvision" not in installed


PYPROJECT = """
[project]
dependencies = ["torch==2.13.0", "pyzmq==27.3.0"]
[tool.setuptools]
packages = ["plait.server", "plait.server.api", "plait.kernels"]
"""
GOOD = {
    "pyproject.toml": PYPROJECT,
    "server/__init__.py": "import zmq.asyncio\n",
    "server/api/__init__.py": "import json\nfrom plait.kernels import dispatch\n",
    "kernels/extension.py": "import torch\n",
}


def test_a_sound_tree_passes(tmp_path: Path) -> None:
    root = plant(tmp_path, GOOD)
    assert unlisted_packages(root) == set()
    assert packages_without_init(root) == []
    assert undeclared_imports(root) == []
    assert unused_dependencies(root) == set()


def test_an_unlisted_package_is_seen(tmp_path: Path) -> None:
    root = plant(tmp_path, GOOD | {"server/late/__init__.py": ""})
    assert unlisted_packages(root) == {"plait.server.late"}


def test_a_listed_package_that_is_gone_is_seen(tmp_path: Path) -> None:
    root = plant(tmp_path, {name: text for name, text in GOOD.items() if "api" not in name})
    assert unlisted_packages(root) == {"plait.server.api"}


def test_an_init_in_kernels_is_seen(tmp_path: Path) -> None:
    root = plant(tmp_path, GOOD | {"kernels/__init__.py": ""})
    assert packages_without_init(root) == ["kernels"]


def test_a_missing_init_is_seen(tmp_path: Path) -> None:
    root = plant(tmp_path, GOOD | {"server/pool/rpc.py": ""})
    assert packages_without_init(root) == ["server/pool"]


def test_an_undeclared_import_is_seen(tmp_path: Path) -> None:
    root = plant(tmp_path, GOOD | {"kernels/extension.py": "def f():\n    import numpy as np\n"})
    assert undeclared_imports(root) == ["kernels/extension.py:2: numpy"]


def test_an_unused_dependency_is_seen(tmp_path: Path) -> None:
    root = plant(tmp_path, GOOD | {"kernels/extension.py": ""})
    assert unused_dependencies(root) == {"torch"}


@pytest.mark.parametrize(
    ("lock", "want"),
    [
        ("# by uv\npyzmq==27.3.0\n", []),
        ("pyzmq==27.2.0\n", ["pyzmq: not as in pyproject.toml"]),
        ("", ["pyzmq: not as in pyproject.toml"]),
        ("pyzmq==27.3.0\nnumpy>=2\n", ["numpy>=2: not pinned"]),
        ("pyzmq==27.3.0\ntorchvision==0.28.0\n", ["torchvision: must not be installed"]),
    ],
)
def test_lock_faults_are_seen(lock: str, want: list[str]) -> None:
    assert lock_faults(lock, {"pyzmq": "27.3.0"}) == want
