"""What the HTTP layer needs of a pool: `plait.server.pool.pool.Pool` is one, tests have stubs."""

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
    """One model by its served name; info is None until its worker has loaded."""

    @property
    def name(self) -> str:
        """What requests call it."""

    @property
    def created(self) -> int:
        """Since when it is served, in unix seconds."""

    @property
    def info(self) -> ModelInfo | None:
        """What its worker told of it."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""


class ReadinessLike(Protocol):
    """Whether new work is taken, and if not, why."""

    @property
    def ok(self) -> bool:
        """Whether new work is taken."""

    @property
    def reason(self) -> str:
        """What is wrong, or degraded."""


class PoolLike(Protocol):
    """Workers, seen from the front end. Errors are those of `plait.server.errors`."""

    def models(self) -> Sequence[ServedModelLike]:
        """Return the served models, loaded or not."""

    def ready(self) -> ReadinessLike:
        """Tell whether all workers are up, the queue has room, and no drain is under way."""

    def alive(self) -> bool:
        """Tell whether the pool itself runs."""

    async def compile(self, model: str, spec: ConstraintSpec, tenant: str) -> CompiledConstraint:
        """Compile a constraint; BadRequest names the keyword and its JSON pointer."""

    def generate(
        self, model: str, request: GenerateRequest
    ) -> AsyncGenerator[Started | Delta, None]:
        """Stream a request's events; closing the generator aborts what still runs."""

    async def draft_store(self, model: str, task: DraftStoreTask) -> Sequence[DraftStoreReport]:
        """Let every worker of a model do something to its draft store; return their reports."""

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Stop one sequence (None: all) of a request; unknown ids are fine."""
