"""Files that survive a crash: whole or not there at all, and on the disk before anything relies on them (POSIX)."""

import errno
import fcntl
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
    with replacing(path, len(content)) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: Path, size_bytes: int | None = None) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; as the block ends it takes the place of `path`, as in `write`.

    Raises:
        StoreError: As in `write`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path, size_bytes):
        try:
            yield temporary
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


def check_new(folder: Path) -> None:
    """Refuse a folder that holds anything already.

    Raises:
        StoreError: There is a file, a link or a folder with content of this name.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise StoreError(f"{folder}: is there already; name a new folder")


@contextmanager
def new_folder(to: Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes `to` once all of it is on the disk: `to` is whole or not there at all.

    Until then it lies beside `to` under a name that begins with a dot; what killed processes left there is removed.

    Raises:
        StoreError: `to` holds something already, the disk is full, or it cannot be written.
    """
    check_new(to)
    with writing(to):
        to.parent.mkdir(parents=True, exist_ok=True)
        _sweep(to)
        with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}.", suffix=".tmp") as beside:
            held = os.open(beside, os.O_RDONLY)
            try:
                fcntl.flock(held, fcntl.LOCK_EX)
                folder = Path(beside) / "content"
                folder.mkdir()
                yield folder
                for path in (*folder.rglob("*"), folder):
                    sync(path)
                os.rename(folder, to)
                sync(to.parent)
            finally:
                os.close(held)


def _sweep(to: Path) -> None:
    """Remove what was begun for `to` by processes that are no more."""
    for left in to.parent.glob(f".{glob.escape(to.name)}.*.tmp"):
        held = os.open(left, os.O_RDONLY)
        try:
            with suppress(BlockingIOError):
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(held)


@contextmanager
def writing(path: Path, size_bytes: int | None = None) -> Iterator[None]:
    """Turn a failure of writing `path` into one line, a full disk above all.

    Args:
        size_bytes: How much is to be written, if that is known.
    Raises:
        StoreError: An OSError occurred within, or in safetensors, which passes it on as text alone.
    """
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise _refused(path, size_bytes, OSError(int(number[1]), os.strerror(int(number[1])))) from error
    except OSError as error:
        raise _refused(path, size_bytes, error) from error


def _refused(path: Path, size_bytes: int | None, error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _full(path, size_bytes)
    return StoreError(f"{path}: cannot be written, got {error.strerror or error}; see to that and run again")


def _full(path: Path, size_bytes: int | None) -> StoreError:
    free = free_bytes(path)
    needed = f"more than {free} bytes needed" if size_bytes is None else f"{size_bytes} bytes needed, got {free} free"
    return StoreError(f"{path}: disk is full, {needed}; free space and run again")
