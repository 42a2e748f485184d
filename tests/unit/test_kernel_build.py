"""Building the kernels: as many compilers as the machine bears, progress, nothing done twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.source_tree import ROOT, plant

# Runs setup.py with a compiler that only writes its arguments down: `driver.py TREE`.
DRIVER = """
import runpy, sys, setuptools
sys.path.insert(0, ".")
setuptools.setup = lambda **options: None
names = runpy.run_path("setup.py", run_name="setup")

class Compiler:
    compiler_so = ["true"]
    def _setup_compile(self, output, macros, include_dirs, sources, depends, extra):
        build = {f"{source}.o": (source, ".cpp") for source in sources}
        return macros, list(build), extra, [], build
    def _get_cc_args(self, options, debug, before):
        return ["-O3"]
    def _compile(self, obj, source, suffix, arguments, extra, options):
        with open("calls", "a") as calls:
            calls.write(source + "\\n")
        open(obj, "w").write(open(source).read().upper())

compilation = names["Compilation"](Compiler())
compilation(names["files"](".cpp"), extra_postargs=[])
compilation(names["files"](".cpp", of_grammar=True), extra_postargs=[])
compilation.forget_others()
"""
TREE = {
    "setup.py": (ROOT / "setup.py").read_text(),
    "server/memory.py": (ROOT / "server" / "memory.py").read_text(),
    "kernels/a/one.cpp": "one",
    "kernels/a/two.cpp": "two",
    "kernels/b/shared.h": "shared",
    "kernels/grammar/three.cpp": "three",
}


def build(tree: Path, **environment: str) -> tuple[list[str], str]:
    """Build; return the sources that were compiled, and what was said."""
    calls = tree / "calls"
    calls.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=tree,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return sorted(calls.read_text().split()) if calls.exists() else [], done.stderr


ALL = ["kernels/a/one.cpp", "kernels/a/two.cpp", "kernels/grammar/three.cpp"]


def test_only_what_has_changed_is_compiled(tmp_path: Path) -> None:
    tree = plant(tmp_path, TREE)
    compiled, said = build(tree)
    assert compiled == ALL
    lines = [line for line in said.splitlines() if line.startswith("plait: ")]
    assert lines[0].startswith("plait: compiling 2 of 2 files of kernels, ")
    assert {line.split(": ")[1] for line in lines[1:]} == {
        "compiled file 1 of 2",
        "compiled file 2 of 2",
        "compiling 1 of 1 files of kernels, 1 at once",
        "compiled file 1 of 1",
    }
    (tree / "kernels/a/one.cpp.o").unlink()
    assert build(tree) == ([], "")
    assert (tree / "kernels/a/one.cpp.o").read_text() == "ONE"
    (tree / "kernels/a/two.cpp").write_text("2")
    assert build(tree)[0] == ["kernels/a/two.cpp"]
    (tree / "kernels/b/shared.h").write_text("other")
    assert build(tree)[0] == ALL
    assert len(list((tree / "build/kernels").iterdir())) == 3, "what is out of date is removed"


def test_max_jobs_bounds_the_compilers(tmp_path: Path) -> None:
    assert "files of kernels, 1 at once" in build(plant(tmp_path, TREE), MAX_JOBS="1")[1]


def test_little_memory_bounds_the_compilers(tmp_path: Path) -> None:
    poor = "class system_memory:\n    available = 2**29\n"
    tree = plant(tmp_path, TREE | {"server/memory.py": poor})
    assert "files of kernels, 1 at once" in build(tree)[1]


@pytest.mark.parametrize("script", ["requirements/install.sh", "benchmarks/install_peers.sh"])
def test_scripts_are_valid_for_sh(script: str) -> None:
    subprocess.run(["sh", "-n", str(ROOT / script)], check=True)
