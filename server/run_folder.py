"""The run-time folder of a server: its workers' sockets, its address, and a lock while it runs.

Standard library only: health.py imports it and has to start fast.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PREFIX = "plait-"
LOCK, ADDRESS = "lock", "address"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A folder that only this user can enter; this process holds its lock until it ends."""

    path: Path
    lock: int

    def publish(self, host: str, port: int) -> None:
        """Write the server's address to a file; raise OSError if that fails."""
        draft = self.path / f"{ADDRESS}.new"
        draft.write_text(json.dumps([host, port]))
        draft.rename(self.path / ADDRESS)

    def close(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)


def open_run_folder() -> RunFolder:
    """Return a new folder for this process, and remove the folders of dead processes.

    Raises:
        OSError: no folder for temporary files can be written.
    """
    for stale in _folders(locked=False):
        shutil.rmtree(stale, ignore_errors=True)
    # mkdtemp makes it 0700: whoever can open the sockets can send commands to a worker.
    path = Path(tempfile.mkdtemp(prefix=PREFIX))
    # Locked before it gets its name: nobody ever sees an unlocked file of a running process.
    draft = path / f"{LOCK}.new"
    lock = os.open(draft, os.O_WRONLY | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    draft.rename(path / LOCK)
    return RunFolder(path, lock)


def running_addresses() -> list[tuple[str, int]]:
    """Return (host, port) of each server of this user that runs on this machine."""
    found = []
    for folder in _folders(locked=True):
        try:
            host, port = json.loads((folder / ADDRESS).read_text())
        except FileNotFoundError:  # it has just started
            continue
        found.append((str(host), int(port)))
    return found


def _folders(*, locked: bool) -> Iterator[Path]:
    """Yield this user's folders whose process runs (locked) or is dead (not locked)."""
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCK}"):
        if lock.parent.is_symlink() or lock.parent.lstat().st_uid != os.geteuid():
            continue
        if _is_locked(lock) is locked:
            yield lock.parent


def _is_locked(lock: Path) -> bool | None:
    """Return whether a process holds the lock; None: its folder was removed meanwhile."""
    try:
        handle = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # others may ask at once
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
