"""`python -m benchmarks.structured suite|http`: structured output by keyword, and over HTTP."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # Not above: the processes that engines run in import this file too, and would load torch.
    from benchmarks.command_line import run_command
    from benchmarks.structured.commands import run
    from benchmarks.structured.options import StructuredOptions

    sys.exit(run(run_command(StructuredOptions)))
