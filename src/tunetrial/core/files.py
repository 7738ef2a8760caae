"""Files that survive a crash: whole or not there at all, and on the disk before anything relies on them (POSIX)."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from tunetrial.core.errors import StoreError


def free_bytes(path: Path) -> int:
    """Count the bytes that an ordinary user may still write where `path` is or will be."""
    existing = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    return shutil.disk_usage(existing).free


def write(path: Path, content: bytes) -> None:
    """Replace the content of a file: after a crash at any moment it has the old content or the new one.

    Raises:
        StoreError: The disk is full or the file cannot be written; the old content remains, nothing else does.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path, len(content)):
        try:
            temporary.write_bytes(content)
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path, size_bytes: int | None = None) -> Iterator[None]:
    """Turn a failure of writing `path` into one line, a full disk above all.

    Args:
        size_bytes: How much is to be written, if that is known.
    Raises:
        StoreError: An OSError occurred within, or safetensors ran out of disk.
    """
    try:
        yield
    except SafetensorError as error:
        if "os error 28" not in str(error):  # ENOSPC: safetensors passes it on as text alone
            raise
        raise _full(path, size_bytes) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(path, size_bytes) from error
        raise StoreError(
            f"{path}: cannot be written, got {error.strerror or error}; see to that and run again"
        ) from error


def _full(path: Path, size_bytes: int | None) -> StoreError:
    free = free_bytes(path)
    needed = f"more than {free} bytes needed" if size_bytes is None else f"{size_bytes} bytes needed, got {free} free"
    return StoreError(f"{path}: disk is full, {needed}; free space and run again")
