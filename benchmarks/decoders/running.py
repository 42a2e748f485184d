"""Runs requests in this process and measures them: time, forward passes, arithmetic."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from plait.decoders.contract.decoder import AttentionMode
from plait.kernels.kv_cache import KVCache
from plait.kernels.paged_attention import AttentionMetadata
from plait.server.engine.build import build_engine
from plait.server.engine.runner import RunnableModel
from plait.server.models.catalog import ModelFiles, resolve
from plait.server.models.spec import ModelSpec
from plait.server.models.transformer import Transformer
from plait.server.prompt.tokenizer import Tokenizer, load_tokenizer
from plait.server.settings import EngineSettings
from plait.server.wire.messages import Delta, Failed, GenerateRequest, ModelInfo, Started


class RequestFailed(RuntimeError):
    """The engine reported a failed request; the message is the engine's."""


class SteppableEngine(Protocol):
    """The part of an engine that `run_requests` uses."""

    @property
    def has_work(self) -> bool:
        """Whether step() would do something."""

    def add(self, request: GenerateRequest) -> None:
        """Queue a request; raise ServerError if it can never be served."""

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Abort a request."""

    def step(self) -> Sequence[Started | Delta | Failed]:
        """Advance every sequence by one forward pass."""


@dataclass(slots=True)
class ComputeCount:
    """What a model has computed so far; `flops` turns it into operations."""

    rows: int = 0
    head_rows: int = 0  # whose logits were computed
    pairs: int = 0  # (query row, visible key), in one layer

    def flops(self, spec: ModelSpec) -> float:
        """Return multiplications and additions: of the weights' matrices and of attention.

        Norms, rotary embedding and sampling are left out: a few percent.
        """
        queries = spec.heads * spec.head_dim
        projections = 2 * spec.hidden * (queries + spec.kv_heads * spec.head_dim)
        layer = self.rows * (projections + 3 * spec.hidden * spec.ffn) + self.pairs * 2 * queries
        return 2.0 * (spec.layers * layer + self.head_rows * spec.hidden * spec.vocab)


class CountingModel:
    """A model that counts what it computes and behaves like the model inside."""

    def __init__(self, model: Transformer, work: ComputeCount) -> None:
        self._model = model
        self._work = work

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self._model.vocab_size

    def forward(
        self,
        token_ids: Tensor,
        metadata: AttentionMetadata,
        kv: KVCache,
        read: Tensor | None = None,
    ) -> Tensor:
        """Run the model; count its rows and (row, key) pairs."""
        self._work.rows += len(token_ids)
        self._work.pairs += seen_keys(metadata)
        return self._model.forward(token_ids, metadata, kv, read)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits; count their rows."""
        self._work.head_rows += len(hidden)
        return self._model.logits(hidden)


def seen_keys(metadata: AttentionMetadata) -> int:
    """Return the number of (query row, visible key) pairs over all segments."""
    starts, context, attend, parents, positions = (
        each.cpu().numpy().astype(np.int64)
        for each in (
            metadata.cu_seqlens_q,
            metadata.context_lens,
            metadata.attention_modes,
            metadata.parents,
            metadata.positions,
        )
    )
    rows = np.diff(starts)
    own = rows * rows
    own[attend == AttentionMode.CAUSAL] = (rows * (rows + 1) // 2)[attend == AttentionMode.CAUSAL]
    own[attend == AttentionMode.SHADOW] //= 2
    own[attend == AttentionMode.CONTEXT] = 0
    for i in np.flatnonzero((attend == AttentionMode.TREE) | (attend == AttentionMode.BRANCHES)):
        members = slice(starts[i], starts[i + 1])
        if attend[i] == AttentionMode.TREE:
            own[i] = int((positions[members] - context[i] + 1).sum())
        else:
            own[i] = _pairs_within(parents[members])
    return int((rows * context + own).sum())


def _pairs_within(branches: NDArray[np.int64]) -> int:
    _, sizes = np.unique(branches, return_counts=True)
    return int((sizes * sizes).sum())


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A loaded model with its engine and tokenizer."""

    engine: SteppableEngine
    info: ModelInfo
    tokenizer: Tokenizer
    files: ModelFiles
    spec: ModelSpec
    work: ComputeCount


def serve(settings: EngineSettings) -> LoadedModel:
    """Load a model whose computation is counted.

    Raises:
        BadModel: it can't be found, read or run.
    """
    work, seen = ComputeCount(), list[ModelSpec]()

    def watch(model: Transformer) -> RunnableModel:
        seen.append(model.spec)
        return CountingModel(model, work)

    engine, info = build_engine(settings, watch=watch)
    files = resolve(settings.model)
    return LoadedModel(engine, info, load_tokenizer(files), files, seen[0], work)


@dataclass(frozen=True, slots=True)
class MeasuredAnswer:
    """One answer and its cost."""

    token_ids: tuple[int, ...]
    tokens: int  # including the stop token
    forwards: int
    latency: float  # seconds, from add() to the last token


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """The answers to requests that ran together, and their cost."""

    answers: Sequence[MeasuredAnswer]  # in the order of the requests
    seconds: float
    steps: int  # of the engine
    rows: int
    flops: float

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(answer.tokens for answer in self.answers)

    @property
    def forwards(self) -> int:
        """Forward passes, summed over the answers: each engine step is one per running answer."""
        return sum(answer.forwards for answer in self.answers)


@dataclass(slots=True)
class _OpenAnswer:
    """An unfinished answer."""

    begun: float
    token_ids: list[int] = field(default_factory=list)
    answer: MeasuredAnswer | None = None


def run_requests(
    served: LoadedModel, requests: Sequence[GenerateRequest], streams: int
) -> MeasuredRun:
    """Run requests with one sequence each, at most `streams` of them at a time.

    Raises:
        RequestFailed: one of them failed; the others have been aborted.
        ServerError: the engine refused one of them.
    """
    engine, work = served.engine, served.work
    waiting, answers = deque(requests), dict[str, _OpenAnswer]()
    rows, flops = work.rows, work.flops(served.spec)
    begun, running, steps = time.perf_counter(), 0, 0
    while waiting or running:
        while waiting and running < streams:
            request = waiting.popleft()
            answers[request.request_id] = _OpenAnswer(time.perf_counter())
            engine.add(request)
            running += 1
        try:
            running -= _note(answers, engine.step())
        except RequestFailed:
            for name in answers:
                engine.abort(name)
            raise
        steps += 1
    return MeasuredRun(
        answers=[_closed(answers[request.request_id]) for request in requests],
        seconds=time.perf_counter() - begun,
        steps=steps,
        rows=work.rows - rows,
        flops=work.flops(served.spec) - flops,
    )


def _note(answers: Mapping[str, _OpenAnswer], reports: Sequence[Started | Delta | Failed]) -> int:
    """Record the reports of a step; return how many answers it completed."""
    done = 0
    for report in reports:
        if isinstance(report, Failed):
            raise RequestFailed(report.message)
        if not isinstance(report, Delta):
            continue
        growing = answers[report.request_id]
        growing.token_ids += report.token_ids
        if report.finish_reason is not None:
            growing.answer = _complete(growing, report, report.trace or {})
            done += 1
    return done


def _complete(growing: _OpenAnswer, last: Delta, trace: Mapping[str, Any]) -> MeasuredAnswer:
    return MeasuredAnswer(
        token_ids=tuple(growing.token_ids),
        tokens=len(growing.token_ids) + (last.stop_token is not None),
        forwards=int(trace["forwards"]),
        latency=time.perf_counter() - growing.begun,
    )


def _closed(growing: _OpenAnswer) -> MeasuredAnswer:
    assert growing.answer is not None, "an answer has no end"
    return growing.answer
