"""How long trials take, from seconds of their parts: tuning, finals, evaluation, saving, packs, workers, sessions.

Pure sums: the seconds of a step, a batch and a saved artifact come from `plan.speed` or from records.
"""

import math
from collections.abc import Callable, Iterable, Sequence

from tunetrial.core.errors import DoesNotFitError
from tunetrial.core.records import Record
from tunetrial.core.speed import Range, exactly
from tunetrial.core.work import Kernel
from tunetrial.models import ModelShape

# Of importing torch and transformers: 2.5 s on an idle laptop-class core to 11 s on a shared cloud core, both measured;
# CUDA's context and first kernels take 3 to 15 s more (as users of recent GPUs report; not measured by us).
# What is likely is the middle of the logarithms.
LIBRARIES_S = {"cpu": Range(low=2.5, high=15.0, likely=6.1), "cuda": Range(low=5.0, high=30.0, likely=12.0)}
# A base on disk: from a network disk to an NVMe drive that has it cached.
READ_BYTES_PER_S = Range(low=0.15e9, high=3e9, likely=0.67e9)


class Duration(Record):
    """Seconds of one trial, or of a pack's members together, by what they are spent on."""

    prepare_s: Range
    train_s: Range
    evaluate_s: Range
    save_s: Range
    observe_s: Range = exactly(0)

    @property
    def seconds(self) -> Range:
        """All of it."""
        return self.prepare_s + self.train_s + self.evaluate_s + self.save_s + self.observe_s

    def __add__(self, other: "Duration") -> "Duration":
        return Duration(**{part: getattr(self, part) + getattr(other, part) for part in type(self).model_fields})


def duration(
    step_s: Range,
    *,
    steps: int,
    batch_s: Range,
    batches: int,
    prepare_s: Range,
    save_s: Range,
    checkpoint_every_s: float = math.inf,
) -> Duration:
    """One trial, or one pack.

    Args:
        step_s: Of one optimiser step of all members, as `steps` of them are taken.
        batch_s: Of one evaluation batch; `batches` over all splits that the trial may see (a final sees two).
        prepare_s: Of bringing the base to what is on disk, and attaching.
        save_s: Of writing an artifact; nothing is saved of tuning, whose value is then exactly 0. A checkpoint is
            taken to cost as much, one every `checkpoint_every_s` of training.
    """
    train = exactly(steps) * step_s
    checkpoints = _each(lambda seconds: seconds // checkpoint_every_s, train)
    return Duration(
        prepare_s=prepare_s, train_s=train + checkpoints * save_s, evaluate_s=exactly(batches) * batch_s, save_s=save_s
    )


def pack_sizes(trials: int, most: int) -> tuple[int, ...]:
    """How many members each pack has when so many trials that may train together are put into packs of `most` at most,
    as even as `plan.packs` puts them."""
    count = -(-trials // most)
    cuts = [trials * number // count for number in range(count + 1)] if count else []
    return tuple(stop - start for start, stop in zip(cuts, cuts[1:], strict=False))


def in_packs(trials: int, most: int, of_pack: Callable[[int], Range]) -> Range:
    """Seconds of trials that may train together, one pack after the other; `of_pack` gives those of a pack of K."""
    return sum((of_pack(size) for size in pack_sizes(trials, most)), exactly(0))


def start_up(device: str, base_bytes: float) -> Range:
    """Seconds until a worker has its libraries and base: once a worker, not once a trial."""
    libraries = LIBRARIES_S["cpu" if device == "cpu" else "cuda"]
    return libraries + moving(exactly(base_bytes))


def moving(size_bytes: Range) -> Range:
    """Seconds of reading or writing so many bytes."""
    rate = READ_BYTES_PER_S
    likely = None if size_bytes.likely is None else size_bytes.likely / rate.likely
    return Range(low=size_bytes.low / rate.high, high=size_bytes.high / rate.low, likely=likely)


def side_by_side(seconds: Iterable[Range], workers: int) -> Range:
    """Wall time of packs on so many workers: at best all are busy to the end, at worst the longest begins last.

    The high end is the bound of list scheduling (Graham 1966): the mean load and the longest pack, less a share. What
    workers take from each other on one device is not in it.
    """
    each = list(seconds)
    if not each:
        return exactly(0)
    total, longest = sum(each, exactly(0)), _each(lambda *all_: max(all_), *each)
    best = _each(lambda load, one: max(load / workers, one), total, longest)
    return Range(low=best.low, high=total.high / workers + longest.high * (1 - 1 / workers), likely=best.likely)


def _each(function: Callable[..., float], *ranges: Range) -> Range:
    """A function of the low ends, of the high ones and of what is likely, if that is known of all."""
    columns = {end: [getattr(one, end) for one in ranges] for end in Range.model_fields}
    return Range(**{end: None if None in column else function(*column) for end, column in columns.items()})


def sessions(total_s: float, limit_s: float, *, resume_s: float = 0.0) -> int:
    """How many sessions of at most `limit_s` a study of `total_s` takes; every one after the first begins with
    `resume_s` of starting up and repeating what came after the last checkpoint.

    Raises:
        DoesNotFitError: A session is over before it has resumed.
    """
    if limit_s <= resume_s:
        raise DoesNotFitError(
            f"session: ends before a study has resumed, got a limit of {limit_s:g} s and {resume_s:g} s to resume; "
            "use a machine with longer sessions"
        )
    return 1 if total_s <= limit_s else 1 + math.ceil((total_s - limit_s) / (limit_s - resume_s))


def decoding(
    shape: ModelShape, *, rows: int, prompt_tokens: int, new_tokens: int, dtype: str, bytes_per_number: int
) -> tuple[Kernel, ...]:
    """Work of generating text for rows at once after their prompts are read: each step multiplies one token a row by
    every weight and reads the cache of keys and values.

    Counted: products and attention, two operations a weight and token (Kaplan et al. 2020, arXiv:2001.08361, section
    2.1). Left out: norms, rotation, sampling, adapters beside the base, and that rows end before `new_tokens`.
    """
    steps, mean_cache = new_tokens, prompt_tokens + new_tokens / 2
    sizes = [*(list(shape.projections.values()) * shape.layers), (shape.hidden, shape.vocabulary)]
    counts = {size: sizes.count(size) for size in sizes}
    products = [
        Kernel(
            kind="product",
            dtype=dtype,
            shape=(rows, outputs, inputs),
            count=steps * count,
            operations=2 * rows * outputs * inputs,
            bytes=bytes_per_number * (rows * (inputs + outputs) + inputs * outputs),
        )
        for (inputs, outputs), count in counts.items()
    ]
    attention = Kernel(
        kind="attention",
        dtype=dtype,
        count=steps * shape.layers,
        operations=4 * rows * mean_cache * shape.heads * shape.head_dim,
        bytes=bytes_per_number * 2 * rows * mean_cache * shape.kv_heads * shape.head_dim,
    )
    return (*products, attention)


def total(parts: Sequence[Duration]) -> Duration:
    """All of them, one after the other."""
    none = Duration(prepare_s=exactly(0), train_s=exactly(0), evaluate_s=exactly(0), save_s=exactly(0))
    return sum(parts, none)
