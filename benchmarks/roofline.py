"""How fast this machine reads memory, which bounds how fast one stream can be decoded.

    python -m benchmarks.roofline BYTES ...

Prints JSON, bytes read in a second: one thread a core goes over its part of an array, again and
again. An array that fits the last cache is read faster than memory is, and so are weights that do.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np  # of whose threads the environment decides when it is imported

from benchmarks.machine import ROOT

LEAST_MIB = 1024  # of an array that is read from memory
TIMES_CACHE = 2  # or as many times the last cache
SECONDS = 0.5  # of one reading
READINGS = 3
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes read in a second."""

    memory: float  # from an array larger than the caches
    weights: float  # from one as large as the weights of plait
    array_bytes: int
    weights_bytes: int
    cache_bytes: int  # of the last level, which a virtual machine may share with others

    @property
    def is_cached(self) -> bool:
        """Whether the weights fit the last cache."""
        return self.weights_bytes <= self.cache_bytes


def share(weights_bytes: int, rate: float, bandwidth: float) -> float:
    """Return which share of a bandwidth one stream uses that reads all weights for each token.

    Args:
        weights_bytes: of one token.
        rate: tokens per second.
        bandwidth: bytes per second.
    """
    return weights_bytes * rate / bandwidth


def last_cache_bytes() -> int:
    """Return the size of the largest cache of the first core; 0 if the system does not tell."""
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    sizes = (path.read_text().strip() for path in folder.glob("index*/size"))
    found = (re.fullmatch(r"(\d+)([KMG])", size) for size in sizes)
    return max((int(match[1]) * _UNITS[match[2]] for match in found if match), default=0)


def measure(weights_bytes: int) -> Bandwidth:
    """Measure in a process of its own, which returns its memory when it ends."""
    cache = last_cache_bytes()
    array = max(LEAST_MIB * 2**20, TIMES_CACHE * cache)
    argv = [sys.executable, "-m", "benchmarks.roofline", str(array), str(weights_bytes)]
    one = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(argv, cwd=ROOT, env=os.environ | one, capture_output=True, check=True)
    rates: Mapping[str, float] = json.loads(done.stdout)
    return Bandwidth(rates[str(array)], rates[str(weights_bytes)], array, weights_bytes, cache)


def read_rate(num_bytes: int) -> float:
    """Return the bytes that all cores together read in a second, from an array of this size."""
    threads = len(os.sched_getaffinity(0))
    parts = [np.ones(num_bytes // 4 // threads, np.float32) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:

        def read(times: int) -> float:
            begun = time.perf_counter()
            list(pool.map(lambda part: [np.dot(part, part) for _ in range(times)], parts))
            return time.perf_counter() - begun

        read(1)
        times = max(1, round(SECONDS / read(1)))
        return num_bytes * times / statistics.median(read(times) for _ in range(READINGS))


def main(sizes: Sequence[str]) -> None:
    """Print the rate of each size in bytes."""
    print(json.dumps({size: read_rate(int(size)) for size in sizes}))


if __name__ == "__main__":
    main(sys.argv[1:])
