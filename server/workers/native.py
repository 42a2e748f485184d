"""The native worker: this project's engine in a process of its own.

Started by the pool as `python -m plait.server.workers.native`; see loop.py.
"""

from __future__ import annotations

import sys

from plait.server.engine.build import build_engine
from plait.server.workers.loop import main

if __name__ == "__main__":
    sys.exit(main(lambda settings, tell: build_engine(settings, tell=tell)))
