"""The entry point of the command `plait`; Ctrl-C ends it without a traceback."""

from __future__ import annotations

import os
import sys

from plait.server.pool.local import early
from plait.server.workers.lean_imports import import_structlog, importing

EXIT_INTERRUPTED = 130  # as shells write SIGINT


def main() -> None:
    """Run the command line."""
    try:
        if early.is_wanted(sys.argv[1:], os.environ):
            early.start()
        with importing():
            import_structlog()
            from plait.server import cli  # noqa: PLC0415, half a second, in which one may press it

        cli.main()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    finally:
        early.drop()


if __name__ == "__main__":
    main()
