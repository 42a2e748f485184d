"""What an engine has beside its model, whatever computes it: admission, searches, draft stores."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from plait.decoders.contract.registry import MethodError, check_needs
from plait.decoders.contract.scorer import Endpoint
from plait.decoders.speculative.config import default_drafters
from plait.decoders.speculative.stores.namespaces import DraftStores
from plait.server.engine.admission import Admission, ChooseDecoder, EngineCapacity
from plait.server.engine.constraints import LazyConstraints, LazyForms
from plait.server.engine.draft_store.keeper import StoreKeeper
from plait.server.engine.group.group import SearchContext
from plait.server.engine.group.scoring import ScorerPool
from plait.server.models.catalog import BadModel
from plait.server.models.fingerprint import vocabulary_fingerprint
from plait.server.prompt.tokenizer import load_tokenizer
from plait.server.wire.capabilities import who_has

if TYPE_CHECKING:
    from plait.server.models.catalog import ModelFiles
    from plait.server.settings import EngineSettings

DEFAULT_CACHE_BYTES = 2**30  # of the KV cache


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
