"""Checkpoints: folders `step-000123` of a trial in hand, each sealed by its manifest before it gets its name."""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from tunetrial.core import files, manifest
from tunetrial.core.errors import IntegrityError

ROOM = 1.1


def save_checkpoint(folder: Path, step: int, write: Callable[[Path], None], keep: int = 2) -> Path:
    """Save what `write` puts into the folder it is given as the checkpoint after `step` optimiser steps.

    It is written under a temporary name, brought to the disk with a manifest, and renamed; then all others but the
    `keep` - 1 newest before it are removed, those of later steps too: they belong to a run that was given up. Where the
    disk has no room for one more, but would have without them, earlier ones are removed before it is written, the
    oldest first: a kill meanwhile may then cost the trial its steps, which is less than what a full disk costs.

    Raises:
        StoreError: The disk is full; the temporary folder does not remain.
    """
    if keep < 1:
        raise ValueError(f"keep: must be >= 1, got {keep}")
    final = folder / f"step-{step:06d}"
    temporary = folder / f"{final.name}.tmp"
    _make_room(folder)
    with files.writing(final):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            write(temporary)
            manifest.seal(temporary)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
            files.sync(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    drop_checkpoints(folder, after=step)
    for path in [path for _, path in _saved(folder)][keep:]:
        shutil.rmtree(path)
    return final


def _make_room(folder: Path) -> None:
    """Remove earlier checkpoints if there is no room for another like the newest, and only if that makes room."""
    saved = [path for _, path in _saved(folder)]
    sizes = [sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in saved]
    needed = ROOM * max(sizes, default=0)
    if saved and files.free_bytes(folder) + sum(sizes) >= needed:
        for path in reversed(saved):
            if files.free_bytes(folder) < needed:
                shutil.rmtree(path)


def newest_checkpoint(folder: Path) -> tuple[int, Path] | None:
    """Find the newest checkpoint whose files are all as sealed; `damaged_checkpoints` says what was passed over."""
    return next(((step, path) for step, path in _saved(folder) if _damage(path) is None), None)


def common_checkpoint(folders: Sequence[Path]) -> tuple[int, list[Path]] | None:
    """Find the newest step of which all these folders have a checkpoint whose files are all as sealed.

    Of those saved one folder after the other, a kill meanwhile leaves that of the step before in all.
    """
    sound = [{step: path for step, path in _saved(folder) if _damage(path) is None} for folder in folders]
    shared = set.intersection(*(set(own) for own in sound))
    return (max(shared), [own[max(shared)] for own in sound]) if shared else None


def damaged_checkpoints(folder: Path) -> tuple[str, ...]:
    """Say of each damaged checkpoint, newest first, which file has other bytes than were sealed."""
    return tuple(found for _, path in _saved(folder) if (found := _damage(path)))


def drop_checkpoints(folder: Path, *, after: int) -> None:
    """Remove the checkpoints of steps beyond `after`, and what a killed save left behind."""
    leftovers = list(folder.glob("step-*.tmp"))
    for path in leftovers + [path for step, path in _saved(folder) if step > after]:
        shutil.rmtree(path)


def _saved(folder: Path) -> list[tuple[int, Path]]:
    """List step and folder of every checkpoint, newest first, valid or not."""
    paths = folder.iterdir() if folder.is_dir() else ()
    found = [(re.fullmatch(r"step-(\d{6,})", path.name), path) for path in paths]
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def _damage(path: Path) -> str | None:
    try:
        manifest.check_manifest(path)
    except IntegrityError as error:
        return str(error)
    return None
