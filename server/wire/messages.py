"""What travels between the pool and a worker process, msgspec-encoded over a ZeroMQ ipc socket.

Nouns only. The pool sends `Command`s, the worker answers with `Report`s; both unions are tagged.
Times are seconds; instants are time.monotonic(), which all processes of one machine share.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from plait.decoders.contract.decoder import FinishReason, TokenLogprobs
from plait.decoders.contract.decoding import NO_EXTRAS, DecodingSpec, PromptExtras
from plait.decoders.diffusion.spec import DiffusionSpec
from plait.decoders.sampling.params import SamplingParams
from plait.server.wire.counters import EngineCounters


class CompiledConstraint(msgspec.Struct, frozen=True):
    """A grammar that the compile service has accepted; see decoders/constrained."""

    key: str  # content hash: kind, text, options, tokenizer
    table: bytes  # what its automaton is made of; opaque here
    min_tokens: int  # tokens of the shortest complete answer
    prefill: str = ""  # what the text begins with; the answer goes on behind it
    only: list[int] = []  # tokens that it may be written with (allowed_token_ids); empty: all
    without: list[int] = []  # tokens that it may not be written with


class GenerateRequest(msgspec.Struct, frozen=True, tag="generate"):
    """One prompt with n sequences. request_id is made by the front end and unique."""

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    max_tokens: int  # behind the prompt; 0 for a template, whose holes are within it
    n: int = 1
    stop_token_ids: list[int] = []
    constraint: CompiledConstraint | None = None
    prompt_logprobs: int | None = None  # completions with echo and logprobs
    priority: int = 0  # lower first, as vLLM has it
    cache_salt: str = ""
    affinity: str = ""  # requests that share it go to one replica when load allows
    deadline: float | None = None
    decoding: DecodingSpec = DecodingSpec()
    extras: PromptExtras = NO_EXTRAS
    arrived: float = 0.0


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """The client has left, or a stop string was found in sequence `index` (None: all)."""

    request_id: str
    index: int | None = None


class DraftStoreTask(msgspec.Struct, frozen=True, tag="draft_store_task"):
    """Something to be done to a namespace's draft store; answered by a DraftStoreReport."""

    task_id: str
    action: Literal["look", "import", "clear", "save"]  # save: all namespaces
    namespace: str = ""  # as GenerateRequest.cache_salt
    texts: list[list[int]] = []  # to import
    everywhere: bool = False  # clear all namespaces


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Stop at once; the pool has drained before."""


Command = GenerateRequest | Abort | DraftStoreTask | Shutdown


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The request has left the queue."""

    request_id: str
    cached_tokens: int
    at: float


class PredictionResult(msgspec.Struct, frozen=True, array_like=True):
    """Rows drafted from a request's prediction; places are indices of the delta's tokens."""

    accepted: list[int]  # places of tokens that had been drafted
    rejected: list[tuple[int, int]]  # place of the token that came instead, and how many rows


class Delta(msgspec.Struct, frozen=True, tag="delta"):
    """New tokens of one sequence; the last delta of a sequence carries finish_reason."""

    request_id: str
    index: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_token: int | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None  # first delta only; None for token 0
    trace: dict[str, Any] | None = None  # last delta only, when decoding.trace asks for it
    predicted: PredictionResult | None = (
        None  # when rows were drafted from the request's prediction
    )


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The request as a whole failed; `error` names a class of server/errors.py."""

    request_id: str  # empty: whatever this worker runs; then it ends
    error: str
    message: str
    param: str | None = None
    code: str | None = None


class ModelInfo(msgspec.Struct, frozen=True, tag="ready"):
    """First report of a worker: what it serves and what it can do."""

    model: str
    max_model_len: int
    vocab_size: int
    num_blocks: int
    block_size: int
    weights: str  # mode, e.g. "int4"
    fingerprint: str  # of weights, mode and version: OpenAI's system_fingerprint
    capabilities: list[str]
    seconds_to_load: float
    diffusion: DiffusionSpec | None = None  # of a model that fills holes
    drafter: str = "auto"  # of requests that name none (EngineSettings.drafter)


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """How far a worker is with loading; sent before ModelInfo, now and then."""

    stage: str  # in words: "layer 3 of 30"


class Stats(msgspec.Struct, frozen=True, tag="stats"):
    """Heartbeat, sent about every second and whenever the engine becomes idle."""

    num_running: int
    num_waiting: int
    kv_blocks_used: int
    kv_blocks_total: int
    counters: EngineCounters
    step_tokens: list[int] = []  # query tokens of each step since the last report


class Batch(msgspec.Struct, frozen=True, tag="batch"):
    """The reports of one engine step, in order."""

    reports: list[Started | Delta | Failed]


class DraftStoreReport(msgspec.Struct, frozen=True, tag="draft_store"):
    """What has become of a DraftStoreTask."""

    task_id: str
    affected: int = 0  # tokens that were imported, cleared, or saved of the namespace
    tokens: int = 0  # that the namespace has now
    max_tokens: int = 0  # that it may have
    failed: Failed | None = None


Report = Loading | ModelInfo | Stats | Batch | DraftStoreReport
