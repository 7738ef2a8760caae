"""Sealed JSON: a file that carries the SHA-256 of its own content, so that an altered one is refused."""

import json
from pathlib import Path

from tunetrial.core import files
from tunetrial.core.errors import IntegrityError
from tunetrial.core.records import digest


def write(path: Path, content: dict) -> None:
    """Write JSON content with its seal: the digest of the content's canonical form, whatever the layout."""
    text = json.dumps({"seal": digest(content), **content}, indent=1, allow_nan=False)
    files.write(path, text.encode() + b"\n")


def read(path: Path) -> dict:
    """Read the content of a sealed file.

    Raises:
        IntegrityError: The file is missing, is no JSON object, or its content is not what was sealed.
    """
    try:
        content = dict(json.loads(path.read_bytes()))
        seal = content.pop("seal")
        found = digest(content)
    except FileNotFoundError:
        raise IntegrityError(f"{path}: file is missing; restore it") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise IntegrityError(f"{path}: not a sealed file, got {error!r}; restore it") from None
    if found != seal:
        raise IntegrityError(f"{path}: expected content with SHA-256 {seal}, got SHA-256 {found}; restore it")
    return content
