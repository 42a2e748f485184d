"""What an engine has beside its model, whatever computes it: admission, searches, draft stores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import deepcopy
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from plait.decoders.contract.costs import CostCurve
from plait.decoders.contract.isolation import FAILED
from plait.decoders.contract.registry import MethodError, check_needs
from plait.decoders.contract.scorer import Endpoint
from plait.decoders.speculative.config import default_drafters
from plait.decoders.speculative.stores.namespaces import DraftStores
from plait.server.engine.admission import Admission, ChooseDecoder, EngineCapacity
from plait.server.engine.constraints import LazyConstraints, LazyForms
from plait.server.engine.draft_store.keeper import StoreKeeper
from plait.server.engine.group.group import Group, SearchContext
from plait.server.engine.group.scoring import ScorerPool
from plait.server.engine.step.reports import is_past_deadline, log_fault
from plait.server.models.catalog import BadModel
from plait.server.models.fingerprint import vocabulary_fingerprint
from plait.server.prompt.tokenizer import load_tokenizer
from plait.server.telemetry.token_trace import TokenTrace
from plait.server.wire.capabilities import who_has
from plait.server.wire.counters import EngineCounters
from plait.server.wire.messages import (
    Delta,
    DraftStoreReport,
    DraftStoreTask,
    Failed,
    GenerateRequest,
    Started,
    Stats,
)

if TYPE_CHECKING:
    from plait.server.models.catalog import ModelFiles
    from plait.server.settings import EngineSettings

DEFAULT_CACHE_BYTES = 2**30  # of the KV cache
Report = Started | Delta | Failed


class BaseEngine(ABC):
    """How requests come into an engine, and what it tells of them; others compute."""

    def __init__(
        self, admission: Admission, settings: EngineSettings, costs: CostCurve, keeper: StoreKeeper
    ) -> None:
        self._admission = admission
        self._costs = costs
        self._keeper = keeper
        self._groups: dict[str, Group] = {}
        self._counters = EngineCounters()
        self._token_trace = TokenTrace(Path(settings.token_trace)) if settings.token_trace else None
        self._step_tokens: list[int] = []

    @property
    def has_work(self) -> bool:
        """Whether step() would do something."""
        return bool(self._groups) or self._admission.is_loading

    def add(self, request: GenerateRequest) -> None:
        """Queue a request; raise ServerError if this engine can never serve it."""
        self._admission.add(request)

    @abstractmethod
    def abort(self, request_id: str, index: int | None = None) -> None:
        """Drop a request or one of its sequences, and free all it holds; unknown ids are fine."""

    def draft_store(self, task: DraftStoreTask) -> DraftStoreReport:
        """Look into the drafters' stores, or change them."""
        return self._keeper.handle(task)

    def _late(self) -> list[Group]:
        """Return the requests whose deadline has passed."""
        return [group for group in self._groups.values() if is_past_deadline(group.request)]

    def _fail(
        self,
        request_id: str,
        fault: str = FAILED,
        error: str = "Internal",
        *,
        cause: Exception | None = None,
    ) -> list[Report]:
        """End a whole request that can't go on, and report it."""
        if cause is not None:
            log_fault(request_id, cause)
        self.abort(request_id)
        return [Failed(request_id, error, fault)]

    def _stats(self, num_running: int, num_waiting: int, kv_used: int, kv_total: int) -> Stats:
        """Return gauges, counters since the start, and the rows of each step since last asked."""
        steps, self._step_tokens = self._step_tokens, []
        counters = self._counters
        counters.steps += len(steps)
        counters.draft_store = self._keeper.counters()
        if self._token_trace is not None:
            counters.token_trace_lost = self._token_trace.num_lost
        return Stats(
            num_running=num_running,
            num_waiting=num_waiting + self._admission.num_loading,
            kv_blocks_used=kv_used,
            kv_blocks_total=kv_total,
            counters=deepcopy(counters),
            step_tokens=steps,
        )


def make_admission(
    capacity: EngineCapacity,
    choose_decoder: ChooseDecoder,
    constraints: LazyConstraints,
    searches: SearchContext,
) -> Admission:
    """Return the admission, which prepares for constraints on a thread of its own."""
    admission = Admission(capacity, choose_decoder, constraints, searches)
    admission.run_aside(constraints.prepare)
    return admission


def make_searches(settings: EngineSettings, files: ModelFiles) -> SearchContext:
    """Return what searches have: the operator's services, and the tokenizer once it is needed."""
    named = (each.partition("=") for each in settings.scorer_url)
    endpoints = {name: Endpoint(url, settings.scorer_timeout_s) for name, _, url in named}
    forms = LazyForms(settings.grammar_cache_bytes)
    return SearchContext(ScorerPool(endpoints, forms), lru_cache(1)(partial(load_tokenizer, files)))


def make_keeper(
    settings: EngineSettings, files: ModelFiles, vocab_size: int, *, has_file: bool = True
) -> StoreKeeper:
    """Return the drafters' stores, with what the settings' file has of them.

    has_file: False: the settings' file is not for this model.
    """
    return StoreKeeper(
        DraftStores(settings.draft_store_tokens, settings.draft_store_namespaces),
        Path(settings.draft_store) if settings.draft_store and has_file else None,
        vocab_size=vocab_size,
        vocabulary=lambda: vocabulary_fingerprint(load_tokenizer(files).token_bytes),
    )


def check_drafter(drafter: str, capabilities: list[str]) -> None:
    """Raise BadModel if requests that name no drafter could not be served as the operator wants."""
    try:
        choices = default_drafters(drafter)
        for choice in choices:
            check_needs(choice, capabilities)
    except MethodError as error:
        message = f"drafter {drafter!r}: {error} {who_has(error.lacking)}".rstrip()
        raise BadModel(message) from error
    if drafter != "auto" and choices and "canvas" in capabilities:
        raise BadModel(f"drafter {drafter!r}: a diffusion model drafts its own canvases.")
