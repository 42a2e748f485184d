"""What plait's decoder costs within a vLLM worker, a step, against vLLM's own sampler.

    python -m benchmarks.vllm_sampler [--steps 60] [--sizes 1 8 32] [--weights bf16]

It starts the engine of a vLLM worker, with the interpreter that has vLLM, and runs requests on it.
On the logits of each step both samplers are called and timed, in turns first and second; the engine
goes on with plait's tokens. plait's time is that of all that stands in the sampler's place: draws,
the texts, their ends and, under a JSON schema, masks and the automaton. vLLM's is that of its
Sampler without seeds, the list of its tokens and, under the schema, what its structured output does
for the step (xgrammar): bitmasks, their application, the accepted tokens. Nobody drafts.

Nothing is printed unless the gate is passed: greedy tokens are equal, drawn ones lie in what
vLLM's truncation leaves, both samplers' surprise has the mean of the distribution (gate.py), and
plait's JSON is JSON to xgrammar. Medians over the steps; CPU seconds of the calling thread and of
all threads stand beside the wall's, since a busy machine disturbs these less.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from benchmarks.export_hf import export
from plait.server.models.catalog import resolve
from plait.server.workers.vllm import environment
from plait.server.workers.vllm.interpreter import find_python

MODEL = "smollm2-135m-instruct"


def main() -> int:
    """Measure, print; 1 if the gate is not passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=60, help="that are timed, of each row")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8, 32], help="sequences")
    parser.add_argument("--weights", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--folder", type=Path, help="a Hugging Face folder instead of SmolLM2's")
    args = parser.parse_args()
    if args.folder is None:
        with tempfile.TemporaryDirectory(prefix="plait-sampler-") as folder:
            export(resolve(MODEL), Path(folder))
            return _again(Path(folder))
    if find_spec("vllm") is None:
        return _again()
    environment.prepare()
    from benchmarks.vllm_sampler.measure import run  # noqa: PLC0415, after the environment is set

    return run(args)


def _again(folder: Path | None = None) -> int:
    """Run this program with the interpreter that has vLLM."""
    more = () if folder is None else ("--folder", str(folder))
    return subprocess.call([find_python(), "-m", "benchmarks.vllm_sampler", *sys.argv[1:], *more])


if __name__ == "__main__":
    sys.exit(main())
