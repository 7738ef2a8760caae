"""Shared fixtures: the path of the outside data, and a copy of the embedded base that a test may damage."""

import gc
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from tunetrial import models

# A busy machine is no fault, and a run must find the same cases as the last one.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

# Files that take longest, first: what is begun last must be short, or one core waits for the other.
LONGEST = (
    "trial cli ship kill rate recipes ladder_studies packs language doctor torch_engine notebook store_faults observed"
)

gc.disable()  # until all test modules are there: what they import is no garbage


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {f"test_{name}": number for number, name in enumerate(LONGEST.split())}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_collection_finish() -> None:
    """Leave what the test modules imported out of the collections that sessions ask for."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def outside_data() -> Path:
    """The folder named by TUNETRIAL_DATA: real data that is never part of the repository."""
    folder = os.environ.get("TUNETRIAL_DATA")
    if not folder:
        pytest.skip("TUNETRIAL_DATA is not set: this test reads data that is not part of the repository")
    if not Path(folder).is_dir():
        pytest.fail(f"TUNETRIAL_DATA: no such folder, got {folder!r}; name the folder of the outside data")
    return Path(folder)


@pytest.fixture
def copied_base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(models.EMBEDDED, tmp_path / "base"))
