"""vLLM's engine, in this process: one of its requests for each sequence; what its passes cost."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from vllm import SamplingParams, TokensPrompt
from vllm.distributed.parallel_state import get_pp_group
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.request import RequestStatus

from plait.decoders.contract.costs import CostCurve
from plait.decoders.contract.decoder import TokenLogprobs
from plait.server.engine.sequence import Sequence
from plait.server.workers.vllm.protocol import CoreStats, CoreStep

SIZES = (1, 2, 4, 8, 16, 32)  # rows
ROUNDS = 8  # the fastest counts


class VllmCore:
    """Runs sequences on vLLM's LLMEngine; an `EngineCoreLike`."""

    def __init__(self, llm: LLMEngine) -> None:
        """Take an engine that steps in this process (VLLM_ENABLE_V1_MULTIPROCESSING=0)."""
        self._llm = llm
        self._scheduler = llm.engine_core.engine_core.scheduler
        self._names: dict[str, str] = {}  # what vLLM calls its outputs, by its ids of the requests
        self._keys: dict[str, str] = {}  # the other way round
        self._queued: set[str] = set()  # names of those that have not begun
        self._num_preemptions = 0

    def add(self, sequence: Sequence) -> str:
        """Queue a sequence.

        vLLM draws nothing: its own parameters are neutral, and it is told of the end by `abort`.
        """
        request = sequence.request
        name = f"{request.request_id}.{sequence.index}"
        prompt = TokensPrompt(prompt_token_ids=request.prompt_token_ids)
        if request.cache_salt:
            prompt["cache_salt"] = request.cache_salt
        params = SamplingParams(
            temperature=0.0,
            max_tokens=request.max_tokens + 1,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            prompt_logprobs=request.prompt_logprobs if sequence.reports_prompt_logprobs else None,
        )
        key: str = self._llm.add_request(name, prompt, params, priority=request.priority)
        self._keys[name], self._names[key] = key, name
        self._queued.add(name)
        return key

    def abort(self, keys: Iterable[str]) -> None:
        """Drop sequences by vLLM's ids."""
        known = [key for key in keys if key in self._names]
        for key in known:
            name = self._names.pop(key)
            del self._keys[name]
            self._queued.discard(name)
            request = self._scheduler.requests.get(key)
            self._num_preemptions += request.num_preemptions if request is not None else 0
        if known:
            self._llm.abort_request(known, internal=True)

    def step(self) -> CoreStep:
        """Run one step."""
        outputs = {output.request_id: output for output in self._llm.step()}
        begun: dict[str, int] = {}
        for name in list(self._queued):
            output = outputs.get(name)
            key = self._keys[name]
            cached = self._num_cached(key) if output is None else output.num_cached_tokens or 0
            if cached is not None:
                begun[key] = cached
                self._queued.remove(name)
        logprobs = {
            self._keys[name]: _prompt_logprobs(output)
            for name, output in outputs.items()
            if output.prompt_logprobs is not None and name in self._keys
        }
        return CoreStep(begun, logprobs)

    def stats(self) -> CoreStats:
        """Return gauges and counters."""
        pool = self._scheduler.kv_cache_manager.block_pool
        total = pool.num_gpu_blocks - 1  # one is never given to a sequence
        running, waiting = self._scheduler.get_request_counts()
        now = sum(request.num_preemptions for request in self._scheduler.requests.values())
        return CoreStats(
            num_running=running,
            num_waiting=waiting,
            kv_blocks_used=total - pool.get_num_free_blocks(),
            kv_blocks_total=total,
            num_preemptions=self._num_preemptions + now,
        )

    def close(self) -> None:
        """Shut vLLM's engine down."""
        self._llm.engine_core.shutdown()

    def _num_cached(self, key: str) -> int | None:
        """Return what the prefix cache has given to a sequence; None: it still waits."""
        request = self._scheduler.requests[key]
        if request.status != RequestStatus.RUNNING:
            return None
        return request.prefill_stats.num_cached_tokens if request.prefill_stats else 0


def measure_costs(executor: Any) -> CostCurve:
    """Return what passes of some rows take, by vLLM's own dummy passes, without attention.

    executor: vLLM's. All its workers take part, and the slowest counts.
    """
    found: list[dict[int, float]] = executor.collective_rpc(time_passes)
    return CostCurve({rows: max(each[rows] for each in found) for rows in SIZES})


def time_passes(worker: Any) -> dict[int, float]:
    """Return by the number of rows how many seconds a worker's pass takes."""
    runner = worker.worker.model_runner
    found: dict[int, float] = {}
    for _ in range(ROUNDS):
        for rows in SIZES:
            begun = time.perf_counter()
            hidden, _ = runner._dummy_run(rows)
            if get_pp_group().is_last_rank:
                runner.model.compute_logits(hidden[:rows])
            seconds = time.perf_counter() - begun
            found[rows] = min(found.get(rows, seconds), seconds)
    return found


def _prompt_logprobs(output: Any) -> list[TokenLogprobs | None]:
    """Return what vLLM says of each token of a prompt; None of the first one."""
    tokens, entries = output.prompt_token_ids, output.prompt_logprobs
    return [*map(_token_logprobs, tokens, entries)]


def _token_logprobs(token: int, found: Any) -> TokenLogprobs | None:
    if found is None:
        return None
    ranked = sorted((entry.rank, other, entry.logprob) for other, entry in found.items())
    return TokenLogprobs(
        token, found[token].logprob, tuple((other, logprob) for _, other, logprob in ranked)
    )
