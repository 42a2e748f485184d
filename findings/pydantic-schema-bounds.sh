#!/usr/bin/env bash
# pydantic writes bounds into a JSON schema under names that JSON schema does not have.
#
# A bound that a Field() sets outside of an Annotated with a BeforeValidator is enforced, but in the
# JSON schema it is "ge": 1 in place of "minimum": 1. One would expect the keyword that the same bound
# has without the validator. It matters because unknown keywords mean nothing: clients, generators and
# test tools that read the schema (an OpenAPI document, a tool's parameters) see a number without
# bounds, and nothing warns of it. The bound is written well where it stands inside of the Annotated.
#
# Exit code 0 while that is so, 1 once it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pydantic==2.14.3
"$folder/venv/bin/python" - <<'PYTHON'
from typing import Annotated

import pydantic
from pydantic import BaseModel, BeforeValidator, Field, ValidationError


def same(value: object) -> object:
    return value


class Model(BaseModel):
    plain: int | None = Field(None, ge=1)
    outside: Annotated[int, BeforeValidator(same)] | None = Field(None, ge=1)
    inside: Annotated[int, Field(ge=1), BeforeValidator(same)] | None = None


found = {
    name: own["anyOf"][0] for name, own in Model.model_json_schema()["properties"].items()
}
print("pydantic", pydantic.VERSION)
for name, schema in found.items():
    print(f"{name:8}", schema)
for name in found:
    try:
        Model(**{name: 0})
    except ValidationError:
        continue
    raise SystemExit(f"changed: the bound of {name} is not enforced")
if "minimum" not in found["plain"] or "minimum" not in found["inside"]:
    raise SystemExit("changed: a plain bound is no minimum")
if "minimum" in found["outside"] or found["outside"].get("ge") != 1:
    raise SystemExit("changed: the bound outside has a name of JSON schema's")
PYTHON
