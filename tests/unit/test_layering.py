"""Imports point down: server -> decoders -> kernels; the front end knows nothing of torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.source_tree import LAYERS, OTHERS, ROOT, Source, plant, sources

FRONT_END = ("api", "prompt", "pool", "telemetry")
# What one folder of decoders/ may use of another; all else they share lies in decoders/ itself.
SHARED = ("plait.decoders.contract", "plait.decoders.sampling")
# The autoregressive decoder composes drafters and lossy rules of acceptance.
COMPOSED = {"autoregressive": ("plait.decoders.speculative",)}
# Entry points of the processes that must start without torch.
TORCHLESS = (
    "plait.server.cli",
    "plait.server.api.app",
    "plait.server.prompt.tokenizer",
    "plait.server.pool.pool",
    "plait.server.telemetry.telemetry",
    "plait.server.models.catalog",
    "plait.decoders.contract.decoder",
    "plait.decoders.constrained.spec",
)


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _faults(source: Source, name: str) -> Iterator[str]:
    layer, *inner = source.module.split(".")
    top = name.split(".", maxsplit=1)[0]
    if name.startswith("."):
        yield "relative import"
    if top in LAYERS:
        yield f"imports the bare folder: write plait.{name}"
    if top in OTHERS:
        yield f"imports {top}"
    above = LAYERS[: LAYERS.index(layer)]
    yield from (f"imports {up} from below" for up in above if _within(name, f"plait.{up}"))
    if layer == "decoders" and len(inner) > 1 and _within(name, "plait.decoders"):
        own = f"plait.decoders.{inner[0]}"
        if not any(
            _within(name, allowed) for allowed in (own, *SHARED, *COMPOSED.get(inner[0], ()))
        ):
            yield f"decoders.{inner[0]} imports its neighbour {name}"


def upward_imports(root: Path) -> list[str]:
    """Return every import that breaks the layering, as file:line: reason."""
    return [
        f"{source.path}:{line}: {fault}"
        for source in sources(root, *LAYERS)
        for line, name in source.imports()
        for fault in _faults(source, name)
    ]


def front_end_torch(root: Path) -> list[str]:
    """Return the front end's own imports of torch; what it loads indirectly is asked below."""
    folders = [f"server/{name}" for name in FRONT_END]
    return [
        f"{source.path}:{line}: imports torch"
        for source in sources(root, *folders)
        for line, name in source.imports()
        if _within(name, "torch")
    ]


def test_imports_point_down() -> None:
    assert upward_imports(ROOT) == []


def test_the_front_end_never_imports_torch() -> None:
    assert front_end_torch(ROOT) == []


@pytest.mark.parametrize("module", TORCHLESS)
def test_starts_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode() or f"{module} loads torch"


@pytest.mark.parametrize(
    ("path", "statement"),
    [
        ("kernels/noise/reference.py", "from plait.decoders import protocol"),
        ("kernels/noise/reference.py", "import plait.server.errors"),
        ("decoders/contract/registry.py", "from plait.server.errors import BadRequest"),
        ("decoders/search/smc.py", "from plait.decoders.constrained.load import ConstraintLoader"),
        ("server/api/app.py", "from tests.fixtures import stub_pool"),
        ("server/api/app.py", "import benchmarks.peers"),
        ("server/api/app.py", "import kernels.noise"),
        ("server/api/app.py", "from . import auth"),
        ("server/api/app.py", "def f():\n    from decoders import protocol"),
    ],
)
def test_upward_imports_are_seen(tmp_path: Path, path: str, statement: str) -> None:
    have = upward_imports(plant(tmp_path, {path: statement}))
    assert len(have) == 1
    assert have[0].startswith(path)


@pytest.mark.parametrize("folder", FRONT_END)
@pytest.mark.parametrize("statement", ["import torch", "from torch import Tensor"])
def test_front_end_torch_is_seen(tmp_path: Path, folder: str, statement: str) -> None:
    path = f"server/{folder}/late.py"
    have = front_end_torch(plant(tmp_path, {path: f"def f():\n    {statement}"}))
    assert have == [f"{path}:2: imports torch"]


def test_downward_imports_pass(tmp_path: Path) -> None:
    files = {
        "server/engine/engine.py": "from plait.decoders import registry\nimport torch\n",
        "decoders/search/smc.py": "from plait.decoders.contract.decoder import Decoder\n",
        "decoders/search/awrs.py": "from plait.decoders.search.smc import resample\n",
        "kernels/noise/reference.py": "from plait.kernels import dispatch\nimport torch\n",
    }
    assert upward_imports(plant(tmp_path, files)) == []
