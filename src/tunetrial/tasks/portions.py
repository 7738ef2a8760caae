"""Parts of a task's training rows, for a ladder of rows: nested, the same for every arm and seed."""

import math
from dataclasses import replace

from tunetrial.core.errors import DataError
from tunetrial.core.evidence import TaskData
from tunetrial.core.records import digest


def portion(data: TaskData, share: float) -> TaskData:
    """A task with this share of its training rows, whole clusters, at least the share; other splits as they are.

    Clusters are taken in the order of a digest of task and cluster, so that a smaller portion lies within every larger
    one and neither a seed nor the order of rows matters. Which rows are drawn is thus one draw: no interval over seeds
    covers another.

    Raises:
        DataError: The share is not in (0, 1], or leaves one label or number alone to train on.
    """
    if not 0 < share <= 1:
        raise DataError(f"{data.name}: the share of rows must be above 0 and at most 1, got {share}; 0.5 is half")
    rows, wanted, kept, taken = data.splits["train"], math.ceil(share * len(data.splits["train"])), set(), 0
    sizes: dict[str, int] = {}
    for example in rows:
        sizes[example.cluster] = sizes.get(example.cluster, 0) + 1
    for cluster in sorted(sizes, key=lambda name: digest([data.name, name])):
        if taken >= wanted:
            break
        kept.add(cluster)
        taken += sizes[cluster]
    train = tuple(example for example in rows if example.cluster in kept)
    if len({example.target for example in train}) < 2:
        raise DataError(f"{data.name}: a share of {share:g} leaves {len(train)} rows of one target; take a larger one")
    return replace(data, splits={**data.splits, "train": train})
