"""How much room a study has, and how much it needs at its peak."""

from collections.abc import Mapping
from dataclasses import dataclass

from tunetrial.core.errors import DoesNotFitError
from tunetrial.core.speed import Range, exactly
from tunetrial.core.study import Arm, Lock
from tunetrial.models import ModelShape
from tunetrial.plan import estimate
from tunetrial.plan.estimate import GIB
from tunetrial.store import most_kept, replicates

CHECKPOINTS = 3


@dataclass(frozen=True)
class Machine:
    """What is free for a study: the device's kind ("cpu" or "cuda"), cores, and bytes of device, host and disk."""

    device: str
    cores: int
    device_bytes: int
    host_bytes: int
    disk_bytes: int


def side_by_side(machine: Machine, memory: Mapping[str, Range], host: Mapping[str, Range]) -> int:
    """How many trials go side by side: one a core, as far as the largest fit into the memory of device and host.

    On a GPU small models wait for the process that feeds it, not for the device; a large one leaves no room for two.
    There each is given twice what it is estimated to take.
    """
    by_device = machine.device_bytes / max(needed.high for needed in memory.values())
    by_host = machine.host_bytes / max(needed.high for needed in host.values())
    return max(1, int(min(machine.cores, by_device if machine.device == "cpu" else by_device / 2, by_host)))


def first_and_last(lock: Lock, task: str) -> Range:
    """Finals of an arm on a task, or on one of its folds, at the first look and at the last."""
    looks = lock.looks(task)
    return Range(low=looks[0], high=looks[-1])


def disk_bytes(lock: Lock, cases: list[tuple[str, Arm, ModelShape, int]], workers: int) -> Range:
    """The most that lies on the disk at one time: weights of finals as retention leaves them, and what trials in hand
    write.

    Of full models there are those that may yet become the median that ships, of adapters all. A trial in hand has its
    artifact and up to three checkpoints, or one where the disk has no room for more; the low end is with one trial at a
    time, the high end with as many as there are workers. A search that is not exhaustive keeps what its runs go on
    from, that of one seed at every rate. Records and scores are left out: they are small.

    Args:
        cases: Task, arm, its base's shape and the outputs of its head, for every task and arm.
    """
    kept = exactly(0)
    for task, arm, shape, outputs in cases:
        few = arm.method == "full" and lock.study.keep != "all"
        finals = exactly(len(lock.parts(task))) * first_and_last(lock, task)
        count = exactly(most_kept(replicates(lock, task))) if few else finals
        kept += count * estimate.artifact_bytes(arm, shape, outputs=outputs)
        if not lock.study.tuning.exhaustive:
            rates = Range(low=lock.study.tuning.points, high=lock.study.tuning.max_points)
            paused = exactly(len(lock.parts(task))) * rates
            kept += paused * estimate.checkpoint_bytes(arm, shape, outputs=outputs)
    trials = [
        estimate.artifact_bytes(arm, shape, outputs=n)
        + Range(low=1, high=CHECKPOINTS) * estimate.checkpoint_bytes(arm, shape, outputs=n)
        for _, arm, shape, n in cases
    ]
    return kept + Range(low=max(t.low for t in trials), high=workers * max(t.high for t in trials))


def check_disk(needed: Range, *, free_bytes: int, used_bytes: int, where: object) -> None:
    """Refuse a study that cannot end for want of disk; `used_bytes` is what it has written already.

    Raises:
        DoesNotFitError: There is less than the low end of what is needed.
    """
    if free_bytes + used_bytes < needed.low:
        more, free = (needed.low - used_bytes) / GIB, free_bytes / GIB
        raise DoesNotFitError(
            f"{where}: the study needs at least {more:.2g} GiB of disk at its peak, got {free:.2g} GiB free; "
            "free space, name another --folder, or take fewer arms that train all weights"
        )
