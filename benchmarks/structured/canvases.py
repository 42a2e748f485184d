"""Forms on a diffusion model's canvases: the methods beside each other, and texts with holes.

Answers: each method under schemas, one answer at a time, in turns, so that all of them see the same
machine. Holes: spans cut out of right answers at random, filled without the schema and with it;
they are as long as what they hide, or longer, as where nobody knows how long a value will be.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Any

from benchmarks.decoders.cells import Sample, judged, requests_of, texts
from benchmarks.decoders.objects import TASK, compiled, is_valid
from benchmarks.decoders.presets import Setting
from benchmarks.decoders.running import LoadedModel, MeasuredRun, run_requests, serve
from benchmarks.decoders.statistics import Interval, wilson
from benchmarks.machine import Machine
from benchmarks.markdown import percent, table
from benchmarks.tasks.case import Case
from plait.decoders.contract.decoding import PromptExtras
from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.server.prompt.chat_prompt import chat_prompt
from plait.server.settings import EngineSettings
from plait.server.wire.messages import CompiledConstraint, GenerateRequest

METHODS = ("lookahead", "cfg-intersection", "dingo", "marginal")
SELECTORS: Sequence[Any] = ("static", {"name": "threshold", "threshold": 0.9})
TEMPERATURES = (0.0, 1.0)
REGIONS = (1, 2, 3)
SLACKS = (0, 2)  # positions of a hole beyond the tokens that it hides


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One method over all cases."""

    setting: str
    valid: Interval  # share of answers that their schema accepts
    exact: Interval  # share of answers that are the right object
    forwards: float  # of an answer
    ms: float  # of an answer alone, the median of the rounds


@dataclass(frozen=True, slots=True)
class HoleRow:
    """Texts with so many holes."""

    regions: int
    slack: int  # positions of each hole beyond what it hides
    constrained: bool
    valid: Interval
    ms: float  # of a text


@dataclass(frozen=True, slots=True)
class CanvasReport:
    """Everything that a run has found, and where."""

    date: str
    command: str
    machine: Machine
    answers: Sequence[AnswerRow]
    holes: Sequence[HoleRow]


def load() -> LoadedModel:
    """Return the built-in model in an engine of this process."""
    return serve(EngineSettings(model="tiny-diffusion", threads=1, kv_cache_bytes=2**27))


def answer_rows(served: LoadedModel, count: int, rounds: int) -> list[AnswerRow]:
    """Answer the cases under their schemas with every method."""
    cases = Sample(cases=count).of(TASK)
    constraints = compiled(served.tokenizer, [case.schema or {} for case in cases])
    settings = [*_settings()]
    runs: dict[str, list[MeasuredRun]] = {setting.name: [] for setting in settings}
    for _ in range(rounds):
        for setting in settings:
            requests = requests_of(served, setting, cases, constraints)
            runs[setting.name].append(run_requests(served, requests, 1))
    return [_answer_row(served, name, cases, own) for name, own in runs.items()]


def _settings() -> Iterator[Setting]:
    for temperature in TEMPERATURES:
        for selector in SELECTORS:
            for method in METHODS:
                name = selector if isinstance(selector, str) else selector["name"]
                yield Setting(
                    name=f"{method}, {name}, t={temperature:g}",
                    decoding={"unmasker": [method, selector]},
                    temperature=temperature,
                )


def _answer_row(
    served: LoadedModel, name: str, cases: Sequence[Case], runs: Sequence[MeasuredRun]
) -> AnswerRow:
    run, count = runs[0], len(cases)
    answered = zip(texts(served, run), cases, strict=True)
    valid = sum(is_valid(text, case.schema or {}) for text, case in answered)
    return AnswerRow(
        name,
        wilson(valid, count),
        wilson(sum(judged(served, cases, run)), count),
        run.forwards / count,
        1e3 * median(each.seconds for each in runs) / count,
    )


def hole_rows(served: LoadedModel, count: int) -> list[HoleRow]:
    """Fill holes in right answers, with and without their schemas."""
    cases = Sample(cases=count).of(TASK)
    constraints = compiled(served.tokenizer, [case.schema or {} for case in cases])
    rows = []
    for regions, slack, given in product(REGIONS, SLACKS, (None, constraints)):
        rng = random.Random(regions)
        made = [template_of(served, case, regions, rng, slack) for case in cases]
        requests = [
            _hole_request(served, i, template, None if given is None else given[i])
            for i, template in enumerate(made)
        ]
        run = run_requests(served, requests, 1)
        answers = zip(made, run.answers, strict=True)
        texts_filled = [served.tokenizer.decode(filled(t, a.token_ids)) for t, a in answers]
        valid = sum(
            is_valid(text, case.schema or {})
            for text, case in zip(texts_filled, cases, strict=True)
        )
        shown = wilson(valid, count), 1e3 * run.seconds / count
        rows.append(HoleRow(regions, slack, given is not None, *shown))
    return rows


@dataclass(frozen=True, slots=True)
class Template:
    """A right answer with holes, behind its question."""

    prompt: list[int]
    text: list[int]  # what is to be JSON, with 0 in its holes
    holes: list[tuple[int, int]]  # in the text


def template_of(
    served: LoadedModel, case: Case, regions: int, rng: random.Random, slack: int = 0
) -> Template:
    """Return a case's right answer with so many spans cut out of it."""
    prompt = chat_prompt(served.tokenizer, [{"role": "user", "content": case.prompt}])
    tokens = served.tokenizer.encode_inside(case.gold)
    cuts = sorted(rng.sample(range(len(tokens) + 1), 2 * regions))
    text, holes, at = list[int](), list[tuple[int, int]](), 0
    for start, stop in zip(cuts[::2], cuts[1::2], strict=True):
        text += tokens[at:start]
        holes.append((len(text), len(text) + stop - start + slack))
        text += [0] * (stop - start + slack)
        at = stop
    return Template(prompt, [*text, *tokens[at:]], holes)


def _hole_request(
    served: LoadedModel, i: int, template: Template, constraint: CompiledConstraint | None
) -> GenerateRequest:
    first = len(template.prompt)
    extras = PromptExtras(holes=[(first + start, first + stop) for start, stop in template.holes])
    decoding: Mapping[str, Any] = {"unmasker": [SELECTORS[1]], "trace": True}
    return GenerateRequest(
        f"holes-{i}",
        [*template.prompt, *template.text],
        SamplingParams(temperature=1.0, seed=i),
        0,
        constraint=constraint,
        stop_token_ids=sorted(served.tokenizer.eos_token_ids),
        decoding=resolve_decoding(decoding, served.info.diffusion, extras),
        extras=extras,
    )


def filled(template: Template, output: Sequence[int]) -> list[int]:
    """Return the text with the output in its holes."""
    text, own = list(template.text), iter(output)
    for start, stop in template.holes:
        text[start:stop] = [next(own) for _ in range(start, stop)]
    return text


def markdown(report: CanvasReport) -> str:
    """Return the whole report."""
    machine = report.machine
    head = (
        f"{report.date}; {machine.cpu}, load {machine.load:.2f}, plait {machine.plait}, "
        f"`{report.command}`"
    )
    answers = [
        [row.setting, percent(row.valid), percent(row.exact), f"{row.forwards:.1f}",
         f"{row.ms:.0f}", f"{row.ms / row.forwards:.1f}"]
        for row in report.answers
    ]  # fmt: skip
    holes = [
        ["with it" if row.constrained else "without", str(row.regions), str(row.slack),
         percent(row.valid), f"{row.ms:.0f}"]
        for row in report.holes
    ]  # fmt: skip
    return "\n\n".join([
        "# Forms on canvases", head,
        "## JSON under a schema",
        table(["method", "valid, %", "right, %", "forwards", "ms", "ms a forward"], answers),
        "## Right answers with holes, their schema known",
        table(["schema", "holes", "longer by", "valid, %", "ms"], holes),
    ]) + "\n"  # fmt: skip
