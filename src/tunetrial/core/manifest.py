"""Manifests: the SHA-256 and size of each file of a folder, written beside them and checked before use."""

import hashlib
import json
from pathlib import Path

from tunetrial.core import files
from tunetrial.core.errors import IntegrityError

NAME = "manifest.json"


def sha256(path: Path) -> str:
    """Digest a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, names: list[str]) -> None:
    """Record digest and size of the named files of `folder` in its `manifest.json`."""
    listed = {
        name: {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in sorted(names)
    }
    files.write(folder / NAME, (json.dumps({"files": listed}, indent=1) + "\n").encode())


def seal(folder: Path) -> str:
    """Bring all that lies below `folder` to the disk, list it in a manifest, and return the manifest's SHA-256."""
    below = sorted(path for path in folder.rglob("*") if path != folder / NAME)
    for path in (*below, folder):
        files.sync(path)
    write_manifest(folder, [path.relative_to(folder).as_posix() for path in below if path.is_file()])
    return sha256(folder / NAME)


def read_manifest(folder: Path, names: list[str] | None = None) -> dict[str, tuple[str, int]]:
    """What the manifest of `folder` promises of all files that it lists, or of those named: SHA-256 and bytes.

    Raises:
        IntegrityError: The manifest is missing or unreadable, or lists nothing, or not a file that is named.
    """
    path = folder / NAME
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["files"]
        wanted = {name: listed[name] for name in (listed if names is None else names)}
        expected = {name: (str(entry["sha256"]), int(entry["bytes"])) for name, entry in wanted.items()}
        if not expected:
            raise ValueError("no files listed")
    except FileNotFoundError:
        raise IntegrityError(f"{path}: file is missing; reinstall or restore the folder") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(f"{path}: not a manifest of these files, got {error!r}; restore or remove it") from None
    return expected


def check_manifest(folder: Path, names: list[str] | None = None) -> dict[str, str]:
    """Check the files of `folder` (all that its manifest lists, or those named) and return their digests.

    It proves that the bytes are those that were sealed, not that whoever sealed them is to be trusted:
    the manifest lies in the same folder.

    Raises:
        IntegrityError: As `read_manifest`; or a file is missing or has other bytes.
    """
    expected = read_manifest(folder, names)
    for name, (digest, size_bytes) in expected.items():
        found = _describe(folder / name, digest, size_bytes)
        if found:
            promise = f"expected {size_bytes} bytes with SHA-256 {digest}"
            raise IntegrityError(f"{folder / name}: {promise}, got {found}; reinstall or restore the file")
    return {name: digest for name, (digest, _) in expected.items()}


def _describe(path: Path, digest: str, size_bytes: int) -> str:
    """Say what differs from the promise; empty when nothing does."""
    if not path.is_file():
        return "no file"
    if path.stat().st_size != size_bytes:
        return f"{path.stat().st_size} bytes"
    found = sha256(path)
    return "" if found == digest else f"SHA-256 {found}"
