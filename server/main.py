"""The entry point of the command `plait`; Ctrl-C ends it without a traceback."""

from __future__ import annotations

import sys

EXIT_INTERRUPTED = 130  # as shells write SIGINT


def main() -> None:
    """Run the command line."""
    try:
        from plait.server import cli  # noqa: PLC0415, a second of imports, in which one may press it

        cli.main()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
