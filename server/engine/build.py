"""Build an engine from settings: load the files, pack the weights, allocate the cache."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import torch
from pydantic import ByteSize

from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.continuations.decoder import ContinuationDecoder
from plait.decoders.contract.costs import CostCurve
from plait.decoders.diffusion.decoder import DiffusionDecoder
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.speculator import Speculator
from plait.kernels import extension
from plait.kernels.dispatch import refusals
from plait.server.engine.admission import Admission, EngineCapacity
from plait.server.engine.constraints import LazyConstraints
from plait.server.engine.draft_model.load import load_draft_model
from plait.server.engine.draft_store.keeper import StoreKeeper
from plait.server.engine.engine import Engine
from plait.server.engine.group.group import SearchContext
from plait.server.engine.kv.block_table import BLOCK_SIZE, num_blocks_for
from plait.server.engine.kv.manager import KVCacheManager
from plait.server.engine.profile import measure
from plait.server.engine.runner import Runner
from plait.server.engine.services import (
    DEFAULT_CACHE_BYTES,
    check_drafter,
    make_admission,
    make_keeper,
    make_searches,
)
from plait.server.memory import SystemMemory, return_freed_memory, system_memory
from plait.server.models.catalog import BadModel, resolve
from plait.server.models.heads import add_inputs, find_heads
from plait.server.models.load import load_model
from plait.server.prompt.tokenizer import load_tokenizer
from plait.server.wire.capabilities import AUTOREGRESSIVE, DIFFUSION
from plait.server.wire.messages import ModelInfo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from plait.decoders.diffusion.spec import DiffusionSpec
    from plait.server.engine.draft_model.cached import CachedDraftModel
    from plait.server.engine.runner import RunnableModel
    from plait.server.models.catalog import ModelFiles
    from plait.server.models.transformer import Transformer
    from plait.server.settings import EngineSettings, Kernels

log = structlog.stdlib.get_logger(__name__)

DEFAULT_KEPT_BYTES = 2**27


def build_engine(
    settings: EngineSettings,
    watch: Callable[[Transformer], RunnableModel] | None = None,
    tell: Callable[[str], None] = lambda stage: None,
) -> tuple[Engine, ModelInfo]:
    """Load the model and return an engine that is ready to step.

    Args:
        settings: What to load, and how much of it to run at once.
        watch: Returns what runs in the model's place: a benchmark's counter around it.
        tell: Takes how far loading is, in words.
    Raises:
        BadModel: the model can't be found, read or computed, or the cache can't hold one request.
    """
    begun = time.monotonic()
    files = resolve(settings.model)
    model = _load(settings, files, tell)
    draft_model = load_draft_model(settings, model, files)
    heads = find_heads(files) if model.diffusion is None else {}
    capabilities = _capabilities(model.diffusion, has_draft_model=draft_model is not None)
    capabilities += sorted(heads)
    check_drafter(settings.drafter, capabilities)
    num_blocks, length = _capacity(settings, model)
    kv = model.new_kv_cache(num_blocks)
    runner = Runner(watch(model) if watch else model, kv, model.backend)
    costs = _costs(runner, model, num_blocks)
    keeper = make_keeper(settings, files, model.vocab_size, has_file=model.diffusion is None)
    context = _drafter_context(model, heads, costs, draft_model, keeper)
    decoder = _decoder(model, files, context)
    constraints = LazyConstraints(files, model.vocab_size, settings.grammar_cache_bytes)
    admission = _admission(model, constraints, decoder, length, make_searches(settings, files))
    kept = kept_blocks(settings, model.kv_block_bytes, length)
    kv_manager = KVCacheManager(
        num_blocks, runner.copy_block, prefix_caching=settings.prefix_caching, num_kept=kept
    )
    return_freed_memory()  # what loading has held
    info = ModelInfo(
        model=settings.served_name or files.name,
        max_model_len=length,
        vocab_size=model.vocab_size,
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        weights=model.mode,
        fingerprint=model.fingerprint,
        capabilities=capabilities,
        drafter=settings.drafter,
        diffusion=model.diffusion,
        kernels=model.backend.operations(),
        seconds_to_load=time.monotonic() - begun,
    )
    return Engine(runner, kv_manager, admission, settings, costs, keeper), info


def _load(settings: EngineSettings, files: ModelFiles, tell: Callable[[str], None]) -> Transformer:
    _use_kernels(settings.kernels)
    model = load_model(
        files,
        weights=settings.weights,
        device=settings.device,
        threads=settings.threads,
        reference=settings.kernels == "reference",
        tell=tell,
    )
    backend = model.backend
    unsupported = refusals(backend.device)
    log.info(
        "kernel backend", backend=backend.name, unsupported=unsupported, **backend.operations()
    )
    tell("cache and first passes")
    return model


def _use_kernels(name: Kernels) -> None:
    """Choose compiled kernels; raise BadModel where the processor can't run them."""
    if name in (extension.FASTEST, "reference"):
        return
    if name not in extension.isas():
        runs = ", ".join(extension.isas()) or "reference only"
        raise BadModel(f"--kernels {name}: this machine can't run them; it runs {runs}.")
    extension.use_isa(name)


def _capacity(settings: EngineSettings, model: Transformer) -> tuple[int, int]:
    """Return (blocks of the cache, tokens of one sequence); raise BadModel if it holds none."""
    longest = min(settings.max_model_len or model.max_positions, model.max_positions)
    memory = _device_memory(torch.device(settings.device))
    size = settings.kv_cache_bytes
    if size and memory is not None and size > memory.total:
        raise BadModel(
            f"kv_cache_bytes {ByteSize(size).human_readable()} is more than the memory there is, "
            f"{ByteSize(memory.total).human_readable()}."
        )
    if not size:
        one_sequence = (num_blocks_for(longest) + 1) * model.kv_block_bytes
        free = memory.available if memory is not None else None
        size = default_cache_bytes(one_sequence, settings.max_num_seqs, free)
    num_blocks = size // model.kv_block_bytes
    if num_blocks < 2:
        raise BadModel(
            f"kv_cache_bytes {size} holds {num_blocks} blocks of {BLOCK_SIZE} tokens "
            f"({model.kv_block_bytes} bytes each); give at least two."
        )
    length = min(
        longest, (num_blocks - 1) * BLOCK_SIZE
    )  # one is spare: a sequence may need to copy one
    if length < longest:
        log.warning(
            "context cut: the KV cache holds no longer sequence",
            max_model_len=length,
            wanted=longest,
            kv_cache_bytes=size,
            enough=(num_blocks_for(longest) + 1) * model.kv_block_bytes,
        )
    return num_blocks, length


def _costs(runner: Runner, model: Transformer, num_blocks: int) -> CostCurve:
    """Return what passes of this many rows take; diffusion models don't ask."""
    if model.diffusion is not None:
        return CostCurve()
    return measure(runner, min(model.max_positions, (num_blocks - 1) * BLOCK_SIZE))


def default_cache_bytes(one_sequence: int, max_num_seqs: int, available: int | None) -> int:
    """Return how much the cache may take if nobody says so.

    Args:
        one_sequence: bytes that a sequence of full length needs.
        max_num_seqs: sequences running at once; together they need no more than each.
        available: bytes of memory; None: unknown.
    """
    wanted = min(max(DEFAULT_CACHE_BYTES, one_sequence), max_num_seqs * one_sequence)
    return wanted if available is None else min(wanted, available // 2)


def kept_blocks(settings: EngineSettings, block_bytes: int, length: int) -> int | None:
    """Return how many blocks are used before known prefixes are evicted for others; None: all.

    Args:
        settings: prefix_cache_bytes counts; without it, a cache whose size the operator gave is
            used whole, and one that nobody sized keeps a text of full length, so that it can be
            continued, or DEFAULT_KEPT_BYTES.
        block_bytes: of one block.
        length: tokens of one sequence at most.
    """
    if settings.prefix_cache_bytes:
        return settings.prefix_cache_bytes // block_bytes
    if settings.kv_cache_bytes:
        return None
    return max(DEFAULT_KEPT_BYTES // block_bytes, num_blocks_for(length))


def _device_memory(device: torch.device) -> SystemMemory | None:
    if device.type == "cuda":
        available, total = torch.cuda.mem_get_info(device)
        return SystemMemory(total, available)
    return system_memory()


def _admission(
    model: Transformer,
    constraints: LazyConstraints,
    decoder: AutoregressiveDecoder | DiffusionDecoder,
    length: int,
    searches: SearchContext,
) -> Admission:
    continuations = ContinuationDecoder()
    return make_admission(
        EngineCapacity(length, model.vocab_size, model.fingerprint),
        lambda request: continuations if request.extras.writes_nothing else decoder,
        constraints,
        searches,
    )


def _drafter_context(
    model: Transformer,
    heads: Mapping[str, Path],
    costs: CostCurve,
    draft_model: CachedDraftModel | None,
    keeper: StoreKeeper,
) -> DrafterContext:
    return DrafterContext(
        model.vocab_size,
        backend=model.backend,
        num_embeddings=add_inputs(model, heads),
        embedding=model.embedding,
        heads=heads,
        costs=costs,
        draft_model=draft_model,
        stores=keeper.stores,
    )


def _decoder(
    model: Transformer, files: ModelFiles, context: DrafterContext
) -> AutoregressiveDecoder | DiffusionDecoder:
    """Return the decoder of the model's kind."""
    backend = context.backend
    if model.diffusion is None:
        speculator = Speculator(context, context.costs)
        return AutoregressiveDecoder(model.vocab_size, backend=backend, speculator=speculator)
    return DiffusionDecoder(
        model.diffusion,
        model.vocab_size,
        backend=backend,
        folder=files.path if files.kind == "hf" else None,
        delimiters=lambda: _line_breaks(files),
    )


def _line_breaks(files: ModelFiles) -> tuple[int, ...]:
    """Return the tokens whose text holds a line break."""
    spelled = load_tokenizer(files).token_bytes
    return tuple(token for token, text in enumerate(spelled) if b"\n" in text)


def _capabilities(diffusion: DiffusionSpec | None, *, has_draft_model: bool) -> list[str]:
    """Return the optional features of this worker, as wire.messages.ModelInfo lists them."""
    if diffusion is None:
        optional = ["draft_model"] * has_draft_model
        return [*AUTOREGRESSIVE, *optional]
    found = [*DIFFUSION]
    if diffusion.serves("full"):
        found.append("full_attention")
    if not diffusion.shift:  # a row must predict its own position to have a shadow
        found.append("shadow")
    return found
