"""What is installed is what lies on disk, and what it imports is declared and pinned."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.fixtures.source_tree import LAYERS, ROOT, plant, sources

# Import names that differ from the name of the distribution that brings them.
DISTRIBUTIONS = {"pydantic_core": "pydantic", "yaml": "pyyaml", "zmq": "pyzmq"}
# Imported in an environment of its own, whose lock is checked below.
ELSEWHERE = frozenset({"vllm"})
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
    optional = [text for name in ("otel", "ray", "bench") for text in extras.get(name, [])]
    declared = {_name(text) for text in [*project["dependencies"], *optional]}
    declared |= {name.split("-")[0] for name in declared if name.startswith("opentelemetry")}
    known = sys.stdlib_module_names | {"plait"} | ELSEWHERE
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


def lock_faults(lock: str, requirements: Iterable[Requirement]) -> list[str]:
    """Return what a lock file lacks, leaves unpinned or must not hold."""
    lines = [line for line in lock.splitlines() if line and not line.startswith("#")]
    pinned = dict(line.split("==") for line in lines if "==" in line)
    faults = [f"{line}: not pinned" for line in lines if "==" not in line]
    faults += [f"{name}: must not be installed" for name in NEVER if name in pinned]
    for wanted in requirements:
        version = pinned.get(_name(wanted.name))
        if version is None:
            faults.append(f"{wanted.name}: not pinned")
        elif version not in wanted.specifier:
            faults.append(f"{wanted.name}: {version} is not within {wanted.specifier}")
    return faults


def exact_pins(requirements: Iterable[Requirement]) -> list[str]:
    """Return the requirements that leave an installer no choice."""
    return [str(each) for each in requirements if "==" in str(each.specifier)]


def _direct(*extras: str) -> list[Requirement]:
    """Return the requirements of the project and some extras; torch is in no lock."""
    project = _project(ROOT)["project"]
    optional = [text for extra in extras for text in project["optional-dependencies"][extra]]
    found = map(Requirement, [*project["dependencies"], *optional])
    return [each for each in found if each.name != "torch"]


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


def test_dependencies_are_ranges() -> None:
    assert exact_pins(_direct("otel", "kernels", "bench", "dev")) == []


# What vLLM 0.33 asks for. Where both ask for the same package, one version satisfies both.
VLLM = """
    fastapi<0.137,>=0.133; msgspec; numpy; prometheus-client>=0.18; pydantic>=2.12; pyyaml
    pyzmq>=25; safetensors>=0.6.2; starlette>=1.0.1; tokenizers>=0.23.2; torch==2.13.0
"""
BESIDE_VLLM = {"fastapi": "0.136.0", "torch": "2.13.0"}  # of the others, those of the lock do


def test_plait_installs_beside_vllm() -> None:
    texts = [text for line in VLLM.split("\n") for text in line.split(";") if text.strip()]
    theirs = {_name(each.name): each for each in map(Requirement, texts)}
    lock = (ROOT / "requirements" / "runtime.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lock if "==" in line) | BESIDE_VLLM
    ours = map(Requirement, _project(ROOT)["project"]["dependencies"])
    both = [(each, theirs[_name(each.name)]) for each in ours if _name(each.name) in theirs]
    assert len(both) == len(theirs)
    for one, other in both:
        assert pinned[_name(one.name)] in one.specifier & other.specifier


def test_torch_is_the_one_pinned_build() -> None:
    script = (ROOT / "requirements" / "install.sh").read_text()
    found = re.search(r"^torch=(.+)$", script, re.M)
    assert found is not None
    requirements = map(Requirement, _project(ROOT)["project"]["dependencies"])
    want = next(each for each in requirements if each.name == "torch")
    assert found[1] in want.specifier
    assert metadata.version("torch").split("+")[0] == found[1]


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
        ("pyzmq==25.2.0\n", ["pyzmq: 25.2.0 is not within <28,>=26"]),
        ("", ["pyzmq: not pinned"]),
        ("pyzmq==27.3.0\nnumpy>=2\n", ["numpy>=2: not pinned"]),
        ("pyzmq==27.3.0\ntorchvision==0.28.0\n", ["torchvision: must not be installed"]),
    ],
)
def test_lock_faults_are_seen(lock: str, want: list[str]) -> None:
    assert lock_faults(lock, [Requirement("pyzmq>=26,<28")]) == want


def test_an_exact_pin_is_seen() -> None:
    assert exact_pins(map(Requirement, ["a==1.0", "b>=1,<2"])) == ["a==1.0"]
