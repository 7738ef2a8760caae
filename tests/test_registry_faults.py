"""The registry under faults: real processes killed for real, many writers at once, a disk that is really full."""

import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shipped_folders import shipped
from tunetrial.core.errors import StoreError
from tunetrial.ship.registry import Registry

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tunetrial.ship.registry", "pytest"])


def is_whole(registry: Registry) -> None:
    """Every version has all of its bytes, numbers have no gaps, and history and aliases agree."""
    for entry in registry.listing().entries:
        assert [one.version for one in entry.versions] == list(range(1, len(entry.versions) + 1))
        assert [one.version for one in entry.history if one.event == "add"] == list(range(1, len(entry.versions) + 1))
        assert set(entry.aliases.values()) <= {one.version for one in entry.versions}
        for version in entry.versions:
            assert registry.damages(version) == ()


def is_swept(registry: Registry) -> None:
    """Nothing lies about that no version names."""
    registry.sweep()
    versions = [version for entry in registry.listing().entries for version in entry.versions]
    objects = {path.name for path in (registry.folder / "objects").rglob("*") if path.is_file()}
    assert objects == {one.sha256 for version in versions for one in version.files}
    assert {path.name for path in (registry.folder / "trees").iterdir()} == {one.content for one in versions}
    assert not list((registry.folder / "incoming").iterdir())


def add(registry: Registry) -> None:
    registry.add("mail", registry.folder.parent / "next")


def add_first(registry: Registry) -> None:
    shutil.rmtree(registry.folder)
    registry.add("mail", registry.folder.parent / "next")


def promote(registry: Registry) -> None:
    registry.promote("mail", "2")


def rollback(registry: Registry) -> None:
    registry.rollback("mail", "stable")


def die_at(call: int, folder: Path, act: Callable[[Registry], None]) -> None:
    """Act, and SIGKILL this very process just before its given call into the system, SQLite or C from there."""
    left = [call]

    def count(frame, event: str, _) -> None:
        if event in ("c_call", "c_return") and f"{os.sep}tunetrial{os.sep}" in frame.f_code.co_filename:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    registry = Registry.at(folder)
    sys.setprofile(count)
    act(registry)
    sys.setprofile(None)


def state(registry: Registry) -> list:
    """All that a registry says, times aside."""
    return [
        (
            entry.name,
            entry.aliases,
            [one.content for one in entry.versions],
            [(h.event, h.version) for h in entry.history],
        )
        for entry in registry.listing().entries
    ]


@pytest.mark.parametrize(
    ("act", "stride"),
    [
        (add, 67),
        (promote, 31),
        (rollback, 31),
        (add_first, 101),
        *(pytest.param(act, 1, marks=pytest.mark.slow) for act in (add, promote, rollback, add_first)),
    ],
)
def test_death_between_any_two_calls_leaves_the_old_state_or_the_new(tmp_path, act, stride):
    before, next_one = Registry.at(tmp_path / "before" / "r"), {"same.txt": b"same"}
    for number in (1, 2):
        before.add("mail", shipped(tmp_path / f"s{number}", b"w%d" % number, next_one))
        before.promote("mail", str(number), "stable")
    shipped(tmp_path / "before" / "next", b"next", next_one | {"nested/deep.txt": b"deep"})
    shutil.copytree(tmp_path / "before", tmp_path / "after", symlinks=True)
    act(Registry.at(tmp_path / "after" / "r"))
    old, new = state(before), state(Registry.at(tmp_path / "after" / "r"))
    assert old != new
    call, ended, seen = 0, False, []
    while not ended:
        call += stride
        place = tmp_path / f"death-{call}"
        shutil.copytree(tmp_path / "before", place, symlinks=True)
        registry = Registry.at(place / "r")
        process = CONTEXT.Process(target=die_at, args=(call, registry.folder, act))
        process.start()
        process.join()
        ended = process.exitcode == 0
        assert ended or process.exitcode == -signal.SIGKILL
        found = state(registry)
        assert found in (old, new, *([[]] if act is add_first else []))
        seen.append(found == new)
        if registry.folder.exists():
            is_whole(registry)
        if found != new:  # the next command does what the killed one did not
            with contextlib.nullcontext() if registry.folder.exists() else contextlib.suppress(FileNotFoundError):
                act(registry)
            if not registry.folder.exists():
                registry.add("mail", place / "next")
            assert state(registry) == new
        is_whole(registry)
        is_swept(registry)
        shutil.rmtree(place)
    assert len(seen) > 4 and seen == sorted(seen)


def work(folder: Path, shelf: Path, worker: int, count: int, started) -> None:
    """Add versions, promote them and roll back, as fast as it goes."""
    registry, rng = Registry.at(folder), random.Random(worker)
    started.set()
    for number in range(count):
        version, _ = registry.add("mail", shelf / f"{worker}-{number}")
        registry.promote("mail", str(version.version))
        if rng.random() < 0.3:
            with contextlib.suppress(StoreError):  # another went first
                registry.rollback("mail")


def shelve(place: Path, workers: int, count: int) -> Path:
    for worker in range(workers):
        for number in range(count):
            shipped(place / f"{worker}-{number}", b"%d %d" % (worker, number) * 2000, {"same.txt": b"same" * 500})
    return place


def writers(registry: Registry, shelf: Path, workers: int, count: int) -> tuple[list, list]:
    """Processes that are at work, and an event of each that is set once it is."""
    started = [CONTEXT.Event() for _ in range(workers)]
    processes = [
        CONTEXT.Process(target=work, args=(registry.folder, shelf, worker, count, started[worker]))
        for worker in range(workers)
    ]
    for process in processes:
        process.start()
    return processes, started


def test_many_writers_at_once_lose_nothing(tmp_path):
    """They begin where there is no registry at all."""
    shelf, registry, workers, count = shelve(tmp_path / "s", 5, 4), Registry.at(tmp_path / "r"), 5, 4
    processes, _ = writers(registry, shelf, workers, count)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    is_whole(registry)
    is_swept(registry)
    (entry,) = registry.listing().entries
    assert len(entry.versions) == len({one.content for one in entry.versions}) == workers * count
    assert sum(one.event == "promote" for one in entry.history) == workers * count


@pytest.mark.parametrize("kills", [6, pytest.param(40, marks=pytest.mark.slow)])
def test_writers_killed_at_random_moments_leave_it_whole(tmp_path, kills):
    rng, workers, count = random.Random(kills), 2, 25
    shelf, registry = shelve(tmp_path / "s", workers, count), Registry.at(tmp_path / "r")
    survivors = 0
    for _ in range(kills):
        processes, started = writers(registry, shelf, workers, count)
        for event in started:
            assert event.wait(30)
        time.sleep(rng.uniform(0.01, 0.6))
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
        is_whole(registry)
        found = sum(len(entry.versions) for entry in registry.listing().entries)
        assert found >= survivors  # none is lost
        survivors = found
    registry.add("mail", shelf / "0-0")
    registry.promote("mail", "1")
    is_whole(registry)
    is_swept(registry)


def hold(folder: Path, held, go_on) -> None:
    with Registry.at(folder)._shelf.leased("adding"):
        held.set()
        go_on.wait(30)


def test_gc_keeps_out_of_the_way_of_an_add_and_a_dead_one_blocks_nobody(tmp_path):
    registry = Registry.at(tmp_path / "r")
    registry.add("mail", shipped(tmp_path / "s"))
    held, go_on = CONTEXT.Event(), CONTEXT.Event()
    process = CONTEXT.Process(target=hold, args=(registry.folder, held, go_on))
    process.start()
    assert held.wait(30)
    with pytest.raises(StoreError, match="another process is at work there; wait for it and run again"):
        registry.sweep()
    registry.add("mail", shipped(tmp_path / "s2", b"other"))  # others may add
    process.kill()
    process.join()
    assert registry.sweep().files == 0


def test_a_file_that_cannot_be_written_to_its_end_is_refused_and_the_registry_stays(tmp_path):
    """By a limit on the size of files, in a process of its own: the disk says no in the middle of a write."""
    registry = Registry.at(tmp_path / "r")
    registry.add("mail", shipped(tmp_path / "s1"))
    registry.promote("mail", "1")
    large = shipped(tmp_path / "s2", bytes(3_000_000))
    code = "from tunetrial.cli import main; main()"
    words = [sys.executable, "-c", code, "registry", "add", "mail", str(large), "--registry", str(registry.folder)]
    limit = (1_000_000, 1_000_000)
    ran = subprocess.run(
        words, capture_output=True, text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    )
    assert ran.returncode == 1 and ran.stdout == "" and ran.stderr.count("\n") == 1, ran.stderr
    assert "cannot be written, got File too large; see to that and run again" in ran.stderr
    assert len(registry.entry("mail").versions) == 1 and not list((registry.folder / "incoming").iterdir())
    is_whole(registry)
    ran = subprocess.run(words, capture_output=True, text=True)
    assert ran.returncode == 0 and registry.promote("mail", "2").moved
    is_swept(registry)


def fill(disk: Path, leave_bytes: int) -> Path:
    """Take all room but so much."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while shutil.disk_usage(disk).free > leave_bytes:
            file.write(bytes(min(4096, shutil.disk_usage(disk).free - leave_bytes)))
    return ballast


def play(disk: Path, elsewhere: Path) -> None:
    """Adding and promoting on a disk that fills up."""
    registry, said = Registry.at(disk / "r"), []
    registry.add("mail", shipped(elsewhere / "s1", bytes(100_000)))
    large = shipped(elsewhere / "s2", os.urandom(600_000))
    for leave_bytes in (300_000, 0):
        ballast = fill(disk, leave_bytes)
        before = state(registry)
        for act in (
            lambda: registry.add("mail", large),
            lambda: [registry.promote("mail", "1", f"a{n}") for n in range(500)],
        ):
            try:
                act()
            except StoreError as error:
                said.append(str(error))
        assert not list((registry.folder / "incoming").iterdir())
        assert state(registry)[0][2] == before[0][2]
        is_whole(registry)
        ballast.unlink()
    assert registry.add("mail", large)[1] and registry.promote("mail", "2").moved
    is_whole(registry)
    is_swept(registry)
    print(json.dumps(said))


def test_a_full_disk_is_named_and_costs_nothing_that_was_there(tmp_path):
    """A real file system of 2 MiB, mounted in a mount namespace of its own."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("a file system of 2 MiB cannot be mounted here: no right to a mount namespace (unshare -rm)")
    (tmp_path / "disk").mkdir()
    code = (
        "import subprocess; from pathlib import Path; from test_registry_faults import play; "
        f"subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', {str(tmp_path / 'disk')!r}], check=True); "
        f"play(Path({str(tmp_path / 'disk')!r}), Path({str(tmp_path)!r}))"
    )
    run = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    assert len(said) >= 3 and all("disk is full" in one and "\n" not in one for one in said), said
