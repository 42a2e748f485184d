#!/usr/bin/env bash
# mypy in strict mode passes dataclasses.replace, fields and asdict of a msgspec.Struct, which all fail.
#
# A Struct is no dataclass: it has no __dataclass_fields__, and msgspec has functions of its own
# (msgspec.structs.replace and asdict). But it is declared with typing.dataclass_transform, and for such
# classes mypy makes up the attribute that typeshed's protocol of dataclasses asks for. One would
# expect either an error of the type checker, or that the call works. It matters when a class that has
# been a dataclass becomes a Struct for speed: the type checker, on which one relies to find the
# places that must change, finds none, and each raises a TypeError when it is reached.
#
# Exit code 0 while that is so, 1 once it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mypy==2.4.1 msgspec==0.22.0
cat >"$folder/point.py" <<'PYTHON'
from dataclasses import asdict, fields, replace

import msgspec


class Point(msgspec.Struct):
    x: int
    y: int = 0


def moved(point: Point) -> Point:
    return replace(point, x=point.x + 1)


def names(point: Point) -> list[str]:
    return [field.name for field in fields(point)]


def plain(point: Point) -> dict[str, int]:
    return asdict(point)
PYTHON
cd "$folder"
venv/bin/mypy --version
venv/bin/mypy --strict point.py || { echo "changed: mypy sees it"; exit 1; }
venv/bin/python - <<'PYTHON'
from importlib.metadata import version

import msgspec
import point

print("msgspec", version("msgspec"))
for call in (point.moved, point.names, point.plain):
    try:
        found = call(point.Point(1))
    except (TypeError, AttributeError) as error:
        print(f"{call.__name__}: {type(error).__name__}: {error}")
    else:
        raise SystemExit(f"changed: {call.__name__} gives {found}")
print("msgspec.structs.replace:", msgspec.structs.replace(point.Point(1), x=2))
PYTHON
