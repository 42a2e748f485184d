"""Which Python runs a vLLM worker: vLLM pins other versions of libraries that plait uses, too."""

from __future__ import annotations

import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from plait.server.models.catalog import BadModel

FOLDER = ".venv-vllm"  # as requirements/install.sh makes it, beside the server's own


@cache
def find_python(given: str = "") -> str:
    """Return the interpreter that vLLM is installed for; looked for once, whoever asks.

    given: the operator's; without one, this process's own if it has vLLM, or FOLDER's beside it.

    Raises:
        BadModel: there is none.
    """
    if given:
        if Path(given).is_file():
            return given
        raise BadModel(f"vllm_python: there is no {given}")
    if find_spec("vllm") is not None:
        return sys.executable
    beside = Path(sys.prefix).resolve().with_name(FOLDER) / "bin" / "python"
    if beside.is_file():
        return str(beside)
    raise BadModel(
        f"a vLLM worker needs vLLM: `make vllm` installs it into {beside.parents[1]}; or name the "
        "interpreter that has it with --vllm-python"
    )
