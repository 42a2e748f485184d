"""Runs requests on the engine of a vLLM worker; times both samplers on the logits of each step."""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from benchmarks.machine import this_machine
from benchmarks.markdown import table
from benchmarks.prompts import PERSON, person, story
from benchmarks.vllm_sampler.gate import Surprise, greedy_fault
from benchmarks.vllm_sampler.theirs import Grammars, Theirs, grammars
from plait.decoders.constrained.compile import compile_constraint
from plait.decoders.constrained.spec import ConstraintLimits, ConstraintSpec
from plait.decoders.constrained.vocabulary import make_vocabulary
from plait.decoders.sampling.params import SamplingParams
from plait.server.models.catalog import resolve
from plait.server.prompt.tokenizer import Tokenizer, load_tokenizer
from plait.server.settings import EngineSettings, WeightMode
from plait.server.wire.messages import CompiledConstraint, Failed, GenerateRequest
from plait.server.workers.vllm.build import build_engine
from plait.server.workers.vllm.engine import VllmEngine
from plait.server.workers.vllm.sampler import DecoderSampler

WARM_UP = 8  # steps that are not timed
MAX_STEPS = 2000  # the engine's, until enough have been timed
# Long enough that no sequence ends while steps are timed.
PEOPLE = {"type": "array", "items": PERSON, "minItems": 6, "maxItems": 12}
SCHEMA = json.dumps(PEOPLE)
MAX_TOKENS = 600


@dataclass(frozen=True, slots=True)
class Mix:
    """What the requests of a row have in common."""

    temperature: float = 0.0
    top_p: float = 1.0
    is_json: bool = False


MIXES: Mapping[str, Mix] = {
    "greedy": Mix(),
    "temperature": Mix(0.8),
    "top_p": Mix(0.8, 0.9),
    "json": Mix(0.8, is_json=True),
}


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of a call: the wall's, the calling thread's, all threads'."""

    wall: float
    thread: float
    process: float

    def __add__(self, other: Times) -> Times:
        return Times(
            self.wall + other.wall, self.thread + other.thread, self.process + other.process
        )


def timed(call: Callable[[], Any]) -> tuple[Any, Times]:
    """Return what a call returns, and what it took."""
    process, thread, wall = time.process_time(), time.thread_time(), time.perf_counter()
    found = call()
    end = time.perf_counter(), time.thread_time(), time.process_time()
    return found, Times(end[0] - wall, end[1] - thread, end[2] - process)


@dataclass
class Pairs:
    """What is known of one row of the table."""

    ours: list[Times] = field(default_factory=list)
    theirs: list[Times] = field(default_factory=list)
    surprise: tuple[Surprise, Surprise] = field(default_factory=lambda: (Surprise(), Surprise()))
    num_rows: int = 0
    num_different: int = 0


class BothSamplers:
    """Stands in the runner's sampler's place; plait's tokens are the ones that count."""

    logprobs_mode: ClassVar[str] = DecoderSampler.logprobs_mode

    def __init__(self, ours: DecoderSampler, runner: Any) -> None:
        self._ours = ours
        self._runner = runner
        self._theirs: Theirs | None = None
        self._grammars: Grammars | None = None
        self._size = 0
        self._num_seen = 0
        self.mix = Mix()
        self.pairs = Pairs()

    def begin(self, mix: Mix, size: int, their_grammars: Grammars | None) -> None:
        """Begin another row of the table."""
        self.mix, self._size, self._grammars = mix, size, their_grammars
        self._theirs = Theirs(size, mix.temperature, mix.top_p)
        self.pairs, self._num_seen = Pairs(), 0

    def __call__(self, logits: Tensor, sampling_metadata: object, **_: object) -> Any:
        """Decide a step, and let vLLM's sampler draw as well if all sequences take part."""
        names = list(self._runner.input_batch.req_ids)
        unread = self._runner.discard_request_mask.np[: len(names)]
        is_whole = len(logits) == self._size and not unread.any()
        untouched = logits.clone()
        if not is_whole:
            output = self._ours(logits, sampling_metadata)
            self._accept([n for n, skip in zip(names, unread, strict=True) if not skip], output)
            return output
        self._num_seen += 1
        is_first = self._num_seen % 2 == 0
        early = self._draw(names, untouched) if not is_first else None
        output, mine = timed(lambda: self._ours(logits, sampling_metadata))
        tokens, took = early or self._draw(names, untouched)
        took += self._accept(names, output)
        if self._num_seen > WARM_UP:
            self._note(logits, output, tokens, mine, took)
        return output

    def _draw(self, names: list[str], logits: Tensor) -> tuple[list[int], Times]:
        assert self._theirs is not None
        sample = self._theirs.sample
        own, batch, masks = logits.clone(), self._runner.input_batch, self._grammars
        if masks is None:
            return timed(lambda: sample(own))
        _, masking = timed(lambda: masks.mask(names, batch, own))
        tokens, sampling = timed(lambda: sample(own))
        return tokens, masking + sampling

    def _accept(self, names: list[str], output: Any) -> Times:
        masks = self._grammars
        if masks is None:
            return Times(0.0, 0.0, 0.0)
        tokens = _tokens_of(output)[: len(names)]
        return timed(lambda: masks.accept(names, tokens))[1]

    def _note(
        self, logits: Tensor, output: Any, theirs: list[int], mine: Times, took: Times
    ) -> None:
        assert self._theirs is not None
        pairs, ours = self.pairs, _tokens_of(output)
        pairs.ours.append(mine)
        pairs.theirs.append(took)
        pairs.num_rows += len(ours)
        if not self.mix.temperature:
            pairs.num_different += sum(a != b for a, b in zip(ours, theirs, strict=True))
        elif not self.mix.is_json:  # the two forms differ in the blanks that they allow
            scores = self._theirs.scores(logits)
            for surprise, tokens in zip(pairs.surprise, (ours, theirs), strict=True):
                surprise.add(scores, tokens)

    def faults(self) -> list[str]:
        """Return why the row can't be trusted."""
        pairs = self.pairs
        names = ("plait", "vLLM")
        found = [each.fault(name) for name, each in zip(names, pairs.surprise, strict=True)]
        if not self.mix.temperature:
            found.append(greedy_fault(pairs.num_different, pairs.num_rows))
        if self._grammars is not None and self._grammars.num_refused:
            found.append(f"xgrammar refuses {self._grammars.num_refused} of plait's tokens")
        return [fault for fault in found if fault]


def _tokens_of(output: Any) -> list[int]:
    return [int(row[0]) for row in output.sampled_token_ids.tolist()]


def requests_of(mix: Mix, size: int, tokenizer: Tokenizer, form: CompiledConstraint) -> list[Any]:
    """Return the requests of a row, all of them long."""
    rng = random.Random(size)
    made = []
    for i in range(size):
        task = person(rng) + " Make it six people." if mix.is_json else story(rng)
        text = f"<|im_start|>user\n{task}<|im_end|>\n<|im_start|>assistant\n"
        params = SamplingParams(
            temperature=mix.temperature, top_p=mix.top_p, seed=rng.getrandbits(32)
        )
        made.append(
            GenerateRequest(
                f"r{i}",
                list(tokenizer.encode(text, special=True)),
                params,
                MAX_TOKENS,
                stop_token_ids=sorted(tokenizer.eos_token_ids) if mix.is_json else [],
                constraint=form if mix.is_json else None,
            )
        )
    return made


def measure(engine: VllmEngine, both: BothSamplers, requests: list[Any], steps: int) -> None:
    """Step the engine until so many steps have been timed, then drop the requests."""
    for request in requests:
        engine.add(request)
    for _ in range(MAX_STEPS):
        failed = [each for each in engine.step() if isinstance(each, Failed)]
        if failed:
            raise RuntimeError(failed[0].message)
        if len(both.pairs.ours) >= steps:
            break
    else:
        raise RuntimeError(f"only {len(both.pairs.ours)} of {steps} steps had all sequences")
    for request in requests:
        engine.abort(request.request_id)


def row_of(name: str, size: int, pairs: Pairs) -> list[str]:
    """Return the cells of a row: medians, and their ratios."""
    cells = [name, str(size)]
    for each in (pairs.ours, pairs.theirs):
        cells.append(f"{1e3 * statistics.median(times.wall for times in each):.3f}")
    for clock in ("wall", "thread", "process"):
        ours, theirs = (
            statistics.median(getattr(times, clock) for times in each)
            for each in (pairs.ours, pairs.theirs)
        )
        cells.append(f"{ours / theirs:.2f}")
    return cells


def compiled(tokenizer: Tokenizer) -> CompiledConstraint:
    """Return the schema as a worker gets it."""
    vocabulary = make_vocabulary(tokenizer.token_bytes, tokenizer.eos_token_ids)
    spec = ConstraintSpec("json_schema", SCHEMA)
    done = compile_constraint(spec, vocabulary, ConstraintLimits())
    return CompiledConstraint("people", done.table, done.min_tokens)


def run(args: argparse.Namespace) -> int:
    """Measure all rows and print them; 1 if a row does not pass the gate."""
    weights: WeightMode = args.weights
    tokenizer = load_tokenizer(resolve(str(args.folder)))
    form = compiled(tokenizer)
    settings = EngineSettings(
        str(args.folder),
        worker="vllm",
        weights=weights,
        drafter="off",
        max_model_len=1024,
        max_num_seqs=max(args.sizes),
        kv_cache_bytes=10**9,
    )
    engine, _ = build_engine(settings, lambda stage: None)
    runner: Any = engine._sampler._runner
    both = runner.sampler = BothSamplers(engine._sampler, runner)
    core: Any = engine._core
    rows, faults = [], []
    for name, size in itertools.product(MIXES, args.sizes):
        mix, config = MIXES[name], core._llm.vllm_config
        ends = tokenizer.eos_token_ids
        masks = grammars(config, args.folder, SCHEMA, ends, size) if mix.is_json else None
        both.begin(mix, size, masks)
        measure(engine, both, requests_of(mix, size, tokenizer, form), args.steps)
        faults += [f"{name}, {size}: {fault}" for fault in both.faults()]
        rows.append(row_of(name, size, both.pairs))
    engine.close()
    if faults:
        print("\n".join(faults))
        return 1
    head = ["Requests", "Sequences", "plait ms", "vLLM ms", "ratio", "thread CPU", "all CPU"]
    print(table(head, rows))
    print(f"\n{args.steps} steps a row, {weights}. {this_machine()}")
    return 0
