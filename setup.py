"""Builds the compiled kernels, where that is possible; everything else is in pyproject.toml.

Needs torch and a C++ compiler in the build environment (`pip install --no-build-isolation .`).
Without them the package is installed all the same, and its naive kernels serve. Files are compiled
side by side, as many as cores and memory allow (MAX_JOBS: at most so many), and kept in
build/kernels: what has not changed is not compiled again.
"""

import os
import runpy
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from hashlib import sha256
from pathlib import Path

from setuptools import Extension, setup

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths
except ImportError:
    BuildExtension = None

ROOT = Path(__file__).parent
KEPT = ROOT / "build" / "kernels"
COMPILER_BYTES = 2**30  # what one takes for a file with torch's headers


def say(text):
    """Write a line to standard error; pip shows it with -v."""
    print(f"plait: {text}", file=sys.stderr, flush=True)


def files(suffix, *, of_grammar=False):
    """Return the kernels' files of one kind, relative to this file; those of grammar are apart."""
    found = [path.relative_to(ROOT) for path in (ROOT / "kernels").glob(f"*/*{suffix}")]
    return sorted(str(path) for path in found if (path.parent.name == "grammar") == of_grammar)


def num_jobs(count):
    """Return how many of `count` files to compile at once."""
    system_memory = runpy.run_path(str(ROOT / "server" / "memory.py"))["system_memory"]
    memory = system_memory()
    bounds = [count, len(os.sched_getaffinity(0)), int(os.environ.get("MAX_JOBS") or count)]
    if memory is not None:
        bounds.append(memory.available // COMPILER_BYTES)
    return max(min(bounds), 1)


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


class Compilation:
    """Stands for the compile() of a distutils compiler: side by side, kept, and told of."""

    def __init__(self, compiler):
        self.compiler = compiler
        self.compile_one = compiler._compile
        self.used = set()
        names = [*files(".h"), *files(".h", of_grammar=True)]
        headers = b"".join((ROOT / name).read_bytes() for name in names)
        version = subprocess.run(
            [*compiler.compiler_so[:1], "--version"], capture_output=True, check=True
        ).stdout
        self.surroundings = headers + version + torch.__version__.encode()

    def __call__(self, sources, output_dir=None, macros=None, include_dirs=None, **options):
        """Compile the sources that are not kept; return the object files of all of them."""
        postargs, depends = options.get("extra_postargs"), options.get("depends")
        macros, objects, postargs, pp_opts, build = self.compiler._setup_compile(
            output_dir, macros, include_dirs, sources, depends, postargs
        )
        preargs = options.get("extra_preargs")
        arguments = self.compiler._get_cc_args(pp_opts, options.get("debug", False), preargs)
        kept = {obj: self.kept(build[obj][0], [*arguments, *postargs]) for obj in build}
        missing = [obj for obj in build if not kept[obj].exists()]
        jobs = num_jobs(len(missing))
        if missing:
            say(f"compiling {len(missing)} of {len(build)} files of kernels, {jobs} at once")

        def compile_kept(obj):
            """Return the source, and the seconds that it took."""
            begun = time.monotonic()
            source, suffix = build[obj]
            self.compile_one(obj, source, suffix, arguments, postargs, pp_opts)
            draft = kept[obj].with_suffix(f".{os.getpid()}")
            shutil.copy(obj, draft)
            draft.rename(kept[obj])
            return source, time.monotonic() - begun

        with ThreadPoolExecutor(jobs) as pool:
            running = [pool.submit(compile_kept, obj) for obj in missing]
            for number, done in enumerate(as_completed(running), 1):
                source, seconds = done.result()
                say(f"compiled file {number} of {len(missing)}: {source} ({seconds:.0f} s)")
        for obj in set(build) - set(missing):
            shutil.copy(kept[obj], obj)
        self.used |= {*kept.values()}
        return objects

    def forget_others(self):
        """Remove the objects of other versions, once everything is compiled."""
        for old in {*KEPT.glob("*.o")} - self.used:
            old.unlink()

    def kept(self, source, arguments):
        """Return where the object of a source is kept, named after all that it is made of."""
        KEPT.mkdir(parents=True, exist_ok=True)
        parts = [self.surroundings, Path(source).read_bytes(), "\0".join(arguments).encode()]
        return KEPT / f"{sha256(b''.join(parts)).hexdigest()}.o"


def build_class():
    """Return torch's builder, taught to go on without a compiler: `optional` does not reach it."""

    class BuildKernels(BuildExtension):
        def __init__(self, *args, **named):
            super().__init__(*args, **named, use_ninja=False)

        def build_extensions(self):
            try:
                compilation = self.compiler.compile = Compilation(self.compiler)
                super().build_extensions()
                compilation.forget_others()
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                say(f"the kernels are not compiled, slower ones will serve: {error}")

    return BuildKernels


if BuildExtension is None:
    say("the kernels are not compiled: no torch to build them with")
    setup()
else:
    setup(ext_modules=[extension(), grammar_extension()], cmdclass={"build_ext": build_class()})
