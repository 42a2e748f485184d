"""The native worker: this project's engine in a process of its own.

Started by the pool as `python -m plait.server.workers.native`; see loop.py.
"""

from __future__ import annotations

import sys

from plait.server.workers.lean_imports import import_structlog, importing


def main() -> int:
    """Import the engine, then run the loop; return the process's exit code."""
    with importing():
        import_structlog()
        from plait.server.engine.build import build_engine  # noqa: PLC0415, after those above
        from plait.server.workers import loop  # noqa: PLC0415
    return loop.main(lambda settings, tell: build_engine(settings, tell=tell))


if __name__ == "__main__":
    sys.exit(main())
