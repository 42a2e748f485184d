"""Builds the compiled kernels, where that is possible; everything else is in pyproject.toml.

Needs torch and a C++ compiler in the build environment (`pip install --no-build-isolation .`).
Without them the package is installed all the same, and its naive kernels serve.
"""

import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths
except ImportError:
    BuildExtension = None


def files(suffix, *, of_grammar=False):
    """Return the kernels' files of one kind, relative to this file; those of grammar are apart."""
    root = Path(__file__).parent
    found = [path.relative_to(root) for path in (root / "kernels").glob(f"*/*{suffix}")]
    return sorted(str(path) for path in found if (path.parent.name == "grammar") == of_grammar)


def extension():
    """Describe plait.kernels._cpu. No contraction: bits must not depend on inlining."""
    flags = [
        "-O3",
        "-g0",
        "-std=c++20",  # torch's headers ask for it
        "-fopenmp",
        "-ffp-contract=off",
        "-fno-trapping-math",  # nobody reads the flags, and loops with a choice become vectors
        "-fvisibility=hidden",
        "-Wno-uninitialized",  # GCC 12 finds fault with its own AVX-512 headers
        "-Wno-maybe-uninitialized",
        "-Wno-psabi",  # vectors are never passed between files
    ]
    return CppExtension(
        "plait.kernels._cpu",
        files(".cpp"),
        depends=files(".h"),
        extra_compile_args=flags,
        extra_link_args=["-fopenmp"],
        optional=True,  # a failed compilation warns, and the installation goes on
    )


def grammar_extension():
    """Describe plait.kernels._grammar, which uses torch's copy of pybind11 but not torch."""
    return Extension(
        "plait.kernels._grammar",
        files(".cpp", of_grammar=True),
        depends=files(".h", of_grammar=True),
        include_dirs=include_paths(),
        extra_compile_args=["-O3", "-g0", "-std=c++20", "-fvisibility=hidden"],
        optional=True,
    )


def build_class():
    """Return torch's builder, taught to go on without a compiler: `optional` does not reach it."""

    class BuildKernels(BuildExtension):
        def build_extensions(self):
            try:
                super().build_extensions()
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                print(f"plait: the kernels are not compiled: {error}", file=sys.stderr)

    return BuildKernels


if BuildExtension is None:
    print("plait: the kernels are not compiled: no torch to build them with", file=sys.stderr)
    setup()
else:
    setup(ext_modules=[extension(), grammar_extension()], cmdclass={"build_ext": build_class()})
