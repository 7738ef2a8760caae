"""What was measured of how fast this user's machines are, and what finished trials showed of it."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from tunetrial.core import files
from tunetrial.core.errors import IntegrityError
from tunetrial.core.records import canonical, digest
from tunetrial.core.speed import Observed, Speed
from tunetrial.store import lines


@dataclass(frozen=True)
class Machine:
    """By what a measured speed is found again: the processor or GPU by name, threads that compute (None on a GPU),
    cores of the host, and the version of torch."""

    device: str
    threads: int | None
    cores: int | None
    torch: str


@dataclass(frozen=True)
class Speeds:
    """A file of JSON a machine in `home`/speeds, and beside it the observations, a line each. Deleting them is safe:
    calibrating again makes them anew."""

    home: Path

    def find(self, machine: Machine) -> Speed | None:
        """The speed measured on such a machine; None if there is none.

        Raises:
            IntegrityError: The file is not a speed.
        """
        path = self.path(machine)
        if not path.exists():
            return None
        try:
            return Speed.model_validate_json(path.read_bytes())
        except ValidationError as error:
            what = error.errors()[0]["msg"]
            raise IntegrityError(f"{path}: not a speed, got {what}; delete it and calibrate again") from None

    def keep(self, machine: Machine, speed: Speed) -> Path:
        """Write what was measured on a machine in place of what was there; say where.

        Raises:
            StoreError: The disk is full or the folder cannot be written.
        """
        path = self.path(machine)
        with files.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, (canonical(speed.model_dump(mode="json")) + "\n").encode())
        return path

    def note(self, machine: Machine, observed: Observed) -> None:
        """Add an observation; one of the same trial and speed that is there already is not noted again.

        Raises:
            StoreError: The disk is full or the folder cannot be written.
        """
        known = {(one.trial, one.speed_digest) for one in self.observed(machine)}
        if (observed.trial, observed.speed_digest) in known:
            return
        path = self.path(machine).with_suffix(".jsonl")
        with files.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        lines.append(path, observed.model_dump(mode="json"), durable=False)

    def observed(self, machine: Machine) -> tuple[Observed, ...]:
        """All observations on a machine, oldest first.

        Raises:
            IntegrityError: A line is not an observation.
        """
        path, found = self.path(machine).with_suffix(".jsonl"), []
        for number, line in enumerate(lines.read(path), start=1):
            try:
                found.append(Observed.model_validate(line))
            except ValidationError:
                raise IntegrityError(f"{path}:{number}: not an observation; delete the file") from None
        return tuple(found)

    def path(self, machine: Machine) -> Path:
        """Where the speed of a machine is kept."""
        return self.home / "speeds" / f"{digest(vars(machine))[:16]}.json"


def this_machine(device: str, *, threads: int | None) -> Machine:
    """The key of the machine at hand, with a device as the engine names it."""
    return Machine(device=device, threads=threads, cores=os.cpu_count(), torch=version("torch"))


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
