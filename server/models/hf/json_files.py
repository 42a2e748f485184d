"""The JSON files of a Hugging Face folder, which may lack some, or hold what is none. No torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from plait.server.models.catalog import BadModel


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file; an empty one if there is no file.

    Raises:
        BadModel: the file holds something else.
    """
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text, parse_float=_finite, parse_constant=_refused)
    except OSError as error:
        raise BadModel(f"{path} can't be read: {error.strerror}") from error
    except RecursionError as error:
        raise BadModel(f"{path} is nested too deeply") from error
    except ValueError as error:
        raise BadModel(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadModel(f"{path} is not a JSON object")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is out of range")
    return value


def _refused(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
