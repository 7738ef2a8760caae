"""Courses that have ended at a rung, kept for trials that go on from there: curve and newest checkpoint."""

import os
import shutil
from pathlib import Path

from tunetrial.core import files
from tunetrial.core.checkpoint import newest_checkpoint


def keep(kept: Path, *, checkpoint: Path, curve: Path) -> None:
    """Keep a curve and the newest of a trial's checkpoints in a folder of this course; nothing where it saved none."""
    newest = newest_checkpoint(checkpoint)
    if newest is None:
        return
    temporary = kept.parent / f".{kept.name}.tmp"
    with files.writing(kept):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            shutil.copytree(newest[1], temporary / newest[1].name, copy_function=_link)
            shutil.copy(curve, temporary / curve.name)
            shutil.rmtree(kept, ignore_errors=True)
            os.replace(temporary, kept)
            files.sync(kept.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def restore(kept: Path, *, checkpoint: Path, curve: Path) -> None:
    """Begin where a course was paused."""
    with files.writing(checkpoint.parent):
        shutil.rmtree(checkpoint, ignore_errors=True)
        for saved in kept.glob("step-*"):
            shutil.copytree(saved, checkpoint / saved.name, copy_function=_link)
        shutil.copy(kept / curve.name, curve)


def _link(source: str, target: str) -> None:
    """Have a file under another name as well, or a copy where the file system has no such names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)
