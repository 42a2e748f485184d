"""The JSON files of a Hugging Face folder, which may lack some, or hold what is none. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plait.server.models.catalog import BadModel


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file; an empty one if there is no file.

    Raises:
        BadModel: the file holds something else.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadModel(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadModel(f"{path} is not a JSON object")
    return value
