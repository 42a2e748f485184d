"""`python -m benchmarks.decoders`: compare the ways to decode a diffusion model."""

from __future__ import annotations

import sys

from benchmarks.command_line import run_command
from benchmarks.decoders.comparison import run_bench
from benchmarks.decoders.options import DecodersOptions

if __name__ == "__main__":
    sys.exit(run_bench(run_command(DecodersOptions)))
