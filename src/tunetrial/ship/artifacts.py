"""Files of shipped folders, kept once each under their SHA-256 (POSIX).

`objects/ab/<sha256>` is a file's content; `trees/<digest>/` is a folder again, of links into `objects`, which any
program can open. What is being written lies in `incoming/`, is synced and renamed: a name under `objects` or `trees`
has all of its content or is not there. Whoever adds holds the lease with others that add, whoever sweeps holds it
alone; it ends with the process, however that dies.
"""

import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import Field

from tunetrial.core import files, manifest
from tunetrial.core.errors import DataError, IntegrityError, ModelError, StoreError
from tunetrial.core.records import Record, digest

PART = r"[A-Za-z0-9_][A-Za-z0-9._+=,@-]{0,127}"
PATH = rf"^{PART}(/{PART}){{0,7}}$"
PICKLED = (".bin", ".ckpt", ".dill", ".joblib", ".mar", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth")
CONVERT = (
    "convert it first: torch.load(FILE, weights_only=True, map_location='cpu'), in torch 2.10 or newer, then "
    "safetensors.torch.save_file, and remove FILE"
)


class StoredFile(Record):
    """A file of an artifact: its path below the folder, digest and size."""

    path: Annotated[str, Field(pattern=PATH)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class Swept(Record):
    """What a sweep removed: files and folders that no version names."""

    files: int
    bytes: int


def content_digest(listed: Sequence[StoredFile]) -> str:
    """The digest of a folder: of its files' paths, digests and sizes, in the order of paths."""
    return digest([[one.path, one.sha256, one.bytes] for one in sorted(listed, key=lambda one: one.path)])


def describe(folder: Path) -> tuple[StoredFile, ...]:
    """List all files below a folder with digest and size, in the order of paths; nothing is opened as a model.

    Raises:
        DataError: A name that could lead elsewhere or mislead, a link, or what is no plain file.
        ModelError: A pickle, by its name or its first bytes.
        StoreError: A file cannot be read.
    """
    listed = []
    try:
        for path in _below(folder, folder):
            with _opened(path) as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                size = os.fstat(file.fileno()).st_size
                listed.append(StoredFile(path=path.relative_to(folder).as_posix(), sha256=sha256, bytes=size))
    except OSError as error:
        raise StoreError(f"{folder}: cannot be read, got {error}; see to that and run again") from None
    return tuple(sorted(listed, key=lambda one: one.path))


def _below(folder: Path, root: Path) -> Iterator[Path]:
    """All files below `folder`, every name and kind checked before any is read."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        shown = f"{root}: {ascii(os.path.relpath(entry.path, root))[1:-1][:100]}"
        if not re.fullmatch(PATH, Path(entry.path).relative_to(root).as_posix()):
            allowed = "letters, digits and ._+=,@- of ASCII, none first but a letter, digit or _"
            raise DataError(f"{shown}: not a name that is kept; use {allowed}, or remove it")
        if entry.is_symlink():
            raise DataError(f"{shown}: is a link, which could lead elsewhere; copy the folder with cp -rL first")
        if entry.is_dir():
            yield from _below(Path(entry.path), root)
        elif not entry.is_file():
            raise DataError(f"{shown}: not a plain file; remove it")
        elif entry.name.lower().endswith(PICKLED) or _begins_as_pickle(Path(entry.path)):
            raise ModelError(f"{shown}: pickled or a zip, which can run code when it is opened; {CONVERT}")
        else:
            yield Path(entry.path)


def _begins_as_pickle(path: Path) -> bool:
    """Whether a file begins as pickles of protocol 2 and later do, or as the zip that torch.save makes.

    Safetensors of some lengths begin with the same two bytes, and go on with a 0, which begins nothing in a pickle.
    """
    with _opened(path) as file:
        first = file.read(4)
    return first == b"PK\x03\x04" or re.match(rb"\x80[\x02-\x05][^\x00]", first, re.DOTALL) is not None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a plain file for reading; what has become a link or a pipe since it was listed is refused."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DataError(f"{path}: not a plain file; remove it")
        yield file


class Shelf:
    """The files below one registry folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def object(self, sha256: str) -> Path:
        """Where the content with this digest is."""
        return self.root / "objects" / sha256[:2] / sha256

    def tree(self, content: str) -> Path:
        """Where a folder with this digest is, to be opened by other programs and written by none."""
        return self.root / "trees" / content

    @contextmanager
    def leased(self, doing: Literal["making", "adding", "sweeping"]) -> Iterator[None]:
        """Keep the sweeper out while something is added, or whoever adds while something is swept; one makes at a time.

        Raises:
            StoreError: To sweep, while something is added.
        """
        kind = {"making": fcntl.LOCK_EX, "adding": fcntl.LOCK_SH, "sweeping": fcntl.LOCK_EX | fcntl.LOCK_NB}[doing]
        with files.writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            lease = open(self.root / (".making" if doing == "making" else ".lease"), "ab")
        with lease:
            try:
                fcntl.flock(lease, kind)
            except BlockingIOError:
                raise StoreError(f"{self.root}: another process is at work there; wait for it and run again") from None
            yield

    def keep(self, folder: Path, listed: Sequence[StoredFile], intact: Callable[[StoredFile], bool]) -> str:
        """Copy what is not there yet, link it into a tree, and return the tree's digest; a damaged copy is replaced.

        Held with `leased`. A crash leaves what `sweep` removes, and nothing under a name that promises more than is
        there.

        Raises:
            StoreError: The disk is full or cannot be written.
            IntegrityError: A file changed while it was read.
        """
        content = content_digest(listed)
        missing = {one.sha256: one for one in listed if not intact(one)}
        self._check_room(sum(one.bytes for one in missing.values()))
        with self._incoming() as place:
            for one in missing.values():
                self._take(folder / one.path, one, place / one.sha256)
            if self._links(content) != {one.path: one.sha256 for one in listed}:
                self._plant(place / "tree", content, listed)
        return content

    def damages(
        self, content: str, listed: Sequence[StoredFile], intact: Callable[[StoredFile], bool]
    ) -> tuple[str, ...]:
        """Name what of a kept folder is missing, altered or foreign, a line each; empty where nothing is."""
        links, named = self._links(content), {one.path: one for one in listed}
        found = [f"{path}: is not of this version" for path in sorted(links.keys() - named.keys())]
        for path, one in named.items():
            if not intact(one):
                found.append(f"{path}: {self._difference(one)}")
            elif links.get(path) != one.sha256:
                found.append(f"{path}: is missing from {self.tree(content)}, or leads elsewhere")
        return tuple(found)

    def stamp(self, one: StoredFile) -> str | None:
        """What changes whenever a kept file is written or replaced, bit rot apart; None where its size is wrong."""
        with suppress(OSError):
            found = os.lstat(self.object(one.sha256))
            if stat.S_ISREG(found.st_mode) and found.st_size == one.bytes:
                return f"{found.st_dev}:{found.st_ino}:{found.st_mtime_ns}:{found.st_ctime_ns}"
        return None

    def holds(self, one: StoredFile) -> bool:
        """Whether the kept file has its size and digest, read in full; not where it cannot be read."""
        return self.stamp(one) is not None and not self._difference(one)

    def sweep(self, contents: set[str], digests: set[str]) -> Swept:
        """Remove what lies in `incoming`, and trees and objects other than these. Held with `leased` alone."""
        removed, size_bytes = 0, 0
        gone = [path for path in self._listed("incoming")]
        gone += [path for path in self._listed("trees") if path.name not in contents]
        gone += [path for part in self._listed("objects") for path in _entries(part) if path.name not in digests]
        with files.writing(self.root):
            for path in gone:
                below = [path] if path.is_symlink() or not path.is_dir() else list(path.rglob("*"))
                plain = [one for one in below if one.is_file() and not one.is_symlink()]
                removed, size_bytes = removed + len(plain), size_bytes + sum(one.stat().st_size for one in plain)
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return Swept(files=removed, bytes=size_bytes)

    def _listed(self, name: str) -> list[Path]:
        return _entries(self.root / name)

    def _check_room(self, needed_bytes: int) -> None:
        free = files.free_bytes(self.root)
        if needed_bytes > free:
            raise StoreError(f"{self.root}: disk is full, {needed_bytes} bytes needed, got {free} free; free space")

    @contextmanager
    def _incoming(self) -> Iterator[Path]:
        """A folder of one's own to write in, gone afterwards."""
        with files.writing(self.root):
            (self.root / "incoming").mkdir(exist_ok=True)
            place = Path(tempfile.mkdtemp(dir=self.root / "incoming"))
            try:
                yield place
            finally:
                shutil.rmtree(place, ignore_errors=True)

    def _take(self, source: Path, one: StoredFile, temporary: Path) -> None:
        """Copy a file and check that what was copied is what was listed."""
        hashed, target = hashlib.sha256(), self.object(one.sha256)
        with _opened(source) as file, files.writing(target, one.bytes), open(temporary, "wb") as copy:
            while piece := file.read(1 << 20):
                hashed.update(piece)
                copy.write(piece)
            copy.flush()
            os.fsync(copy.fileno())
        if hashed.hexdigest() != one.sha256:
            raise IntegrityError(f"{source}: changed while it was read; wait until it is written, and add it again")
        os.chmod(temporary, 0o444)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, target)
        for folder in (target.parent, target.parent.parent, self.root):
            files.sync(folder)

    def _plant(self, temporary: Path, content: str, listed: Sequence[StoredFile]) -> None:
        """Make the tree of links, beside its place, and put it there; what was there and is damaged goes."""
        target = self.tree(content)
        for one in listed:
            link = temporary / one.path
            link.parent.mkdir(parents=True, exist_ok=True)
            up = "../" * (2 + one.path.count("/"))
            link.symlink_to(f"{up}{self.object(one.sha256).relative_to(self.root).as_posix()}")
        for folder in (*(path for path in temporary.rglob("*") if path.is_dir() and not path.is_symlink()), temporary):
            files.sync(folder)
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            os.replace(target, temporary.with_name("damaged"))
        with suppress(FileExistsError):  # of two that add the same, one is first
            _rename_new(temporary, target)
        files.sync(target.parent)
        files.sync(self.root)

    def _links(self, content: str) -> dict[str, str | None]:
        """The paths below a tree, each with the digest that it links to; None for what is no such link."""
        tree, found = self.tree(content), {}
        for path in tree.rglob("*") if tree.is_dir() and not tree.is_symlink() else ():
            if path.is_dir() and not path.is_symlink():
                continue
            leads = Path(os.path.normpath(path.parent / os.readlink(path))) if path.is_symlink() else path
            found[path.relative_to(tree).as_posix()] = leads.name if leads == self.object(leads.name) else None
        return found

    def _difference(self, one: StoredFile) -> str:
        """Say what differs from what was kept; empty when nothing does."""
        path = self.object(one.sha256)
        try:
            if path.is_symlink() or not path.is_file():
                return f"is missing, got no file {path}"
            if (size := path.stat().st_size) != one.bytes:
                return f"is truncated or altered, expected {one.bytes} bytes, got {size}"
            found = manifest.sha256(path)
        except OSError as error:
            return f"cannot be read, got {error}"
        return "" if found == one.sha256 else f"is altered, expected SHA-256 {one.sha256[:12]}…, got {found[:12]}…"


def _rename_new(source: Path, target: Path) -> None:
    try:
        os.rename(source, target)
    except OSError as error:
        if target.is_dir():  # a folder that is not empty is never replaced
            raise FileExistsError(target) from error
        raise


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []
