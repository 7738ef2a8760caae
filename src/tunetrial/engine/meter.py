"""What tensors occupy at any time, and the work of the operations that make them, seen operation by operation.

A meter sees every operation below autograd, whose own freeing is thus what happens: a storage is counted from the
operation that makes it until nothing refers to it. Operations inside a kernel of the device leave no trace here: what
such a kernel keeps while it runs is added by the formulas below, each with its source; what has none is not counted.

    meter = Meter("meta", block=cuda_block)
    with meter, meter.making("activations"):
        ...
    meter.peak
"""

import math
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tunetrial.core.work import Part
from tunetrial.engine import outcome, place
from tunetrial.engine.depth import Reached

MIB = 2**20
aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.addmm, aten.addmm_, aten.bmm, aten.baddbmm, aten.baddbmm_, aten._grouped_mm}
COPIES = {
    aten.copy_,
    aten._to_copy,
    aten.clone,
    aten.index_select,
    aten.gather,
    aten.cat,
    aten.embedding,
    aten._foreach_copy_,
}


def cuda_block(size: int) -> int:
    """Bytes of the block that torch's caching allocator gives out for so many.

    Blocks are of 512 bytes. From 10 MiB on each lies in a segment of its own, of whole 2 MiB, and takes the rest of it
    along where that is 1 MiB at most (c10/cuda/CUDACachingAllocator.cpp: round_size, get_allocation_size,
    should_split). Smaller ones share segments, and a block that is used again may be up to 1 MiB too large: neither is
    counted.
    """
    rounded = -(-size // 512) * 512
    rest = -rounded % (2 * MIB)
    return rounded + rest if rounded >= 10 * MIB and rest <= MIB else rounded


def matmul_workspace(capability: tuple[int, int]) -> int:
    """Bytes that cuBLAS is given a thread and stream: 32 MiB on Hopper and Blackwell, else two of 4 MiB and eight of
    16 KiB (aten/src/ATen/cuda/CublasHandlePool.cpp, parseChosenWorkspaceSize); cuBLASLt shares them."""
    return 32 * MIB if capability[0] in (9, 10, 12) else 2 * 4096 * 1024 + 8 * 16 * 1024


def flash_backward_scratch(dmixed: torch.Tensor, q: torch.Tensor, k: torch.Tensor, bounds: torch.Tensor) -> list[int]:
    """Bytes that the deterministic backward pass of flash attention keeps while it runs, tensor by tensor.

    Sums (heads, tokens + 128 rows) and gradients of queries (splits, tokens + 128 rows, heads, head_dim rounded) in
    fp32, with ceil(processors / (rows * heads)) splits; where keys are shared, gradients of keys and values a query
    head (aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, mha_varlen_bwd).
    """
    tokens, heads, size = q.shape
    rows = len(bounds) - 1
    rounded = -(-size // (32 if size <= 128 else 64)) * (32 if size <= 128 else 64)
    splits = -(-place.processors() // (rows * heads))
    stretched = tokens + 128 * rows
    made = [4 * heads * stretched, 4 * splits * stretched * heads * rounded]
    return made + ([q.element_size() * q.numel()] * 2 if k.shape[1] != heads else [])


class Meter(TorchDispatchMode):
    """Counts the storages of one kind of device ("meta", or "cpu" of what really runs there).

    `live` are bytes in blocks. `peaks` are the most at each moment of a pass (`depth`), and what they were made of;
    `prepared` the most with the examples besides that chains of elementwise operations are compiled by when they are
    first met.
    """

    def __init__(self, device_type: str, *, block: Callable[[int], int] = int):
        super().__init__()
        self.device_type, self.block = device_type, block
        self.held: dict[int, tuple[Part, int]] = {}
        self.now: Counter[Part] = Counter()
        self.live = 0
        self.peaks: dict[tuple, tuple[int, dict[Part, int]]] = {}
        self.prepared: dict[tuple, int] = {}
        self.layers: dict[tuple[int, int], int | None] = {}
        self.depth, self.moment = 0, (False, "outside")
        self.part: Part = "other"
        self.quiet = False
        self.met: set[tuple] = set()
        self.kernels: Counter[tuple] = Counter()
        self.pairs = 0.0

    def __enter__(self) -> "Meter":
        self._token = _METER.set(self)
        return super().__enter__()

    def __exit__(self, *fault: object) -> None:
        _METER.reset(self._token)
        super().__exit__(*fault)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: nothing is compiled below a meter, and what would see to that stands between it and who calls it."""
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        in_place = not self.quiet and _adds_in_place(func, args)
        if not self.quiet:
            self._look(func, args)
        if func.is_view:
            return func(*args, **(kwargs or {}))
        made = outcome.apply(func, args, kwargs or {}) if self.device_type == "meta" else func(*args, **(kwargs or {}))
        if self.quiet:
            return made
        if in_place:
            self._succeed(args[0], made)
        leaves = list(_tensors([made]))
        for leaf in leaves:
            self.see(leaf)
        if func is aten._flash_attention_backward.default:
            dmixed, q, k, *_ = args
            self.reach(sum(map(self.block, flash_backward_scratch(dmixed, q, k, args[6]))), "workspace")
        if func in (aten._foreach_copy_.default, aten._foreach_add_.List):  # which give nothing back
            leaves = list(args[0])
        if any(leaf.device.type == self.device_type for leaf in leaves):
            self._note(func, args, leaves)
        return made

    def see(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage from now on, if it is new."""
        if tensor.device.type != self.device_type:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.held:
            return
        size = self.block(storage.nbytes())
        self.held[key] = self.part, size
        weakref.finalize(storage, self._gone, key)
        self.now[self.part] += size
        self.live += size
        self.reach(0, self.part)

    def _succeed(self, tensor: torch.Tensor, other: torch.Tensor) -> None:
        """Count one tensor from now on as lying where another did."""
        key, new = tensor.untyped_storage()._cdata, other.untyped_storage()
        if key in self.held:
            part, size = self.held[key]
            self.held |= {key: (part, 0), new._cdata: (part, size)}
            weakref.finalize(new, self._gone, new._cdata)

    def _gone(self, key: int) -> None:
        part, size = self.held.pop(key)
        self.now[part] -= size
        self.live -= size

    def hold(self, size: int, part: Part) -> None:
        """Count bytes that stay, and are no tensor's."""
        self.now[part] += size
        self.live += size
        self.reach(0, part)

    def reach(self, more: int, part: Part) -> None:
        """Count bytes that are taken for this moment alone."""
        total, moment = self.live + more, self.moment
        if moment not in self.peaks or total > self.peaks[moment][0]:
            parts = dict(self.now)
            parts[part] = parts.get(part, 0) + more
            self.peaks[moment] = total, parts
        self.prepared[moment] = max(self.prepared.get(moment, 0), total)

    @property
    def peak(self) -> int:
        return max(total for total, _ in self.peaks.values())

    def reset(self) -> None:
        """Begin a phase: its peak is what is live now."""
        self.peaks, self.prepared, self.moment = {}, {}, (False, "outside")
        self.kernels.clear()
        self.reach(0, "other")

    def reached(self) -> Reached:
        """What was reached since the last reset."""
        names = {0: "first", 1: "second", self.depth - 1: "last"}
        named = lambda where: names.get(where) if isinstance(where, int) else where  # noqa: E731
        peaks = {(back, named(where)): found for (back, where), found in self.peaks.items() if named(where)}
        prepared = {(back, named(where)): found for (back, where), found in self.prepared.items() if named(where)}
        return Reached(peaks, prepared, dict(self.kernels))

    def walk(self, layers: Sequence[torch.nn.Module], model: torch.nn.Module) -> None:
        """Tell moments by the layer whose weights an operation was given last."""
        self.depth = len(layers)
        self.layers = {self._place(weight): None for weight in (*model.parameters(), *model.buffers())}
        for number, layer in enumerate(layers):
            self.layers |= {self._place(weight): number for weight in (*layer.parameters(), *layer.buffers())}

    @staticmethod
    def _place(tensor: torch.Tensor) -> tuple[int, int]:
        return tensor.untyped_storage()._cdata, tensor.storage_offset()

    def _look(self, func, args: Sequence) -> None:
        """Find out at which moment of a pass this operation is."""
        back, (was_back, where) = torch._C._current_graph_task_id() >= 0, self.moment
        if back != was_back:
            where = "outside"
        for arg in args:
            if isinstance(arg, torch.Tensor) and (place_ := self._place(arg)) in self.layers:
                number = self.layers[place_]
                where = number if number is not None else "outside" if where == "outside" or not back else "past"
        if func is aten.embedding_dense_backward.default:
            where = "past"
        self.moment = back, where

    def give(self, tensors: Iterable[torch.Tensor], part: Part, *, block: Callable[[int], int] | None = None) -> None:
        """Say what tensors are for, seeing those that are new; and in what blocks they lie, if in others."""
        for tensor in tensors:
            self.see(tensor)
            key = tensor.untyped_storage()._cdata
            if key in self.held:
                before, size = self.held[key]
                now = size if block is None else block(tensor.untyped_storage().nbytes())
                self.held[key] = part, now
                self.now[before] -= size
                self.now[part] += now
                self.live += now - size

    @contextmanager
    def making(self, part: Part) -> Iterator[None]:
        """What tensors that are made within are for."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Count nothing within: it is on another device, or inside a kernel."""
        before, self.quiet = self.quiet, True
        try:
            yield
        finally:
            self.quiet = before

    def _note(self, func, args: Sequence, made: list[torch.Tensor]) -> None:
        """Enter an operation among the kernels."""
        overwritten = func.overloadpacket in (aten.copy_, aten._foreach_copy_)
        read = list(_tensors(args[1:] if overwritten else args))
        size = float(sum(map(_bytes, (*read, *made))))
        dtype = _name(made[0])
        name = func.overloadpacket
        if name in PRODUCTS:
            factors = [t for t in read if t.ndim >= 2][-2:] if name is aten._grouped_mm else _factors(name, args)
            shape = _product(*factors, made[0])
            self.kernels["product", dtype, shape, 2.0 * math.prod(shape), size] += 1
        elif name in (aten._flash_attention_forward, aten._flash_attention_backward):
            forward = name is aten._flash_attention_forward
            q = args[0] if forward else args[1]
            operations = (4 if forward else 10) * self.pairs * q.shape[1] * q.shape[2]
            self.kernels["attention", dtype, (), operations, size] += 1
        else:
            kind = "copy" if name in COPIES else "elementwise"
            elements = 0.0 if kind == "copy" else float(sum(t.numel() for t in made))
            self.kernels[kind, dtype, (), elements, size] += 1

    def kernel(self, function: Callable, args: Sequence) -> object:
        self._look(None, args)
        with self.silent():
            made = outcome.apply(function, args, {})
        results = list(_tensors([made]))
        for result in results:
            self.see(result)
        elements = float(sum(t.numel() for t in results))
        size = float(sum(map(_bytes, (*_tensors(args), *results))))
        self.kernels["elementwise", _name(results[0]), (), elements, size] += 1
        return made

    def fused(
        self, function: Callable, args: Sequence, tokens: Sequence[int | None], kind: tuple, compiled_for: int
    ) -> object:
        before = self.live
        made = self.kernel(function, args)
        scaled = [
            (t, dim) for t, dim in zip(args, tokens, strict=True) if isinstance(t, torch.Tensor) and dim is not None
        ]
        share = compiled_for / max(1, scaled[0][0].shape[scaled[0][1]])
        if kind not in self.met:
            self.met.add(kind)
            drawn = sum(self.block(int(_bytes(t) * share)) for t in (*(t for t, _ in scaled), *_tensors([made])))
            self.prepared[self.moment] = max(self.prepared.get(self.moment, 0), before + drawn)
        return made


_METER: ContextVar[Meter] = ContextVar("meter")


def kernel(function: Callable, args: Sequence) -> object:
    """Run what is one kernel of the device's: nothing is made but its results."""
    return _METER.get().kernel(function, args)


def fused_kernel(
    function: Callable, args: Sequence, tokens: Sequence[int | None], kind: tuple, compiled_for: int
) -> object:
    """Run a chain of operations as the device's one kernel: nothing is made but its results.

    Where a chain of this kind is met first, it is compiled by examples of so many tokens: they and what comes of them
    are in `prepared`.
    """
    return _METER.get().fused(function, args, tokens, kind, compiled_for)


def _adds_in_place(func, args: Sequence) -> bool:
    """Whether this is autograd adding a gradient to one that nothing else refers to. It does so in place, but not below
    a mode that sees operations, nor on the meta device (torch/csrc/autograd/input_buffer.cpp, can_accumulate_inplace).

    A storage that one tensor refers to has two references here: the storage's Python object is the other.
    """
    if func is not aten.add.Tensor or torch._C._current_graph_task_id() < 0:
        return False
    if sys._getframe(2).f_code.co_name != "_engine_run_backward":  # but a backward pass written in Python
        return False
    storage = args[0].untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata) == 2 and _bytes(args[0]) <= storage.nbytes()


def _tensors(values: Iterable[object]) -> Iterator[torch.Tensor]:
    """Those among an operation's arguments or results, and in lists of them."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _factors(name, args: Sequence) -> tuple[torch.Tensor, torch.Tensor]:
    return args[:2] if name in (aten.mm, aten.bmm) else args[1:3]


def _product(a: torch.Tensor, b: torch.Tensor, made: torch.Tensor) -> tuple[int, ...]:
    """(m, n, k) of a product, or (batch, m, n, k) of a batch of them.

    Of a grouped one with a matrix a group over common rows the rows are taken to be shared out evenly.
    """
    if a.ndim == b.ndim == 3:
        return a.shape[0], a.shape[1], b.shape[2], a.shape[2]
    if a.ndim == b.ndim == 2 and made.ndim == 3:
        return made.shape[0], a.shape[0], b.shape[1], a.shape[1] // made.shape[0]
    if b.ndim == 3:
        return b.shape[0], a.shape[0] // b.shape[0], b.shape[2], a.shape[1]
    return a.shape[0], b.shape[1], a.shape[1]
