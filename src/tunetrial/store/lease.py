"""Leases: who may write in a folder. The system's lock on a file, which ends with the process that holds it."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tunetrial.core import files
from tunetrial.core.errors import StoreError

_LEASE = ".lease"
_HOLDER = ".lease.json"


@contextmanager
def hold(folder: Path, wait_s: float, what: str) -> Iterator[None]:
    """Be the one process that writes in `folder`; wait at most `wait_s` for another to end.

    However its holder dies, a lease ends, so no stale one can block; and as long as the holder lives, stopped or slow,
    nobody else writes. Network file systems without such locks are refused.

    Raises:
        StoreError: Another process holds the folder; the message says which, where and since when.
    """
    from filelock import FileLock, Timeout

    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lease = FileLock(folder / _LEASE, fallback_to_soft=False)
        try:
            lease.acquire(timeout=wait_s, poll_interval=0.05)
        except Timeout:
            raise StoreError(f"{folder}: {what} is held by {_holder(folder)}; wait for it or stop it") from None
    try:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
        files.write(folder / _HOLDER, json.dumps(holder).encode())
        yield
    finally:
        (folder / _HOLDER).unlink(missing_ok=True)
        lease.release()


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / _HOLDER).read_bytes())
        return f"process {holder['pid']} on {holder['host']} since {holder['started']}"
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return "another process"
