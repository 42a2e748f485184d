"""`python -m benchmarks.structured suite|http|canvases`: by keyword, over HTTP, on canvases."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # Not above: the processes that engines run in import this file too, and would load torch.
    from benchmarks.command_line import run_command
    from benchmarks.structured.commands import run
    from benchmarks.structured.options import StructuredOptions

    sys.exit(run(run_command(StructuredOptions)))
