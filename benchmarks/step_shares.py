"""Where the time of a worker's step goes: its loop runs in this process, with a clock at the seams.

    python -m benchmarks.step_shares --streams 1 8 32

Every function of SEAMS has a phase; time counts for the innermost of those that run, so the phases
and the rest add up to the step. Counted are the steps that give each stream a token; of these the
half in the middle, by their length. The clock costs some 0.3 us a call.
"""

from __future__ import annotations

import pkgutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from time import perf_counter
from typing import Any

import zmq
from pydantic import Field

from benchmarks.command_line import Command, command_config, run_command
from benchmarks.decoders.objects import compiled
from benchmarks.machine import this_machine
from benchmarks.prompts import PERSON, WORDS
from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.server.engine.build import build_engine
from plait.server.models.catalog import resolve
from plait.server.prompt.chat_prompt import chat_prompt
from plait.server.prompt.tokenizer import load_tokenizer
from plait.server.settings import EngineSettings
from plait.server.wire.address import parse_address
from plait.server.wire.channel import WorkerChannel
from plait.server.wire.messages import (
    Batch,
    CompiledConstraint,
    Delta,
    Failed,
    GenerateRequest,
    Report,
    Shutdown,
)
from plait.server.wire.messages import Command as WireCommand
from plait.server.workers import loop

STEP = "plait.server.workers.loop:_Loop.run_once"
REST = "rest"
# phase -> functions; one that a class inherits is set on the class that is named
SEAMS = {
    "receive": ("plait.server.wire.channel:WorkerChannel.receive",),
    "admission": (
        "plait.server.engine.engine:Engine._admit",
        "plait.server.engine.engine:Engine._expire",
    ),
    "plan": ("plait.server.engine.scheduler:Scheduler.plan",),
    "propose": ("plait.server.engine.engine:propose",),
    "reserve": ("plait.server.engine.scheduler:Scheduler.reserve",),
    "batch": (
        "plait.server.engine.step.forward_pass:scheduled_input",
        "plait.server.engine.step.forward_pass:build_forward_batch",
    ),
    "layers": ("plait.server.models.transformer:Transformer.forward",),
    "head": ("plait.server.models.transformer:Transformer.logits",),
    "pass": ("plait.server.engine.engine:run_forward_passes",),
    "bitmask": ("plait.decoders.autoregressive.decoder:AutoregressiveDecoder._bitmask",),
    "draw": (
        "plait.kernels.compiled_cpu:CompiledCpuBackend.draw_rows",
        "plait.kernels.compiled_cpu:CompiledCpuBackend.gumbel_argmax",
        "plait.kernels.compiled_cpu:CompiledCpuBackend.legal_mass",
    ),
    "sampling": ("plait.decoders.sampling.sampler:OrdinarySampler.sample",),
    "accept": ("plait.server.engine.engine:accept",),
    "commit": ("plait.server.engine.engine:Engine._commit",),
    "searches": ("plait.server.engine.engine:Engine._decide_groups",),
    "encode": ("plait.server.wire.channel:encode",),
    "send": ("plait.server.wire.channel:WorkerChannel.send",),
}
MODEL = ("layers", "head")
KERNELS = (*MODEL, "draw")
QUESTION = "Write a long story about {}."
PEOPLE = {"type": "array", "items": PERSON, "minItems": 2, "maxItems": 8}
SCHEMA_TOKENS = 192  # the shortest answer is about half as long


class StepSharesOptions(Command):
    """Say where the time of a step goes."""

    model_config = command_config("benchmarks.step_shares")

    model: str = Field("smollm2-135m-instruct", description="Built-in name, file or folder.")
    streams: list[int] = Field([1, 8, 32], description="Sequences at once.")
    tokens: int = Field(128, description="Of each answer.")
    threads: int = Field(0, description="0: one a core.")
    only: list[str] = Field(["greedy", "drawn", "schema"], description="Kinds of requests.")


@dataclass(slots=True)
class Clock:
    """Counts the time of a step by phase."""

    phases: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _open: list[str] = field(default_factory=lambda: [REST])
    _since: float = 0.0

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose time, but for that of others within it, counts for a phase."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self._turn(self._open[-1])
            self._open.append(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self._turn(self._open.pop())

        return call

    def start(self) -> None:
        """Begin a step."""
        self.phases.clear()
        self._since = perf_counter()

    def stop(self) -> dict[str, float]:
        """Return the seconds of each phase of a step."""
        self._turn(REST)
        return dict(self.phases)

    def _turn(self, phase: str) -> None:
        now = perf_counter()
        self.phases[phase] += now - self._since
        self._since = now


@dataclass(slots=True)
class Recording:
    """The steps of one run that have given each stream a token."""

    streams: int
    steps: list[dict[str, float]] = field(default_factory=list)
    num_deltas: int = 0  # of the step that runs

    def middle(self) -> dict[str, float]:
        """Return the mean seconds by phase of the middle half of the steps."""
        ranked = sorted(self.steps, key=lambda step: sum(step.values()))
        chosen = ranked[len(ranked) // 4 : -len(ranked) // 4]
        phases = [*SEAMS, REST]
        return {name: fmean(step.get(name, 0.0) for step in chosen) for name in phases}


class RecordingChannel(WorkerChannel):
    """A worker's channel that brings the requests of one run and ends the worker after it."""

    def __init__(self, address: str, requests: Sequence[GenerateRequest], found: Recording) -> None:
        super().__init__(parse_address(address))
        self._due: list[WireCommand] = [*requests]
        self._num_open = len(requests)
        self._found = found

    def receive(self, wait_s: float) -> list[WireCommand]:
        """Look at the socket; return the requests, and Shutdown after the last answer."""
        commands = super().receive(0.0)
        commands += self._due
        self._due = []
        return commands if self._num_open else [Shutdown()]

    def send(self, report: Report) -> None:
        """Send a report, and look at it."""
        super().send(report)
        if isinstance(report, Batch):
            failed = [each.message for each in report.reports if isinstance(each, Failed)]
            if failed:
                raise SystemExit(failed[0])
            deltas = [each for each in report.reports if isinstance(each, Delta)]
            self._num_open -= sum(each.finish_reason is not None for each in deltas)
            self._found.num_deltas = len(deltas)


@contextmanager
def clocked(found: Recording) -> Iterator[None]:
    """Put a clock at the seams, and record the steps of the worker's loop."""
    clock = Clock()
    undo = [_patch(name, partial(clock.timed, phase)) for phase, name in _seams()]

    def recorded(run_once: Callable[..., bool]) -> Callable[..., bool]:
        def step(self: object) -> bool:
            found.num_deltas = 0
            clock.start()
            goes_on = run_once(self)
            phases = clock.stop()
            if found.num_deltas == found.streams:
                found.steps.append(phases)
            return goes_on

        return step

    undo.append(_patch(STEP, recorded))
    try:
        yield
    finally:
        for each in undo:
            each()


def _seams() -> list[tuple[str, str]]:
    return [(phase, name) for phase, names in SEAMS.items() for name in names]


def _patch(name: str, wrap: Callable[[Any], Any]) -> Callable[[], None]:
    """Replace a function; return what puts it back."""
    where, _, attribute = name.replace(":", ".").rpartition(".")
    owner = pkgutil.resolve_name(where)
    original = getattr(owner, attribute)
    setattr(owner, attribute, wrap(original))
    return lambda: setattr(owner, attribute, original)


class Worker:
    """An engine without a process of its own."""

    def __init__(self, settings: EngineSettings) -> None:
        """Load the model.

        Raises:
            BadModel: it can't be found, read or run.
        """
        self.engine, self.info = build_engine(settings)
        self.tokenizer = load_tokenizer(resolve(settings.model))
        self._people: CompiledConstraint | None = None

    def requests(self, kind: str, streams: int, tokens: int) -> list[GenerateRequest]:
        """Return one request for each stream; none of them ends early."""
        has_schema = kind == "schema"
        prompts = [QUESTION.format(WORDS[i % len(WORDS)]) for i in range(streams)]
        return [
            GenerateRequest(
                request_id=f"chatcmpl-{i:024x}",
                prompt_token_ids=chat_prompt(self.tokenizer, [{"role": "user", "content": prompt}]),
                sampling=SamplingParams(temperature=0.0 if kind == "greedy" else 0.7, seed=i),
                max_tokens=max(tokens, SCHEMA_TOKENS) if has_schema else tokens,
                stop_token_ids=sorted(self.tokenizer.eos_token_ids) if has_schema else [],
                constraint=self._schema() if has_schema else None,
                decoding=resolve_decoding({"drafter": "off"}, None),
                arrived=float(i),
            )
            for i, prompt in enumerate(prompts)
        ]

    def record(self, kind: str, streams: int, tokens: int) -> Recording:
        """Run the requests of one cell in a worker's loop."""
        found = Recording(streams)
        requests = self.requests(kind, streams, tokens)
        with tempfile.TemporaryDirectory() as folder, zmq.Context() as context:
            pool = context.socket(zmq.PAIR)
            pool.set(zmq.RCVHWM, 0)  # nobody reads before the end
            pool.set(zmq.LINGER, 0)
            pool.bind(f"ipc://{folder}/worker")
            channel = RecordingChannel(f"ipc://{folder}/worker", requests, found)
            with pool, channel, clocked(found):
                code = loop.run(self.engine, self.info, channel)
        if code:
            raise SystemExit("the engine has failed")
        return found

    def _schema(self) -> CompiledConstraint:
        if self._people is None:
            (self._people,) = compiled(self.tokenizer, [PEOPLE])
        return self._people


def table(cells: Sequence[tuple[str, Recording]]) -> str:
    """Return a Markdown table: microseconds and shares by phase, a column a cell."""
    steps = [found.middle() for _, found in cells]
    lines = [
        ["us (share of the step)", *(name for name, _ in cells)],
        ["---", *["---:"] * len(cells)],
        *([phase, *(_cell(step, [phase]) for step in steps)] for phase in [*SEAMS, REST]),
        ["layers and head", *(_cell(step, MODEL) for step in steps)],
        ["but kernels", *(_cell(step, [p for p in step if p not in KERNELS]) for step in steps)],
        ["step", *(_cell(step, [*step]) for step in steps)],
        ["steps", *(str(len(found.steps)) for _, found in cells)],
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(step: Mapping[str, float], phases: Sequence[str]) -> str:
    seconds = sum(step[phase] for phase in phases)
    return f"{seconds * 1e6:.0f} ({seconds / sum(step.values()):.1%})"


def run_step_shares(options: StepSharesOptions) -> int:
    """Measure every cell; print the table; return the exit code."""
    settings = EngineSettings(options.model, threads=options.threads, prefix_caching=False)
    worker = Worker(settings)
    sys.stdout.write(f"{this_machine()}\n\n")
    cells = [
        (f"{kind}, {streams}", worker.record(kind, streams, options.tokens))
        for streams in options.streams
        for kind in options.only
    ]
    sys.stdout.write(table(cells) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_step_shares(run_command(StepSharesOptions)))
