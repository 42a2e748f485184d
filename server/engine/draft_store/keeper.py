"""Loads, saves and changes the draft stores of a worker."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import structlog

from plait.decoders.speculative.stores import files
from plait.decoders.speculative.stores.namespaces import DraftStores
from plait.server.errors import BadRequest, ServerError, Unavailable
from plait.server.wire.counters import DraftStoreCounters
from plait.server.wire.messages import DraftStoreReport, DraftStoreTask, Failed

log = structlog.stdlib.get_logger(__name__)


class StoreKeeper:
    """Handles DraftStoreTasks, and the file of the stores."""

    def __init__(
        self,
        stores: DraftStores | None = None,
        path: Path | None = None,
        *,
        vocab_size: int = 0,
        vocabulary: Callable[[], str] = str,
    ) -> None:
        """Load the file, if it can be used.

        Args:
            stores: of the worker's drafters.
            path: of the file; None: the stores are in memory only.
            vocab_size: token ids are below it.
            vocabulary: returns the fingerprint of the tokenizer; only called if there is a path.
        """
        self.stores = stores or DraftStores()
        self._path = path
        self._num_failed_saves = 0
        self._refused = ""  # why the existing file can't be used; it is not overwritten
        self._make_vocabulary = vocabulary
        if path is not None:
            self._load(path, vocab_size)

    def handle(self, task: DraftStoreTask) -> DraftStoreReport:
        """Run a task; the report tells of a failure."""
        try:
            affected = self._do(task)
        except ServerError as error:
            failed = Failed(task.task_id, type(error).__name__, error.message, error.param)
            return DraftStoreReport(task.task_id, failed=failed)
        space = self.stores.find(task.namespace)
        return DraftStoreReport(
            task.task_id,
            affected=affected,
            tokens=0 if space is None else space.num_tokens,
            max_tokens=self.stores.max_tokens,
        )

    def save(self) -> bool:
        """Write the file, if there is a path; tell whether it was written."""
        if self._path is None:
            return False
        if self._refused:
            log.error("draft store not saved", path=str(self._path), reason=self._refused)
            self._num_failed_saves += 1
            return False
        try:
            files.save(self.stores, self._path, self._vocabulary)
        except OSError as error:
            log.error("draft store not saved", path=str(self._path), reason=str(error))
            self._num_failed_saves += 1
            return False
        return True

    def counters(self) -> DraftStoreCounters:
        """Return totals since the start."""
        counters = self.stores.counters
        return DraftStoreCounters(
            tokens_added=counters.tokens_added,
            tokens_dropped=counters.tokens_dropped,
            namespaces_dropped=counters.namespaces_dropped,
            saves_failed=self._num_failed_saves,
        )

    @cached_property
    def _vocabulary(self) -> str:
        return self._make_vocabulary()

    def _do(self, task: DraftStoreTask) -> int:
        """Run a task; return how many tokens it affected."""
        if task.action == "import":
            add = self.stores.add
            return sum(add(task.namespace, text, is_imported=True) for text in task.texts)
        if task.action == "clear":
            cleared = self.stores.clear(None if task.everywhere else task.namespace)
            is_saved = self._path is None or self._refused or self.save()
            if not is_saved:  # the deleted texts would be loaded again
                raise Unavailable("The draft store's file could not be cleared; the log says why.")
            return cleared
        if task.action == "save":
            if self._path is None:
                raise BadRequest("The server has no folder for draft stores: --draft-store.")
            if not self.save():
                raise Unavailable("The draft store could not be saved; the log says why.")
            space = self.stores.find(task.namespace)  # other namespaces are not told of
            return 0 if space is None else space.num_tokens
        return 0

    def _load(self, path: Path, vocab_size: int) -> None:
        try:
            files.load(self.stores, path, self._vocabulary, vocab_size)
        except (files.StoreFileError, OSError) as error:
            self._refused = str(error)
            log.error("draft store not loaded", path=str(path), reason=self._refused)
