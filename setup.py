"""Builds the compiled kernels, where that is possible; everything else is in pyproject.toml.

Needs torch and a C++ compiler in the build environment (`pip install --no-build-isolation .`).
Without them the package is installed all the same, and its naive kernels serve.
"""

import sys
from pathlib import Path

from setuptools import setup

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:
    BuildExtension = None


def sources():
    """Return every C++ file of the kernels, relative to this file."""
    root = Path(__file__).parent
    return sorted(str(path.relative_to(root)) for path in (root / "kernels").glob("*/*.cpp"))


def extension():
    """Describe plait.kernels._cpu. No contraction: a product's bits must not depend on inlining."""
    flags = ["-O3", "-std=c++17", "-fopenmp", "-ffp-contract=off", "-fvisibility=hidden", "-Wno-psabi"]
    return CppExtension(
        "plait.kernels._cpu",
        sources(),
        extra_compile_args=flags,
        extra_link_args=["-fopenmp"],
        optional=True,  # a failed compilation warns, and the installation goes on
    )


if BuildExtension is None:
    print("plait: no torch in the build environment, the kernels are not compiled", file=sys.stderr)
    setup()
else:
    setup(ext_modules=[extension()], cmdclass={"build_ext": BuildExtension})
