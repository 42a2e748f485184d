#!/usr/bin/env bash
# pydantic: a bound beside an annotated type's own bound of the same kind is dropped in silence.
#
#     Count = Annotated[int, Field(ge=1, le=1000)]
#     replicas: Count = Field(1, le=10)          # 500 passes
#
# One would expect both bounds to hold: `model_fields[...].metadata` lists both, [Le(10), Ge(1),
# Le(1000)]. In fact the last of that list wins, which is the type's own and may be the looser one;
# the schema says "maximum: 1000", too. It matters because `Count = Field(..., le=10)` reads as a tighter limit and
# is none: whoever reuses a bounded type for an option with a limit of its own accepts what it seems
# to refuse. Write the tighter bound into the type: Annotated[Count, Field(le=10)] holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pydantic==2.14.3 annotated-types
"$folder/venv/bin/python" - <<'PYTHON'
from typing import Annotated

import pydantic
from pydantic import BaseModel, Field, ValidationError

Count = Annotated[int, Field(ge=1, le=1000)]


class Options(BaseModel):
    beside: Count = Field(1, le=10)
    within: Annotated[Count, Field(le=10)] = 1


def accepts(name: str, value: int) -> bool:
    try:
        Options.model_validate({name: value})
    except ValidationError:
        return False
    return True


schema = Options.model_json_schema()["properties"]
print("pydantic", pydantic.VERSION)
for name in ("beside", "within"):
    print(name, Options.model_fields[name].metadata, "maximum:", schema[name].get("maximum"))
    print("  accepts 500:", accepts(name, 500), " accepts 5000:", accepts(name, 5000))
assert accepts("beside", 500), "a bound beside the type's own now holds"
assert not accepts("beside", 5000)
PYTHON
