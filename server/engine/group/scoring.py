"""Scores of members' texts, made on threads, so that no scorer keeps the engine's steps waiting.

What is asked of a scorer in one step, by all requests, is one call; what is asked while a call runs
is the next one.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Condition
from typing import Protocol

import msgspec

from plait.decoders.contract.decoding import MethodSpec
from plait.decoders.contract.isolation import attempt
from plait.decoders.contract.registry import from_spec
from plait.decoders.contract.scorer import (
    CheckForm,
    Endpoint,
    ScoredText,
    ScorerContext,
    ScorerError,
    ScorerOptions,
    TextScorer,
)
from plait.server.wire.messages import CompiledConstraint

LoadForm = Callable[[CompiledConstraint], CheckForm]
NUM_THREADS = 4
MAX_SCORERS = 64  # kept, with their connections, those unused for longest go


class TokenBytes(Protocol):
    """The bytes that tokens stand for (plait.server.prompt.tokenizer.Tokenizer)."""

    @property
    def token_bytes(self) -> Sequence[bytes]:
        """By token id, as a client sees them."""

    @property
    def written_bytes(self) -> Sequence[bytes]:
        """By token id, special tokens written out."""


def spell(pieces: Sequence[bytes], token_ids: Sequence[int], *, is_complete: bool = True) -> str:
    """Return the text of tokens; what is not UTF-8 becomes U+FFFD.

    Args:
        pieces: the bytes of each token; those of unknown ids are empty.
        token_ids: the tokens.
        is_complete: False: leave out a character at the end whose last bytes are missing.
    """
    data = b"".join(pieces[token] if token < len(pieces) else b"" for token in token_ids)
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data, final=is_complete)


@dataclass(frozen=True, slots=True)
class WeightedScorer:
    """A scorer as a request has named it."""

    name: str
    weight: float
    scorer: TextScorer


def _no_forms(form: CompiledConstraint) -> CheckForm:
    raise AssertionError("this worker's scorers judge no forms")


class ScorerPool:
    """Makes scorers; equal ones of several requests are the same object, so that calls are shared.

    Used on the engine's thread only, but for `prepare`.
    """

    def __init__(
        self, endpoints: Mapping[str, Endpoint] | None = None, load_form: LoadForm = _no_forms
    ) -> None:
        """Args: load_form returns the check of a form that the front end has compiled."""
        self._context = ScorerContext(endpoints or {})
        self._load_form = load_form
        self._made: dict[bytes, TextScorer] = {}  # by name and options, the last used last

    def prepare(self, form: CompiledConstraint) -> None:
        """Load a form, which takes a second or two for the first one; for another thread.

        Raises:
            BadRequest: it can't be judged.
        """
        self._load_form(form)

    def make(self, spec: MethodSpec, form: CompiledConstraint | None = None) -> WeightedScorer:
        """Return the scorer of a spec, which judges a form if one is given.

        Raises:
            MethodError: this worker can't have it.
        """
        choice = from_spec("scorer", spec)
        options = choice.options
        weight = options.weight if isinstance(options, ScorerOptions) else 1.0
        own = {name: value for name, value in spec.options.items() if name != "weight"}
        key = msgspec.json.encode([spec.name, own], order="sorted")
        scorer = self._made.pop(key, None)
        if scorer is None:
            check = None if form is None else self._load_form(form)
            context = replace(self._context, check_form=check)
            scorer = choice.method.make(options, context=context)
        self._made[key] = scorer
        while len(self._made) > MAX_SCORERS:
            del self._made[next(iter(self._made))]
        return WeightedScorer(spec.name, weight, scorer)


@dataclass(slots=True, eq=False)
class PendingScore:
    """What has been asked about one text."""

    request_id: str
    scorers: Sequence[WeightedScorer]
    text: ScoredText
    values: dict[int, float] = field(default_factory=dict)  # by the scorer's place
    error: Exception | None = None

    @property
    def is_there(self) -> bool:
        """Whether there is nothing to wait for any more."""
        return self.error is not None or len(self.values) == len(self.scorers)

    @property
    def total(self) -> float:
        """The sum of the weighted scores, in the order of the scorers."""
        return math.fsum(each.weight * self.values[i] for i, each in enumerate(self.scorers))


Job = tuple[PendingScore, int]  # and the scorer's place


class ScoringThreads:
    """Calls scorers. `ask`, `flush` and `collect` belong to the engine's thread."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="scoring")
        self._asked: list[Job] = []
        self._changed = Condition()  # guards all below
        self._queues: dict[int, list[Job]] = {}  # by id of the scorer; there while a thread works
        self._done: list[tuple[Job, float | Exception]] = []
        self._num_waiting = 0

    @property
    def is_waiting(self) -> bool:
        """Whether answers are to come."""
        return self._num_waiting > 0

    def ask(self, pending: PendingScore) -> None:
        """Ask the scorers about a text, with the next flush."""
        self._asked += [(pending, place) for place in range(len(pending.scorers))]

    def flush(self) -> None:
        """Send what has been asked."""
        if not self._asked:
            return
        with self._changed:
            self._num_waiting += len(self._asked)
            for job in self._asked:
                scorer = _scorer(job)
                if id(scorer) not in self._queues:
                    self._queues[id(scorer)] = []
                    self._threads.submit(self._work, scorer)
                self._queues[id(scorer)].append(job)
        self._asked = []

    def collect(self, timeout_s: float = 0.0) -> None:
        """Note the answers that are there.

        timeout_s: how long to wait for the first one, if any is to come.
        """
        with self._changed:
            if timeout_s and self._num_waiting and not self._done:
                self._changed.wait(timeout_s)
            done, self._done = self._done, []
            self._num_waiting -= len(done)
        for (pending, place), value in done:
            if isinstance(value, Exception):
                pending.error = value
            else:
                pending.values[place] = value

    def close(self) -> None:
        """Begin no more calls."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _work(self, scorer: TextScorer) -> None:
        """Call a scorer until nothing is asked of it; for a thread."""
        while True:
            with self._changed:
                jobs = self._queues[id(scorer)]
                if not jobs:
                    del self._queues[id(scorer)]
                    return
                self._queues[id(scorer)] = []
            done = _call(scorer, jobs)
            with self._changed:
                self._done += done
                self._changed.notify_all()


def _scorer(job: Job) -> TextScorer:
    pending, place = job
    return pending.scorers[place].scorer


def _call(scorer: TextScorer, jobs: Sequence[Job]) -> list[tuple[Job, float | Exception]]:
    """Return the answer to each job.

    Where one call for all fails, there is one for each request, and those that fail are at fault.
    """
    texts = [pending.text for pending, _ in jobs]
    found = attempt(lambda: _checked(scorer.score(texts), len(texts)))
    if not isinstance(found, Exception):
        return list(zip(jobs, found, strict=True))
    requests: dict[str, list[Job]] = {}
    for job in jobs:
        requests.setdefault(job[0].request_id, []).append(job)
    if len(requests) == 1:
        return [(job, found) for job in jobs]
    return [each for own in requests.values() for each in _call(scorer, own)]


def _checked(scores: Sequence[float], count: int) -> list[float]:
    """Return the scores; raise ScorerError if they are not one finite number for each text."""
    found = [float(score) for score in scores]
    if len(found) != count or not all(map(math.isfinite, found)):
        raise ScorerError(f"a scorer has given {len(found)} scores for {count} texts, or no number")
    return found
