"""Sizes and habits that a linter does not check; exceptions stand here by name, with a reason."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.source_tree import LAYERS, OTHERS, ROOT, Source, plant, sources

FILE_LINES = 400
KERNEL_LINES = 600  # kernels hold one loop nest in several widths; splitting hides the sameness
INIT_LINES = 40
FUNCTION_LINES = 50  # without its docstring
CLASS_LINES = 250
NESTING = 3
MODULES = 12
README_LINES = 160

# path, or path:name of a function or class -> the reason for going over a limit.
EXCEPTIONS: dict[str, str] = {}

BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)
NATIVE = {".cpp", ".h", ".cu", ".cuh"}
# Paths of somebody's machine; written in pieces so that this file does not match itself.
MACHINE_PATH = re.compile("/(" + "work|root|home" + ")/" + r"[\w.]")


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    """Count the lines of a definition, its docstring left out."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node) is None:
        return lines
    docstring = node.body[0]
    return lines - ((docstring.end_lineno or docstring.lineno) - docstring.lineno + 1)


def _nesting(body: list[ast.stmt]) -> int:
    """Return how deep blocks stand within blocks; an elif is as deep as its if."""
    return max((_depth(node) for node in body), default=0)


def _depth(node: ast.stmt | ast.ExceptHandler | ast.match_case) -> int:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return 0  # measured on its own
    bodies = [getattr(node, name, []) for name in ("body", "orelse", "finalbody")]
    inner = max(_nesting(body) for body in bodies)
    if isinstance(node, ast.If) and len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
        inner = max(_nesting(node.body), _depth(node.orelse[0]) - 1)
    handlers = [*getattr(node, "handlers", []), *getattr(node, "cases", [])]
    inner = max([inner, *(_depth(handler) for handler in handlers)])
    return inner + isinstance(node, BLOCKS)


def _definition_faults(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        name, length = f"{source.path}:{node.name}", _length(node)
        limit = CLASS_LINES if isinstance(node, ast.ClassDef) else FUNCTION_LINES
        if length > limit:
            yield f"{name}: {length} lines, at most {limit}"
        if (depth := _nesting(node.body)) > NESTING:
            yield f"{name}: blocks {depth} deep, at most {NESTING}"


def _file_limit(path: Path) -> int:
    if path.parts[0] == "kernels":
        return KERNEL_LINES  # an op's __init__ is its dispatch
    return INIT_LINES if path.name == "__init__.py" else FILE_LINES


def _length_faults(root: Path, paths: list[Path]) -> Iterator[str]:
    for path in paths:
        lines = len((root / path).read_text().splitlines())
        if lines > (limit := _file_limit(path)):
            yield f"{path}: {lines} lines, at most {limit}"


def oversized(root: Path) -> list[str]:
    """Return every file, function and class over its limit, but for the named exceptions."""
    python = sources(root, *LAYERS, *OTHERS)
    native = [
        path.relative_to(root)
        for path in sorted((root / "kernels").rglob("*"))
        if path.suffix in NATIVE
    ]
    faults = [*_length_faults(root, [source.path for source in python] + native)]
    faults += [fault for source in python for fault in _definition_faults(source)]
    return [fault for fault in faults if fault.rsplit(": ", 1)[0] not in EXCEPTIONS]


def crowded_folders(root: Path) -> list[str]:
    """Return the folders of the packages that hold more modules than one can keep in mind."""
    folders = {source.path.parent for source in sources(root, *LAYERS)}
    counts = {
        folder: len({path.stem for path in (root / folder).glob("*.py")} - {"__init__"})
        for folder in folders
    }
    return [
        f"{folder}: {count} modules, at most {MODULES}"
        for folder, count in sorted(counts.items())
        if count > MODULES and str(folder) not in EXCEPTIONS
    ]


def shared_class_names(root: Path) -> list[str]:
    """Return the names that two classes of the packages have in common."""
    found: dict[str, list[Path]] = {}
    for source in sources(root, *LAYERS):
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(source.path)
    shared = ((name, paths) for name, paths in sorted(found.items()) if len(paths) > 1)
    return [f"{name}: {', '.join(map(str, paths))}" for name, paths in shared]


def unexplained_classes(root: Path, folder: str, glossary: str) -> list[str]:
    """Return the public classes of a folder that a text does not name in backticks."""
    named = set(re.findall(r"`(\w+)`", glossary))
    return [
        f"{source.path}:{node.name}"
        for source in sources(root, folder)
        for node in source.tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        if node.name not in named
    ]


def machine_paths(root: Path, names: list[str]) -> list[str]:
    """Return the lines of text files that name a directory of one particular machine."""
    faults = []
    for name in names:
        lines = (root / name).read_text(errors="ignore").splitlines()
        hits = (number for number, line in enumerate(lines, 1) if MACHINE_PATH.search(line))
        faults += [f"{name}:{number}" for number in hits]
    return faults


def _tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("not a git work tree")
    return [name for name in done.stdout.decode().splitlines() if (ROOT / name).is_file()]


def test_sizes() -> None:
    assert oversized(ROOT) == []


def test_folders_stay_small() -> None:
    assert crowded_folders(ROOT) == []


def test_exceptions_are_still_needed() -> None:
    paths = {name.split(":")[0] for name in EXCEPTIONS}
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_readme_fits_a_few_screens() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def test_no_file_names_a_path_of_one_machine() -> None:
    assert machine_paths(ROOT, _tracked()) == []


def test_no_two_classes_share_a_name() -> None:
    assert shared_class_names(ROOT) == []


def test_a_shared_name_is_seen(tmp_path: Path) -> None:
    nested = "def f():\n    class Walk: ...\n"
    root = plant(tmp_path, {"server/a.py": nested, "kernels/b.py": "class Walk: ...\n"})
    assert shared_class_names(root) == ["Walk: kernels/b.py, server/a.py"]


def test_the_contract_is_in_the_glossary() -> None:
    glossary = (ROOT / "docs" / "glossary.md").read_text()
    assert unexplained_classes(ROOT, "decoders/contract", glossary) == []


def test_a_class_that_the_glossary_lacks_is_seen(tmp_path: Path) -> None:
    root = plant(tmp_path, {"decoders/contract/a.py": "class Known: ...\nclass New: ...\n"})
    want = ["decoders/contract/a.py:New"]
    assert unexplained_classes(root, "decoders/contract", "| `Known` | New |") == want


LONG = "def long():\n" + "    x = 1\n" * FUNCTION_LINES
DEEP = """
def deep(xs):
    for x in xs:
        if x:
            with x:
                while x:
                    x = 1
"""
FLAT = '''
def flat(x):
    """Return x.

    At length.
    """
    if x == 1:
        pass
    elif x == 2:
        pass
    elif x == 3:
        for y in x:
            if y:
                pass
    else:
        pass
'''


@pytest.mark.parametrize(
    ("path", "text", "want"),
    [
        ("server/a.py", "x = 1\n" * 401, "server/a.py: 401 lines, at most 400"),
        ("kernels/a.py", "x = 1\n" * 601, "kernels/a.py: 601 lines, at most 600"),
        ("kernels/op/a.cpp", "int x;\n" * 601, "kernels/op/a.cpp: 601 lines, at most 600"),
        ("server/__init__.py", "x = 1\n" * 41, "server/__init__.py: 41 lines, at most 40"),
        ("tests/a.py", LONG, "tests/a.py:long: 51 lines, at most 50"),
        ("server/a.py", "class A:\n" + "    x = 1\n" * 250, "A: 251 lines, at most 250"),
        ("decoders/a.py", DEEP, "decoders/a.py:deep: blocks 4 deep, at most 3"),
    ],
)
def test_oversize_is_seen(tmp_path: Path, path: str, text: str, want: str) -> None:
    have = oversized(plant(tmp_path, {path: text}))
    assert len(have) == 1
    assert have[0].endswith(want)


def test_flat_code_passes(tmp_path: Path) -> None:
    assert oversized(plant(tmp_path, {"server/a.py": FLAT})) == []


def test_crowded_folder_is_seen(tmp_path: Path) -> None:
    files = {f"server/api/m{index}.py": "" for index in range(MODULES + 1)}
    assert crowded_folders(plant(tmp_path, files)) == ["server/api: 13 modules, at most 12"]


@pytest.mark.parametrize("folder", ["work", "root", "home"])
def test_machine_path_is_seen(tmp_path: Path, folder: str) -> None:
    root = plant(tmp_path, {"notes.md": f"fine\nsee /{folder}/x\n"})
    assert machine_paths(root, ["notes.md"]) == ["notes.md:2"]
