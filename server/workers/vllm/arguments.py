"""What vLLM's engine is started with: the worker's settings in vLLM's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from vllm.engine.arg_utils import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

from plait.server.engine.services import DEFAULT_CACHE_BYTES
from plait.server.models.catalog import BadModel, ModelFiles
from plait.server.settings import EngineSettings
from plait.server.workers.vllm.proposer import DecoderProposer
from plait.server.workers.vllm.ranks import RankExecutor

DTYPES = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16"}
MAX_DRAFT_TOKENS = 8  # vLLM keeps room for so many in the cache of each sequence, at any time
# What vLLM's engine must be for the decoder to decide, and what plait has options of its own for.
OWN = {
    "model": "the model's argument",
    "served_model_name": "--served-name",
    "dtype": "--weights",
    "max_model_len": "--max-model-len",
    "max_num_seqs": "--max-num-seqs",
    "max_num_batched_tokens": "--max-step-tokens",
    "kv_cache_memory_bytes": "--kv-cache-bytes",
    "enable_prefix_caching": "--prefix-caching",
    "speculative_config": "--drafter",
    "skip_tokenizer_init": "",
    "async_scheduling": "",
    "scheduling_policy": "",
    "logits_processors": "",
    "logprobs_mode": "",
    "max_logprobs": "--max-logprobs",
    "distributed_executor_backend": "",
    "tensor_parallel_size": "--tensor-parallel-size",
    "pipeline_parallel_size": "--pipeline-parallel-size",
    "data_parallel_size": "--replicas",
}


class _Parser(FlexibleArgumentParser):  # type: ignore[misc]  # vLLM is not there
    """vLLM's parser, whose complaints are exceptions."""

    def error(self, message: str) -> NoReturn:
        raise BadModel(f"--vllm-arg: {message}")


def engine_args(settings: EngineSettings, files: ModelFiles, *, on_cpu: bool) -> EngineArgs:
    """Return vLLM's arguments.

    Raises:
        BadModel: one of --vllm-arg is unknown, malformed, or plait's to decide.
    """
    given = parse(settings.vllm_arg)
    speculates = settings.drafter != "off"
    room = settings.max_num_seqs * (1 + MAX_DRAFT_TOKENS) if speculates else 0
    cache_bytes = settings.kv_cache_bytes or (DEFAULT_CACHE_BYTES if on_cpu else None)
    own: dict[str, Any] = {
        "model": str(files.path),
        "served_model_name": settings.served_name or files.name,
        "dtype": DTYPES[settings.weights],
        "max_model_len": settings.max_model_len or -1,  # -1: the most that the cache holds
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": max(settings.max_step_tokens, room),
        "kv_cache_memory_bytes": cache_bytes and cache_bytes // settings.num_ranks,
        "enable_prefix_caching": settings.prefix_caching,
        "speculative_config": _drafting() if speculates else None,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "pipeline_parallel_size": settings.pipeline_parallel_size,
        "distributed_executor_backend": RankExecutor if settings.num_ranks > 1 else None,
        "skip_tokenizer_init": True,  # the front end has one
        "async_scheduling": False,  # a step's tokens must be known before the next is planned
        "scheduling_policy": "priority",  # "fcfs" does not look at priorities
        "max_logprobs": -1,  # the front end has a limit
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    defaults = {"enforce_eager": on_cpu}  # compiling takes minutes on a CPU
    return EngineArgs(**defaults | given | own)


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Return what --vllm-arg NAME=VALUE gives, checked by vLLM's own parser; a flag needs no value.

    Raises:
        BadModel: it is unknown, malformed, or plait's to decide.
    """
    names = [argument.partition("=")[0].strip().lstrip("-") for argument in arguments]
    for name in names:
        if (field := name.replace("-", "_").removeprefix("no_")) in OWN:
            instead = f": give {OWN[field]}" if OWN[field] else ""
            raise BadModel(f"--vllm-arg {name}: plait decides that{instead}.")
    parser = _Parser(add_help=False, allow_abbrev=False)
    EngineArgs.add_cli_args(parser)
    found = vars(parser.parse_args([f"--{argument.strip().lstrip('-')}" for argument in arguments]))
    asked = {name.replace("-", "_") for name in names}
    asked |= {name.removeprefix("no_") for name in asked}
    return {name: value for name, value in found.items() if name in asked}


def _drafting() -> dict[str, Any]:
    return {
        "method": "custom_class",
        "model": f"{DecoderProposer.__module__}.{DecoderProposer.__qualname__}",
        "num_speculative_tokens": MAX_DRAFT_TOKENS,
    }
