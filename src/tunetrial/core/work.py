"""What a pass takes on a device, counted and not measured: bytes that are held, and work by kind of kernel."""

from typing import Literal

from tunetrial.core.records import Record

Part = Literal["base", "trained", "gradients", "moments", "activations", "workspace", "other"]
STATES: tuple[Part, ...] = ("base", "trained", "gradients", "moments")


class Kernel(Record):
    """Kernels of one kind and size. `operations` are those of one of them, a multiply and an add being two (of other
    kinds than products and attention, the numbers that it writes); `bytes` are what one of them reads and writes, each
    once, caches apart.

    `shape` is (m, n, k) of a product (m, k) × (k, n), and (batch, m, n, k) of a batch of them in one kernel; of other
    kinds it is empty. `count` is how many such kernels a pass has.
    """

    kind: Literal["product", "attention", "elementwise", "copy", "optimiser"]
    dtype: str
    shape: tuple[int, ...] = ()
    count: int
    operations: float
    bytes: float


class Phase(Record):
    """The most bytes that tensors occupy at one time of a phase, as the device's allocator rounds them, and what they
    are then; nothing is said of what the allocator holds in reserve, nor of the device's context.

    `work` is what the phase computes, once. `passing_bytes` are the most of all that is neither weights nor gradients
    nor moments, maybe at another time than the peak; None where they were not told apart.
    """

    peak_bytes: int
    parts: dict[Part, int]
    passing_bytes: int | None = None
    work: tuple[Kernel, ...] = ()


class Traced(Record):
    """Phases of a trial, or of all members of a pack together, on one device: "load", on a GPU "prepare" (the first
    step, while kernels are compiled and before there are moments), "step" (any later optimiser step), "evaluate" (one
    batch), "save", "resume" (from a checkpoint). It fits where the highest peak of them does. `tokens` are the real
    ones of the step that was counted, of all members, and `evaluated` the rows of each member in the evaluation batch,
    if one was."""

    phases: dict[str, Phase]
    tokens: int
    evaluated: int | None = None

    @property
    def training_bytes(self) -> int:
        """The highest peak of what comes before evaluation."""
        return max(phase.peak_bytes for name, phase in self.phases.items() if name not in ("evaluate", "save"))


class Counted(Record):
    """A trial of an arm on a task, counted at the lengths of the task's rows, in the order of one seed.

    `fullest` is the first epoch's step with most tokens, and an evaluation batch of rows as long as its longest: what
    memory must hold. `least` is the step with fewest, and a batch of rows of the mean length. A step has
    `step_tokens` in the mean. `packed` is the fullest step of `members` that train together; None of one alone.
    """

    fullest: Traced
    least: Traced
    step_tokens: float
    members: int = 1
    packed: Traced | None = None
