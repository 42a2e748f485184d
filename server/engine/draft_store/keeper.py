"""The keeper of a worker's draft stores: loads, saves and changes them at its owners' wish."""

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
    """Does what a DraftStoreTask asks for, and keeps the stores' file."""

    def __init__(
        self,
        stores: DraftStores | None = None,
        path: Path | None = None,
        *,
        vocab_size: int = 0,
        vocabulary: Callable[[], str] = str,
    ) -> None:
        """Begin with what the file holds, if it can be used.

        Args:
            stores: of the worker's drafters.
            path: of the file; None: nothing is loaded or saved.
            vocab_size: ids below it are tokens.
            vocabulary: returns the fingerprint of the tokenizer; called if there is a file.
        """
        self.stores = stores or DraftStores()
        self._path = path
        self._num_unsaved = 0  # attempts
        self._refused = ""  # why the file that is there is none of ours; it is left alone
        self._make_vocabulary = vocabulary
        if path is not None:
            self._load(path, vocab_size)

    def handle(self, task: DraftStoreTask) -> DraftStoreReport:
        """Do a task; a fault is part of the report."""
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
        """Write the file, if there is to be one; tell whether it was written."""
        if self._path is None:
            return False
        if self._refused:
            log.error("draft store not saved", path=str(self._path), reason=self._refused)
            self._num_unsaved += 1
            return False
        try:
            files.save(self.stores, self._path, self._vocabulary)
        except OSError as error:
            log.error("draft store not saved", path=str(self._path), reason=str(error))
            self._num_unsaved += 1
            return False
        return True

    def counters(self) -> DraftStoreCounters:
        """Return what has happened since the start."""
        counters = self.stores.counters
        return DraftStoreCounters(
            tokens_added=counters.tokens_added,
            tokens_dropped=counters.tokens_dropped,
            namespaces_dropped=counters.namespaces_dropped,
            saves_failed=self._num_unsaved,
        )

    @cached_property
    def _vocabulary(self) -> str:
        return self._make_vocabulary()

    def _do(self, task: DraftStoreTask) -> int:
        """Return how many tokens the task was about."""
        if task.action == "import":
            add = self.stores.add
            return sum(add(task.namespace, text, is_imported=True) for text in task.texts)
        if task.action == "clear":
            cleared = self.stores.clear(None if task.everywhere else task.namespace)
            is_saved = self._path is None or self._refused or self.save()
            if not is_saved:  # it would come back
                raise Unavailable("The draft store's file could not be cleared; the log says why.")
            return cleared
        if task.action == "save":
            if self._path is None:
                raise BadRequest("The server has no folder for draft stores: --draft-store.")
            if not self.save():
                raise Unavailable("The draft store could not be saved; the log says why.")
            space = self.stores.find(task.namespace)  # others are none of the asker's business
            return 0 if space is None else space.num_tokens
        return 0

    def _load(self, path: Path, vocab_size: int) -> None:
        try:
            files.load(self.stores, path, self._vocabulary, vocab_size)
        except (files.StoreFileError, OSError) as error:
            self._refused = str(error)
            log.error("draft store not loaded", path=str(path), reason=self._refused)
