"""The registry's table of contents: SQLite in WAL mode, synchronous, whose rows are added and never changed.

A transaction is there in full or not at all, after kill -9 and power loss too, and writers wait for each other. The
file is made under another name and renamed, so that no process meets half a schema.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tunetrial.core import files
from tunetrial.core.errors import IntegrityError, StoreError

FORMAT = 1
WAIT_S = 30.0
LEAST_BYTES = 65_536  # that WAL mode needs beside the file: less is a full disk, whatever SQLite calls it
_TABLES = """
CREATE TABLE versions (
    name TEXT NOT NULL, version INTEGER NOT NULL, content TEXT NOT NULL, shipped TEXT NOT NULL, at TEXT NOT NULL,
    PRIMARY KEY (name, version), UNIQUE (name, content)
);
CREATE TABLE files (
    content TEXT NOT NULL, path TEXT NOT NULL, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (content, path)
);
CREATE TABLE history (
    id INTEGER PRIMARY KEY, at TEXT NOT NULL, name TEXT NOT NULL, event TEXT NOT NULL, version INTEGER NOT NULL,
    alias TEXT
);
CREATE INDEX history_of_name ON history (name, id);
CREATE TABLE seen_intact (sha256 TEXT PRIMARY KEY, stamp TEXT NOT NULL);
"""
_FROZEN = "".join(
    f"CREATE TRIGGER {table}_{verb.lower()} BEFORE {verb} ON {table} "
    "BEGIN SELECT RAISE(ABORT, 'rows are added and never changed'); END;"
    for table in ("versions", "files", "history")
    for verb in ("UPDATE", "DELETE")
)
_FULL, _BUSY = {sqlite3.SQLITE_FULL}, {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_UNWRITABLE = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}


def create(path: Path) -> None:
    """Make an empty registry unless there is one. One process at a time.

    Raises:
        StoreError: The disk is full or cannot be written; nothing is left.
    """
    if path.exists():
        return
    temporary = path.with_name(f".{path.name}.tmp")
    with files.writing(path):
        _clear(temporary)
        try:
            with _told(path), closing(sqlite3.connect(temporary, isolation_level=None)) as database:
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = FULL")
                database.executescript(f"BEGIN; {_TABLES} {_FROZEN} PRAGMA user_version = {FORMAT}; COMMIT;")
            os.replace(temporary, path)
            files.sync(path.parent)
        finally:
            _clear(temporary)


def _clear(temporary: Path) -> None:
    """Remove what a killed process left: an old log beside a new file would be taken for its own."""
    for left in temporary.parent.glob(f"{temporary.name}*"):
        left.unlink()


@contextmanager
def transaction(path: Path, *, write: bool) -> Iterator[sqlite3.Connection]:
    """Read one state of the registry, or be the one that writes it: committed at the end, undone by any error.

    Raises:
        StoreError: Another process writes for longer than `WAIT_S`, or the disk is full or cannot be written.
        IntegrityError: The file is no such database, or was made by a later version.
    """
    with _told(path), closing(_open(path, write=write)) as database:
        (found,) = database.execute("PRAGMA user_version").fetchone()
        if found != FORMAT:
            raise IntegrityError(f"{path}: registry of format {FORMAT}, got {found}; update tunetrial or restore it")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        try:
            yield database
            database.execute("COMMIT")
        finally:
            if database.in_transaction:
                database.execute("ROLLBACK")


def _open(path: Path, *, write: bool) -> sqlite3.Connection:
    """Open what is there; sqlite3 would else make an empty file.

    WAL mode needs a little room even to read. Where there is none, and so nobody can be writing, and all that was
    written is in the file itself, it is read as it lies.
    """
    database = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=WAIT_S, isolation_level=None)
    try:
        database.execute("PRAGMA user_version")
    except sqlite3.OperationalError as error:
        database.close()
        log = path.with_name(f"{path.name}-wal")
        if write or _code(error) not in _UNWRITABLE or (log.exists() and log.stat().st_size):
            raise
        return sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
    return database


def _code(error: sqlite3.Error) -> int:
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into one line."""
    try:
        yield
    except sqlite3.Error as error:
        code = _code(error)
        if code in _FULL or (code in _UNWRITABLE and files.free_bytes(path) < LEAST_BYTES):
            raise StoreError(f"{path}: disk is full; free space and run again") from None
        if code in _BUSY:
            raise StoreError(f"{path}: held by another process for {WAIT_S:.0f} s; wait and run again") from None
        if code in _UNWRITABLE:
            raise StoreError(f"{path}: cannot be read or written, got {error}; see to that and run again") from None
        raise IntegrityError(f"{path}: not a registry's database, got {error}; restore it") from None
