"""A model on several devices: vLLM's workers, of which one runs in this process.

vLLM's own executors put all of them in processes of their own, where the decoder can't reach. Here
the one that has the logits is in the engine's process. Each other one is in a process that does
every call that this one does, at the same time (their passes wait for each other), and is told
what the decoder has decided.

Law: the tokens are those of one device, as far as the sums that the devices share round alike.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from typing import Any

import structlog
import torch
from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.utils.network_utils import get_file_store_init_method
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.outputs import SamplerOutput
from vllm.v1.serial_utils import run_method
from vllm.v1.worker.worker_base import WorkerWrapperBase

from plait.server.pool.worker import EXIT_RANK_LOST
from plait.server.workers.parent import die_with_parent
from plait.server.workers.vllm.sampler import FollowerSampler

CLOSING_S = 5.0  # that the others have to end by themselves
FOLLOW = "follow"  # a call of ours, beside those of vLLM's workers

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Rank:
    """One worker of a model."""

    config: VllmConfig
    index: int
    init_method: str  # where the ranks meet
    threads: int  # on CPUs

    @property
    def is_driver(self) -> bool:
        """Whether it is the first of its stage."""
        stage: int = self.config.parallel_config.tensor_parallel_size
        return self.index % stage == 0


@dataclass(frozen=True, slots=True)
class Call:
    """Of a method of every worker."""

    method: str | Callable[..., Any]
    args: Sequence[Any]
    kwargs: dict[str, Any]
    is_answered: bool


class RankExecutor(UniProcExecutor):  # type: ignore[misc]  # vLLM is not there
    """Runs one rank in this process, the first of the last stage, and the others beside it."""

    supports_pp = True

    def _init_executor(self) -> None:
        parallel = self.parallel_config
        self._own = parallel.world_size - parallel.tensor_parallel_size
        threads = max(1, torch.get_num_threads() // parallel.world_size)
        own = Rank(self.vllm_config, self._own, get_file_store_init_method(), threads)
        others = [i for i in range(parallel.world_size) if i != self._own]
        self._init_method = own.init_method
        self._others = Others([replace(own, index=i) for i in others])
        _limit_threads(threads)
        super()._init_executor()
        self.driver_worker.global_rank = self._own

    def _distributed_args(self) -> tuple[str, int, int]:
        return self._init_method, self._own, self._own

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        non_block: bool = False,
        single_value: bool = False,
    ) -> Any:
        """Have every worker do a call; return what they return, by rank.

        single_value: this process's alone, without waiting for the others'.
        """
        self._others.tell(Call(method, args, kwargs or {}, is_answered=not single_value))
        found = super().collective_rpc(method, timeout, args, kwargs, non_block, single_value)
        if single_value:
            return found
        results = self._others.answers()
        results.insert(self._own, found.result()[0] if non_block else found[0])
        if not non_block:
            return results
        future: Future[list[Any]] = Future()
        future.set_result(results)
        return future

    def follow(self) -> Callable[[object], None]:
        """Have the others of this stage go by what is decided here; return what tells them of it.

        It must be called once for each call of the sampler, and once for each of the drafter.
        """
        self._others.tell(Call(FOLLOW, (), {}, is_answered=False), least=self._own)
        return partial(self._others.tell, least=self._own)

    def shutdown(self) -> None:
        """End all ranks."""
        self._others.end()
        super().shutdown()  # meanwhile: ranks may wait for each other once more
        self._others.close()


class Others:
    """The processes of the other ranks, and pipes to them."""

    def __init__(self, ranks: Sequence[Rank]) -> None:
        """Start them; each loads its part of the model."""
        context = multiprocessing.get_context("spawn")
        self._processes: dict[int, SpawnProcess] = {}  # by rank, in rising order
        self._pipes: dict[int, connection.Connection] = {}
        self._is_closing = threading.Event()
        for rank in ranks:
            here, there = context.Pipe()
            process = context.Process(target=_run, args=(rank, there), daemon=True)
            process.start()
            there.close()
            self._processes[rank.index] = process
            self._pipes[rank.index] = here
        threading.Thread(target=self._watch, daemon=True, name="ranks").start()

    def tell(self, message: object, least: int = 0) -> None:
        """Send the same to all from some rank on."""
        data = pickle.dumps(message)
        for rank, pipe in self._pipes.items():
            if rank >= least:
                pipe.send_bytes(data)

    def answers(self) -> list[Any]:
        """Return what each has answered, by rank."""
        return [pipe.recv() for pipe in self._pipes.values()]

    def end(self) -> None:
        """Ask them to end."""
        self._is_closing.set()
        self.tell(None)

    def close(self) -> None:
        """Wait until they have ended; kill those that have not in time."""
        for process in self._processes.values():
            process.join(CLOSING_S)
            process.kill()

    def _watch(self) -> None:
        """End this process when one of them ends: it would wait for that rank for ever."""
        connection.wait([process.sentinel for process in self._processes.values()])
        if self._is_closing.is_set():
            return
        for rank, process in self._processes.items():
            if not process.is_alive():
                log.error("rank lost", rank=rank, exit_code=process.exitcode)
        sys.stderr.flush()
        os._exit(EXIT_RANK_LOST)


def _run(rank: Rank, pipe: connection.Connection) -> None:
    """Be one rank, until it is told to end."""
    die_with_parent()
    _limit_threads(rank.threads)
    worker = WorkerWrapperBase(rpc_rank=0, global_rank=rank.index)
    told = {
        "vllm_config": rank.config,
        "local_rank": rank.index,
        "rank": rank.index,
        "distributed_init_method": rank.init_method,
        "is_driver_worker": rank.is_driver,
    }
    worker.init_worker([told])
    worker.init_device()
    worker.load_model()
    current_platform.update_block_size_for_backend(rank.config)
    while (call := pipe.recv()) is not None:
        if call.method == FOLLOW:
            _follow(worker.worker.model_runner, pipe)
            continue
        result = run_method(worker, call.method, call.args, call.kwargs)
        if call.is_answered:
            pipe.send(result)
    worker.shutdown()


def _follow(runner: Any, pipe: connection.Connection) -> None:
    sampler = FollowerSampler(runner, pipe.recv, make_output)
    if runner.speculative_config is not None:
        runner.drafter.connect(sampler.propose)


def make_output(token_ids: torch.Tensor) -> SamplerOutput:
    """Return vLLM's output of a step: token ids [requests, width]."""
    return SamplerOutput(sampled_token_ids=token_ids, logprobs_tensors=None)


def _limit_threads(count: int) -> None:
    if current_platform.is_cpu():
        torch.set_num_threads(count)
