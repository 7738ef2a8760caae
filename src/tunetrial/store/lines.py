"""JSON lines: files that grow by whole lines. A line that a crash cut short was never written."""

import contextlib
import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path

from tunetrial.core import files
from tunetrial.core.errors import IntegrityError
from tunetrial.core.records import canonical


def write(path: Path, values: Sequence[dict]) -> None:
    """Replace all lines, unless these are what the file holds."""
    content = b"".join(canonical(value).encode() + b"\n" for value in values)
    if not path.exists() or path.read_bytes() != content:
        files.write(path, content)


def append(path: Path, value: dict, *, durable: bool) -> None:
    """Add one line; with `durable` it is on the disk on return, without it it outlives the process only.

    Raises:
        StoreError: The disk is full or the file cannot be written; the earlier lines remain.
    """
    line = canonical(value).encode() + b"\n"
    with files.writing(path, len(line)), open(path, "a+b", buffering=0) as file:
        end = _end_of_lines(file.seek(0, os.SEEK_END), file)
        file.truncate(end)
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if durable:
                os.fsync(file.fileno())
        except OSError:  # what is refused is not to be read later on
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise


def read(path: Path) -> tuple[dict, ...]:
    """Read all whole lines; none if there is no file.

    Raises:
        IntegrityError: A line is no JSON object.
    """
    content = path.read_bytes() if path.exists() else b""
    values = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            values.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            raise IntegrityError(f"{path}:{number}: not a JSON object, got {line[:40]!r}; restore the file") from None
    return tuple(values)


def _end_of_lines(size_bytes: int, file) -> int:
    """Find where the last whole line ends: the end of the file, unless a crash cut a line short."""
    if not size_bytes:
        return 0
    file.seek(size_bytes - 1)
    if file.read(1) == b"\n":
        return size_bytes
    file.seek(0)
    return file.read().rfind(b"\n") + 1
