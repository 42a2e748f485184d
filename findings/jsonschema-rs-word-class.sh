#!/usr/bin/env bash
# What \w, \d and \b mean to jsonschema-rs depends on the rest of the pattern.
#
# JSON Schema's patterns are ECMA-262's, where \w and \d are ASCII. jsonschema-rs reads them so in
# ^\w+$ and ^\d$, but by all of Unicode as soon as the pattern has a look-around, even one that
# changes nothing: "жж" is no ^\w+$ but a ^(?=.)\w+$. And \b is by Unicode always. One would expect one
# meaning. It matters because adding a look-ahead to a pattern lets other texts pass or fails others,
# and because validators that follow ECMA-262 judge such texts differently: who checks a model's
# output with it sees faults that are none.
#
# Exit code 0 while that is so, 1 once it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jsonschema-rs==0.60.3
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import jsonschema_rs

# Pattern, text, what ECMA-262 says, what jsonschema-rs says.
CASES = [
    (r"^\w+$", "жж", False, False),
    (r"^(?=.)\w+$", "жж", False, True),
    (r"^\d$", "٣", False, False),
    (r"^(?!x)\d$", "٣", False, True),
    (r"(?<![A-Za-z0-9_])ab", "жab", True, True),
    (r"(?<!\w)ab", "жab", True, False),
    (r"\bab", "жab", True, False),
]
print("jsonschema-rs", version("jsonschema-rs"))
for pattern, text, expected, seen in CASES:
    found = jsonschema_rs.is_valid({"pattern": pattern}, text)
    print(f"{pattern:22} in {text}: {found} (ECMA-262: {expected})")
    if found != seen:
        raise SystemExit("changed: that was otherwise")
PYTHON
