"""The replicas of one served model, and which of them gets a request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from plait.server.errors import Overloaded, Unavailable
from plait.server.models.catalog import ModelFiles
from plait.server.pool.in_flight import to_server_error
from plait.server.pool.replica import Replica
from plait.server.pool.routing import PrefixMap, choose_replica, prefix_hashes
from plait.server.wire.messages import (
    DraftStoreReport,
    DraftStoreTask,
    GenerateRequest,
    ModelInfo,
)

if TYPE_CHECKING:
    from plait.server.prompt.tokenizer import Tokenizer

RETRY_WHILE_DOWN_S = 5
TASK_TIMEOUT_S = 20.0  # for a draft store task: it waits for a step, and may write a file


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether new requests are accepted; `reason` says what is wrong or degraded."""

    ok: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model under the name it is served by; info is None until a worker has loaded it."""

    name: str
    created: int  # unix seconds
    info: ModelInfo | None
    tokenizer: Tokenizer


@dataclass(frozen=True, slots=True)
class ReplicaGroup:
    """The replicas of one model."""

    files: ModelFiles
    replicas: Sequence[Replica]
    max_queue: int
    prefixes: PrefixMap = field(default_factory=PrefixMap)

    @property
    def info(self) -> ModelInfo | None:
        """The model as a worker describes it; None before the first has loaded."""
        return next((r.info for r in self.replicas if r.info is not None), None)

    def route(self, request: GenerateRequest) -> Replica:
        """Return the replica that runs a request.

        Raises:
            Unavailable: no worker is up.
            Overloaded: each of those that are up has max_queue requests.
        """
        up = [replica for replica in self.replicas if replica.takes_requests]
        if not up:
            raise Unavailable(
                f"The model {self.files.name!r} has no worker right now: {self._why_down()}.",
                retry_after_s=RETRY_WHILE_DOWN_S,
            )
        open_ = [replica for replica in up if len(replica.requests) < self.max_queue]
        if not open_:
            wait_s = min(replica.retry_after_s() for replica in up)
            raise Overloaded(
                f"The queue of {self.files.name!r} is full. Please retry in {wait_s} s.",
                retry_after_s=wait_s,
            )
        return open_[0] if len(self.replicas) == 1 else self._choose(open_, request)

    async def draft_store(self, task: DraftStoreTask) -> list[DraftStoreReport]:
        """Have every replica do a task; return their reports.

        Raises:
            Unavailable: not all of them are up, or one did not answer. The others have done the
                task; it may be repeated.
            ServerError: a worker refused.
        """
        if not all(replica.is_up for replica in self.replicas):
            raise Unavailable(
                f"Not all workers of {self.files.name!r} are up: {self._why_down()}.",
                retry_after_s=RETRY_WHILE_DOWN_S,
            )
        reports = await asyncio.gather(
            *(each.run_draft_store_task(task, TASK_TIMEOUT_S) for each in self.replicas)
        )
        failed = next((each.failed for each in reports if each.failed is not None), None)
        if failed is not None:
            raise to_server_error(failed)
        return reports

    def _choose(self, replicas: Sequence[Replica], request: GenerateRequest) -> Replica:
        prefixes = list(prefix_hashes(request.prompt_token_ids, request.cache_salt))
        if request.affinity:  # the weakest hint: it takes the place of the shortest prefix
            prefixes.insert(0, hash((request.cache_salt, request.affinity)))
        loads = {replica.index: len(replica.requests) for replica in replicas}
        index = choose_replica(loads, self.prefixes.longest(prefixes))
        self.prefixes.remember(prefixes, index)
        return next(replica for replica in replicas if replica.index == index)

    def readiness(self) -> Readiness:
        """Return whether a worker has room; a missing replica shows in the reason only."""
        name = self.files.name
        up = [replica for replica in self.replicas if replica.takes_requests]
        if not up:
            return Readiness(False, f"{name}: {self._why_down()}")
        if all(len(replica.requests) >= self.max_queue for replica in up):
            return Readiness(False, f"{name}: the queue is full")
        if len(up) < len(self.replicas):
            return Readiness(True, f"{name}: {len(up)} of {len(self.replicas)} workers are up")
        return Readiness(True)

    def _why_down(self) -> str:
        down = (replica for replica in self.replicas if not replica.takes_requests)
        return next(replica.down_reason if not replica.is_up else "retiring" for replica in down)
