"""Accuracy per task on cases of held-out seeds, with Wilson intervals; by default a token a step.

python -m benchmarks.tiny_diffusion.evaluate CHECKPOINT --cases 400 --blocks 32 0 1
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from benchmarks.tasks.case import HELD_OUT_SEEDS, TEMPLATES, Case
from benchmarks.tasks.catalog import TASKS, is_gold, judge, make_case
from benchmarks.tiny_diffusion import tokenizer as tiny_tokenizer
from benchmarks.tiny_diffusion.decode import Rule, best_hole, canvas, decode, surer_than
from benchmarks.tiny_diffusion.network import Network
from benchmarks.tiny_diffusion.tokenizer import prompt_ids
from benchmarks.tiny_diffusion.train import averaged

ROOM = 32  # holes offered to an answer; the longest takes 32 with its end
AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Score:
    """How one task went in one mode."""

    task: str
    template: int | None  # None: the trained ones
    block: int  # 0: full attention
    cases: int
    right: int  # by the task's judge
    gold: int  # to the letter
    forwards: int  # steps of all cases
    filled: int  # tokens of all cases, padding with them

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the share of right answers. Source: Wilson 1927."""
        return wilson(self.right, self.cases)


def wilson(right: int, cases: int, z: float = 1.96) -> tuple[float, float]:
    """Return the interval of a share that a sample of `cases` leaves open."""
    share, weight = right / cases, z * z / cases
    centre = (share + weight / 2) / (1 + weight)
    spread = z * math.sqrt(share * (1 - share) / cases + weight / cases / 4) / (1 + weight)
    return max(0.0, centre - spread), min(1.0, centre + spread)


def score(
    network: Network,
    tokenizer: Tokenizer,
    cases: Sequence[Case],
    block: int,
    *,
    template: int | None = None,
    rule: Rule = best_hole,
) -> Score:
    """Decode the cases, all of one task and, unless None, one template, and judge the answers."""
    states = [canvas(prompt_ids(tokenizer, case.prompt), ROOM, block) for case in cases]
    for i in range(0, len(cases), AT_ONCE):
        decode(network, states[i : i + AT_ONCE], rule)
    answers = [tokenizer.decode(state.answer()) for state in states]
    judged = list(zip(cases, answers, strict=True))
    return Score(
        task=cases[0].task,
        template=template,
        block=block,
        cases=len(cases),
        right=sum(judge(case, answer) for case, answer in judged),
        gold=sum(is_gold(case, answer) for case, answer in judged),
        forwards=sum(state.steps for state in states),
        filled=sum(len(state.order) for state in states),
    )


def held_out(task: str, count: int, template: int | None, seed: int = 0) -> list[Case]:
    """Return cases that training never drew; lists of 3 to 6 names."""
    start = HELD_OUT_SEEDS.start + seed
    return [make_case(task, start, i, template=template) for i in range(count)]


def main() -> None:
    """Read the command line, decode and print."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--blocks", type=int, nargs="+", default=[32, 0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--templates", type=int, nargs="*", choices=range(TEMPLATES))
    parser.add_argument("--threshold", type=float, help="fill all holes at least so sure")
    parser.add_argument("--out", type=Path, help="append one JSON line per score")
    args = parser.parse_args()
    torch.set_num_threads(1)
    network, step = averaged(args.checkpoint)
    tokenizer = tiny_tokenizer.build()
    rule = best_hole if args.threshold is None else surer_than(args.threshold)
    print(f"step {step}")
    for task in args.tasks:
        for template in args.templates or [None]:
            cases = held_out(task, args.cases, template)
            scores = [
                score(network, tokenizer, cases, block, template=template, rule=rule)
                for block in args.blocks
            ]
            cells = " ".join(_cell(each) for each in scores)
            print(f"{task:18} {'-' if template is None else template} {cells}", flush=True)
            if args.out:
                _append(args.out, step, scores)


def _append(path: Path, step: int, scores: Sequence[Score]) -> None:
    lines = [json.dumps({"step": step, **asdict(each)}) for each in scores]
    with path.open("a") as file:
        file.write("\n".join(lines) + "\n")


def _cell(each: Score) -> str:
    low, high = each.interval()
    share, pace = each.right / each.cases, each.filled / each.forwards
    return f"| {each.block:2}: {share:.3f} [{low:.3f}, {high:.3f}] {pace:.2f} a step"


if __name__ == "__main__":
    main()
