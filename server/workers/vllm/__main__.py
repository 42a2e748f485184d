"""The vLLM worker: vLLM's engine in a process of its own, with this project's decoding.

Started by the pool as `python -m plait.server.workers.vllm`, in the environment that vLLM is
installed in; see loop.py.
"""

from __future__ import annotations

import sys

from plait.server.workers.vllm import environment


def main() -> int:
    """Prepare the environment, then run the loop; return the process's exit code."""
    environment.prepare()
    from plait.server.workers import loop  # noqa: PLC0415, after the environment is set
    from plait.server.workers.vllm.build import build_engine  # noqa: PLC0415

    return loop.main(build_engine)


if __name__ == "__main__":
    sys.exit(main())
