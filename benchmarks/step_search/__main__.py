"""a-star against best-of-N with the same verifier: right answers, and tokens drawn for them.

python -m benchmarks.step_search FOLDER [--problems 100] [--samples 64]

FOLDER is what benchmarks.step_search.train has written. Both run in the server's engine, in this
process, and call the verifier over HTTP or directly.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import this_machine
from benchmarks.markdown import table
from benchmarks.step_search import serving, task
from benchmarks.step_search.serving import Answers
from benchmarks.step_search.verifier import Verifier, served
from plait.server.engine.engine import Engine


@dataclass(frozen=True, slots=True)
class Row:
    """What one method reached."""

    name: str
    right: int
    problems: int
    tokens: float  # drawn for a problem, on average
    scores: float  # texts that the verifier has read for a problem, on average

    def cells(self) -> list[str]:
        """Return the row of the table; the error of `right` is the standard one of a share."""
        share = self.right / self.problems
        error = math.sqrt(share * (1 - share) / self.problems)
        right = f"{100 * share:.1f} ± {100 * error:.1f} %"
        return [self.name, right, f"{self.tokens:.0f}", f"{self.scores:.1f}"]


def main() -> None:
    """Read the command line, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--samples", type=int, default=64, help="of best-of-N")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(99)
    problems = [task.problem(rng) for _ in range(args.problems)]
    verifier = Verifier(args.folder)
    begun = time.process_time()
    with served(verifier) as url:
        engine = serving.start(args.folder, [f"verifier={url}"])
        bench = Bench(engine, verifier, problems)
        rows = bench.sampled([count for count in (1, 4, 16, args.samples) if count <= args.samples])
        for width in (2, 4, 8):
            name = f"a-star, {width} continuations"
            rows.append(bench.searched(name, num_continuations=width))
        engine.close()
    print(table(["Method", "Right", "Tokens", "Scored texts"], [row.cells() for row in rows]))
    machine, spent = this_machine(), time.process_time() - begun
    print(
        f"\n{args.problems} problems; {machine.cpu}, {machine.cores} cores, "
        f"{spent:.0f} s of CPU time, {machine.plait}."
    )


class Bench:
    """Runs the problems through one engine."""

    def __init__(self, engine: Engine, verifier: Verifier, problems: Sequence[list[int]]) -> None:
        self._engine = engine
        self._verifier = verifier
        self._problems = problems

    def sampled(self, counts: Sequence[int]) -> list[Row]:
        """Draw samples of each problem; of the first so many take what the verifier likes best.

        The first sample is what one would be alone: its noise depends on its seed and number.
        """
        answers = serving.answer(self._engine, self._problems, {}, n=max(counts))
        scores = [self._score(*each) for each in zip(self._problems, answers, strict=True)]
        rows = []
        for count in counts:
            right = tokens = 0
            for terms, each, found in zip(self._problems, answers, scores, strict=True):
                best = max(range(count), key=found.__getitem__)
                right += task.is_right(terms, each.completions[best])
                tokens += sum(map(len, each.texts[:count]))
            name = f"best of {count}" if count > 1 else "one sample"
            rows.append(self._row(name, right, tokens, count * (count > 1)))
        return rows

    def searched(self, name: str, **options: Any) -> Row:
        """Search for an answer of each problem with a-star."""
        search = {"name": "a-star", "delimiters": ["\n"], "max_step_tokens": 16, **options}
        decoding = {"search": search, "scorer": {"name": "http", "endpoint": "verifier"}}
        before = self._verifier.num_texts
        answers = serving.answer(self._engine, self._problems, decoding)
        right = sum(
            task.is_right(terms, each.completions[0])
            for terms, each in zip(self._problems, answers, strict=True)
        )
        scores = (self._verifier.num_texts - before) / len(self._problems)
        return self._row(name, right, sum(each.num_tokens for each in answers), scores)

    def _score(self, terms: list[int], answers: Answers) -> list[float]:
        prompt = task.prompt_of(terms)
        return self._verifier.score([(prompt, text, True) for text in answers.completions])

    def _row(self, name: str, right: int, tokens: int, scores: float) -> Row:
        count = len(self._problems)
        return Row(name, right, count, tokens / count, scores)


if __name__ == "__main__":
    main()
