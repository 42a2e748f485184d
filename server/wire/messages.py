"""The messages between the pool and a worker: the pool sends `Command`s, the worker `Report`s.

Both are tagged unions. Times are in seconds. An instant (`arrived`, `deadline`, `Started.at`) is
time.monotonic() of the process that holds the message; codec.py sends it as a duration.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from plait.decoders.contract.decoder import (
    ContinuationScores,
    FinishReason,
    PredictionResult,
    TokenLogprobs,
)
from plait.decoders.contract.decoding import NO_EXTRAS, DecodingSpec, PromptExtras
from plait.decoders.diffusion.spec import DiffusionSpec
from plait.decoders.sampling.params import SamplingParams
from plait.server.wire.counters import EngineCounters


class CompiledConstraint(msgspec.Struct, frozen=True):
    """A constraint that the compile service has accepted; see decoders/constrained."""

    key: str  # content hash: kind, text, options, tokenizer
    table: bytes  # from which its automaton is built; opaque here
    min_tokens: int  # tokens of the shortest complete answer
    checked: tuple[str, ...] = ()  # keywords of a schema that a check enforces, by their pointers
    ignored: tuple[str, ...] = ()  # formats that assert nothing
    prefill: str = ""  # how the text begins; the answer continues it
    allowed_token_ids: list[int] = []  # empty: all
    banned_token_ids: list[int] = []


class GenerateRequest(msgspec.Struct, frozen=True, tag="generate"):
    """One prompt, answered with n choices. The front end makes request_id, which is unique."""

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    max_tokens: int  # after the prompt; 0 for a template, whose masked positions are in it
    n: int = 1  # choices to return; a search may run more sequences
    stop_token_ids: list[int] = []
    constraint: CompiledConstraint | None = None
    prompt_logprobs: int | None = None  # the field of that name, or echo with logprobs
    priority: int = 0  # lower first, as in vLLM
    cache_salt: str = ""
    affinity: str = ""  # requests with the same value go to one replica if load allows
    deadline: float | None = None  # an instant
    decoding: DecodingSpec = DecodingSpec()
    # of those of decoding.scorers that judge a form, by their places; compiled as constraints are
    scorer_forms: dict[int, CompiledConstraint] = {}
    extras: PromptExtras = NO_EXTRAS
    arrived: float = 0.0  # an instant


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """End choice `index` (None: all): the client has left, or a stop string was found."""

    request_id: str
    index: int | None = None


class DraftStoreTask(msgspec.Struct, frozen=True, tag="draft_store_task"):
    """A task for the draft store of a namespace; a DraftStoreReport answers it."""

    task_id: str
    action: Literal["inspect", "import", "clear", "save"]  # save: all namespaces
    namespace: str = ""  # as GenerateRequest.cache_salt
    texts: list[list[int]] = []  # to import
    everywhere: bool = False  # clear all namespaces


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """End the process now; the pool has drained before."""


Command = GenerateRequest | Abort | DraftStoreTask | Shutdown


class Started(msgspec.Struct, frozen=True, tag="started"):
    """A sequence has left the queue; sent once for each that the request starts with."""

    request_id: str
    cached_tokens: int  # of the prompt, found in the prefix cache
    at: float  # an instant


class SearchResult(msgspec.Struct, frozen=True, array_like=True):
    """What a search says of a text that it returns, and what it has looked at for all of them."""

    score: float  # by which it has ranked the text
    log_weight: float  # of a sample: the log of its importance weight
    num_sequences: int  # of the request: searched, dropped ones included
    num_tokens: int  # of the request: drawn by all of them


class Delta(msgspec.Struct, frozen=True, tag="delta"):
    """New tokens of one choice; the last delta of a choice carries finish_reason."""

    request_id: str
    index: int  # of the choice: without a search also the number of the sequence
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_token: int | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None  # first delta only; None for token 0
    # last delta only, when decoding.trace asks for it or a lossy rule was used
    trace: dict[str, Any] | None = None
    predicted: PredictionResult | None = None  # when rows were drafted from the prediction
    search: SearchResult | None = None  # last delta only, of a choice that a search has ranked
    scores: ContinuationScores | None = None  # of a request with continuations: the only delta


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The whole request failed; `error` names a class of server/errors.py."""

    request_id: str  # empty: all requests of this worker, which ends
    error: str
    message: str
    param: str | None = None
    code: str | None = None


class ModelInfo(msgspec.Struct, frozen=True, tag="ready"):
    """First report of a worker that has loaded: the model, and what the worker can do.

    Capabilities are those of wire/capabilities.py, and the drafter heads by name. A method that
    needs another one is refused by name.
    """

    model: str
    max_model_len: int
    vocab_size: int
    num_blocks: int
    block_size: int
    weights: str  # mode, e.g. "int4"
    fingerprint: str  # of weights, mode and version: OpenAI's system_fingerprint
    capabilities: list[str]
    seconds_to_load: float
    diffusion: DiffusionSpec | None = None  # of a diffusion language model
    drafter: str = "auto"  # of requests that name none (EngineSettings.drafter)
    kernels: dict[str, str] = {}  # operation: the instruction sets that serve it


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """Progress of loading; sent before ModelInfo."""

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
    """The result of a DraftStoreTask."""

    task_id: str
    affected: int = 0  # tokens of the namespace that were imported, cleared or saved
    tokens: int = 0  # in the namespace now
    max_tokens: int = 0  # of a namespace
    failed: Failed | None = None


Report = Loading | ModelInfo | Stats | Batch | DraftStoreReport
