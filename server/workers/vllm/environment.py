"""The environment of a process that runs vLLM; vLLM and OpenMP read it when they are loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

# What the worker depends on, whatever the operator has set.
REQUIRED = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # steps run in this process, which owns the sampler
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the other runner has no such place for a sampler
}
DEFAULTS = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # its own choice leaves a core to a process we lack
    "KMP_BLOCKTIME": "1",  # ms that threads spin: through a step, and not while the front end works
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_LOGGING_LEVEL": "ERROR",  # it warns of what plait has asked for
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",  # of its own code
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",  # models are folders here
}
PRELOADED = ("libiomp5.so",)  # vLLM's kernels are tuned for Intel's OpenMP


def prepare() -> None:
    """Set the environment; start this process's program anew where libraries must come first.

    Call it before anything is read from standard input, and before torch or vLLM is imported.
    """
    environment = {**DEFAULTS, **os.environ, **REQUIRED}
    preload = preloaded(environment, Path(sys.prefix))
    if preload == environment.get("LD_PRELOAD", ""):
        os.environ.update(environment)
        return
    os.execve(sys.executable, sys.orig_argv, {**environment, "LD_PRELOAD": preload})


def preloaded(environment: Mapping[str, str], prefix: Path) -> str:
    """Return LD_PRELOAD with vLLM's own libraries in front, as far as they are installed."""
    given = [path for path in environment.get("LD_PRELOAD", "").split(":") if path]
    own = [str(path) for name in PRELOADED if (path := prefix / "lib" / name).is_file()]
    return ":".join([*(path for path in own if path not in given), *given])
