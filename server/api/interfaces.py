"""What the HTTP layer needs of a pool; implemented by `server.pool.pool.Pool` and by test stubs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Protocol

from plait.decoders.constrained.spec import ConstraintSpec
from plait.server.wire.messages import (
    CompiledConstraint,
    Delta,
    DraftStoreReport,
    DraftStoreTask,
    GenerateRequest,
    ModelInfo,
    Started,
)

if TYPE_CHECKING:
    from plait.server.prompt.tokenizer import Tokenizer


class ServedModelLike(Protocol):
    """A served model; info is None until a worker has loaded it."""

    @property
    def name(self) -> str:
        """The name that requests use."""

    @property
    def created(self) -> int:
        """Unix time in seconds since which it is served."""

    @property
    def info(self) -> ModelInfo | None:
        """What its workers serve and can do."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""


class ReadinessLike(Protocol):
    """Whether new requests are accepted, and if not, why."""

    @property
    def ok(self) -> bool:
        """Whether new requests are accepted."""

    @property
    def reason(self) -> str:
        """What is wrong or degraded."""


class PoolLike(Protocol):
    """The workers, as the front end uses them. Raises the errors of `plait.server.errors`."""

    def models(self) -> Sequence[ServedModelLike]:
        """Return the served models, loaded or not."""

    def ready(self) -> ReadinessLike:
        """Return whether all workers are up, the queue has room, and no drain is under way."""

    def alive(self) -> bool:
        """Return whether the pool itself runs."""

    async def compile(self, model: str, spec: ConstraintSpec, tenant: str) -> CompiledConstraint:
        """Compile a constraint; BadRequest names the keyword and its JSON pointer."""

    def generate(
        self, model: str, request: GenerateRequest
    ) -> AsyncGenerator[Started | Delta, None]:
        """Yield a request's events; closing the generator aborts the request."""

    async def draft_store(self, model: str, task: DraftStoreTask) -> Sequence[DraftStoreReport]:
        """Run a task on the draft store of each worker of a model; return their reports."""

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Stop one sequence (None: all) of a request; unknown ids are ignored."""
