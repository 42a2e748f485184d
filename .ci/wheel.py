"""Builds the wheel and checks that what it would install is the tree, and is importable.

Built without a compiler, so this is also the check that plait does without one; with one, it is
built when the development environment is made. Nothing is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("server", "decoders", "kernels")
SHIPPED = {".py", ".typed", ".pyi"}
# Imported from the unpacked wheel, with nothing of the work tree on the path.
PROBE = """
import plait.server.cli, plait.server.engine.build, plait.kernels.extension
assert plait.server.cli.__file__.startswith(sys.argv[1]), plait.server.cli.__file__
assert not plait.kernels.extension.is_available()
"""


def copy_sources(target: Path) -> None:
    """Copy what a build reads, so that nothing left over from another build gets into it."""
    rubbish = shutil.ignore_patterns("__pycache__", "*.so")
    for layer in LAYERS:
        shutil.copytree(ROOT / layer, target / layer, ignore=rubbish)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)


def build(tree: Path, folder: Path) -> Path:
    """Build the wheel of a source tree into a folder."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    env = os.environ | {"CC": "false", "CXX": "false"}
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return next(folder.glob("*.whl"))


def differences(wheel: Path) -> set[str]:
    """Return the files that are in the wheel or in the tree, and not in both."""
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {name for name in names if Path(name).suffix in SHIPPED}
    found = (path for layer in LAYERS for path in (ROOT / layer).rglob("*"))
    tree = {f"plait/{path.relative_to(ROOT)}" for path in found if path.suffix in SHIPPED}
    return shipped ^ tree


def probe(wheel: Path, folder: Path) -> None:
    """Unpack the wheel and import from it.

    -S keeps the editable installation out, whose import hook `site` would set up.
    """
    zipfile.ZipFile(wheel).extractall(folder)
    path = [str(folder), sysconfig.get_path("purelib")]
    code = f"import sys; sys.path[:0] = {path!r}\n{PROBE}"
    subprocess.run([sys.executable, "-P", "-S", "-c", code, str(folder)], cwd="/", check=True)


def main() -> None:
    """Build, compare, import."""
    with tempfile.TemporaryDirectory() as name:
        folder, tree = Path(name), Path(name) / "tree"
        copy_sources(tree)
        wheel = build(tree, folder)
        if unequal := differences(wheel):
            sys.exit(f"wheel: in the wheel or in the tree only: {', '.join(sorted(unequal))}")
        probe(wheel, folder / "unpacked")


if __name__ == "__main__":
    main()
