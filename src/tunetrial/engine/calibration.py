"""How fast the device at hand is: products, attention, copies and launches, timed as the engine has them.

    speed = calibrate("cpu", seconds=10)

Every case is warmed up, then all are timed in turns, round after round, and the median of each is taken: what slows the
machine for a while slows all of them alike. On a CPU it is the process's own time that counts, so that others beside it
count less; they still take of its caches (`Speed.load` says how many there were). On a GPU cases are recorded and
replayed, so that its time is measured and not the host's; what the host takes is measured apart. It claims nothing of a
device that slows down when warm, nor of dtypes that were not timed.
"""

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
import psutil
import torch
from scipy.optimize import least_squares
from torch.nn import functional

from tunetrial.core.speed import Curve, Products, Range, Speed
from tunetrial.engine.optimisers import optimiser
from tunetrial.engine.torch_engine import DTYPES, TorchEngine
from tunetrial.store.speeds import processor

# Tokens of a pass, (outputs, inputs) of its layers with a skinny pair of a low-rank one, elements of its activations,
# and (rows, heads, tokens, width) of its attention: of small bases on a CPU and of large ones on a GPU.
TOKENS = {"cpu": (64, 256, 1024), "cuda": (256, 2048, 8192)}
LAYERS = {
    "cpu": ((256, 256), (768, 256), (256, 768), (1024, 1024), (16, 256), (256, 16)),
    "cuda": ((1024, 1024), (4096, 4096), (8192, 2048), (2048, 8192), (16, 4096), (4096, 16)),
}
ELEMENTS = {"cpu": (2**8, 2**14, 2**17, 2**19, 2**22), "cuda": (2**8, 2**18, 2**21, 2**23, 2**25)}
ATTENTION = {"cpu": ((16, 4, 64, 64), (1, 4, 256, 64)), "cuda": ((16, 16, 256, 128), (2, 16, 4096, 128))}
# Units for products compute whole tiles: 16 rows of Intel's AMX (Architecture Instruction Set Extensions Reference,
# chapter 3); on a GPU at least 64 of a thread block (CUTLASS, Efficient GEMM in CUDA).
TILE = {"cpu": 16, "cuda": 64}
# A case is repeated until it takes so long, in so many rounds.
TIMED_S = 0.002
FEWEST_ROUNDS, MOST_ROUNDS = 3, 25
ADAMW_BYTES = 28  # of a weight in fp32: master, gradient and two moments are read, all but the gradient written


@dataclass(frozen=True)
class Case:
    """What is timed: a kernel of a kind in a dtype, by its shape (m, n, k) or (batch, m, n, k) if it is a product, with
    what it computes and moves."""

    kind: str
    dtype: str
    call: Callable[[], object]
    moved_bytes: float = 0.0
    operations: float = 0.0
    shape: tuple[int, ...] = ()


Timed = list[tuple[Case, float]]


def calibrate(device: str, *, seconds: float = 10.0) -> Speed:
    """Measure how fast a device is, in about so many seconds after CUDA is up, with 8 GB of a GPU's memory.

    On a CPU one thread computes, as one does in every worker.

    Args:
        device: "cpu" or "cuda".
    """
    place = torch.device(device)
    cuda, load = place.type == "cuda", psutil.getloadavg()[0] / (psutil.cpu_count() or 1)
    with one_thread(not cuda), torch.random.fork_rng(devices=[place] if cuda else []):
        torch.manual_seed(0)
        dtypes = _dtypes(place)
        cases = [*_moves(place, dtypes), *_moments(place)]
        for dtype in dtypes:
            cases += [*_layers(place, dtype), *_attention(place, dtype)]
        timed = _time(cases, place, seconds)
        launch_s = _launch_s(place) if cuda else 0.0
    fixed, curves, spread = _moved(timed)
    fits = {dtype: _fit(timed, dtype, curves["product"], TILE[place.type]) for dtype in dtypes}
    return Speed(
        device=torch.cuda.get_device_name(place) if cuda else processor(),
        kind=place.type,
        threads=None if cuda else 1,
        measured=True,
        date=datetime.now(UTC).date(),
        load=load,
        versions={"torch": version("torch")},
        products={dtype: fit.products for dtype, fit in fits.items()},
        attention_operations_per_s={
            f"attention {dtype}": statistics.median(c.operations / s for c, s in _of(timed, "attention", dtype))
            for dtype in dtypes
        },
        bytes_per_s=curves,
        fixed_s=fixed | {f"product {dtype}": fit.fixed_s for dtype, fit in fits.items()},
        launch_s=launch_s,
        recorded_launch_s=0.0,
        error=spread | {"product": _quartiles([ratio for fit in fits.values() for ratio in fit.ratios])},
    )


def _dtypes(device: torch.device) -> list[str]:
    """What trials on the device compute in natively, and fp32, by torch's names."""
    native = DTYPES[TorchEngine(device=device.type).precision()]
    return [str(dtype).removeprefix("torch.") for dtype in dict.fromkeys((native, torch.float32))]


def _layers(device: torch.device, dtype: str) -> Iterator[Case]:
    """Products of a layer forward and in both directions backward, and those of attention's heads over short rows."""
    made = lambda *shape: torch.randn(*shape, dtype=getattr(torch, dtype), device=device)  # noqa: E731
    for outputs, inputs in LAYERS[device.type]:
        weight = made(outputs, inputs)
        for tokens in TOKENS[device.type]:
            x, dy = made(tokens, inputs), made(tokens, outputs)
            calls = {
                (tokens, outputs, inputs): lambda x=x, w=weight: x @ w.T,
                (tokens, inputs, outputs): lambda dy=dy, w=weight: dy @ w,
                (outputs, inputs, tokens): lambda x=x, dy=dy: dy.T @ x,
            }
            for shape, call in calls.items():
                yield _product(shape, dtype, call)
    for rows, heads, tokens, size in ATTENTION[device.type][:1]:
        q, k = made(rows * heads, tokens, size), made(rows * heads, size, tokens)
        yield _product((rows * heads, tokens, tokens, size), dtype, lambda q=q, k=k: q @ k)
        p = made(rows * heads, tokens, tokens)
        yield _product((rows * heads, tokens, size, tokens), dtype, lambda p=p, q=q: p @ q)


def _product(shape: tuple[int, ...], dtype: str, call: Callable[[], object]) -> Case:
    *batch, m, n, k = shape
    many, size = math.prod(batch), getattr(torch, dtype).itemsize
    return Case("product", dtype, call, many * size * (m * k + k * n + m * n), many * 2 * m * n * k, shape)


def _attention(device: torch.device, dtype: str) -> Iterator[Case]:
    """Causal attention and its gradients: two products forward and five backward (Dao 2023, arXiv:2307.08691), of half
    of the scores."""
    for rows, heads, tokens, size in ATTENTION[device.type]:
        shape = rows, heads, tokens, size
        q, k, v = (torch.randn(shape, dtype=getattr(torch, dtype), device=device, requires_grad=True) for _ in range(3))

        def call(q=q, k=k, v=v):
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return torch.autograd.grad(mixed, (q, k, v), mixed.detach())

        yield Case("attention", dtype, call, operations=7 * rows * heads * tokens * tokens * size)


def _moves(device: torch.device, dtypes: Sequence[str]) -> Iterator[Case]:
    """What adds, multiplies, gates and copies, by how much it moves."""
    for dtype in dtypes:
        for count in ELEMENTS[device.type]:
            x, y = (torch.randn(count, dtype=getattr(torch, dtype), device=device) for _ in range(2))
            size = count * x.element_size()
            yield Case("elementwise", dtype, lambda x=x, y=y: x + y, 3 * size, count)
            yield Case("elementwise", dtype, lambda x=x, y=y: x * y, 3 * size, count)
            yield Case("elementwise", dtype, lambda x=x: functional.silu(x), 2 * size, count)
            yield Case("copy", dtype, lambda x=x: x.clone(), 2 * size, count)


def _moments(device: torch.device) -> Iterator[Case]:
    """Steps of the optimiser that trials are trained by."""
    for count in ELEMENTS[device.type]:
        weight = torch.randn(count, device=device)
        weight.grad = torch.randn_like(weight)
        yield Case("optimiser", "float32", optimiser([{"params": [weight]}], bits=32).step, ADAMW_BYTES * count, count)


def _time(cases: Sequence[Case], device: torch.device, seconds: float) -> Timed:
    """The median time of each case over rounds through all of them, until the time is up."""
    began, turns = time.perf_counter(), []
    clock = Watch(device)
    for case in cases:
        case.call()
        once = min(clock.time(case.call) for _ in range(2))
        repeats = max(1, min(50, math.ceil(TIMED_S / once)))
        turns.append((case, _repeated(case, repeats, device), repeats))
    found = defaultdict(list)
    for number in range(MOST_ROUNDS):
        if number >= FEWEST_ROUNDS and time.perf_counter() - began > seconds:
            break
        for place, (_, run, repeats) in enumerate(turns):
            found[place].append(clock.time(run) / repeats)
    return [(case, statistics.median(found[place])) for place, (case, _, _) in enumerate(turns)]


def _repeated(case: Case, repeats: int, device: torch.device) -> Callable[[], object]:
    """A call again and again; on CUDA recorded, so that launches do not count, but for the optimiser's, which is not
    recorded in training either."""
    call = case.call
    if device.type == "cuda" and case.kind != "optimiser":
        beside, recorded = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        with torch.cuda.stream(beside):  # libraries prepare themselves once a stream, which cannot be recorded
            beside.wait_stream(torch.cuda.default_stream())
            call()
        torch.cuda.synchronize()
        with torch.cuda.graph(recorded, stream=beside):
            for _ in range(repeats):
                call()
        return recorded.replay

    def run() -> None:
        for _ in range(repeats):
            call()

    return run


def _launch_s(device: torch.device, *, launches: int = 2000) -> float:
    """What the host takes to launch one of many kernels with its gradient kept, so small that the device waits."""
    x = torch.zeros(8, device=device, requires_grad=True)

    def chain() -> None:
        y = x
        for _ in range(launches):
            y = y + x

    chain()
    return statistics.median(Watch(device).time(chain) for _ in range(5)) / launches


class Watch:
    """Seconds of a call: on a CPU those that the process itself computed; on a GPU those that passed, its queue empty
    before and after."""

    def __init__(self, device: torch.device):
        self.wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        self.now = time.perf_counter if device.type == "cuda" else time.process_time

    def time(self, call: Callable[[], object]) -> float:
        self.wait()
        began = self.now()
        call()
        self.wait()
        return self.now() - began


def _of(timed: Timed, kind: str, dtype: str) -> Timed:
    return [(case, seconds) for case, seconds in timed if (case.kind, case.dtype) == (kind, dtype)]


def _moved(timed: Timed) -> tuple[dict[str, float], dict[str, Curve], dict[str, Range]]:
    """Fixed times, bytes a second by bytes, and how far kernels of a kind lie from that, by kind and dtype.

    The fixed time is that of the smallest. Of kernels over equally many elements the rate is the geometric mean.
    """
    fixed, curves, ratios = {}, {}, defaultdict(list)
    for kind, dtype in sorted({(c.kind, c.dtype) for c, _ in timed if c.kind in ("elementwise", "copy", "optimiser")}):
        own, name = _of(timed, kind, dtype), f"{kind} {dtype}"
        least = min(case.operations for case, _ in own)
        fixed[name] = statistics.median(seconds for case, seconds in own if case.operations == least)
        rates, points = defaultdict(list), {}
        for case, seconds in own:
            rates[case.operations].append(
                (case.moved_bytes, case.moved_bytes / max(seconds - fixed[name], seconds / 3))
            )
        for _, found in sorted(rates.items())[1:]:
            size, rate = (statistics.geometric_mean(column) for column in zip(*found, strict=True))
            points[size] = rate
            ratios[kind] += [rate / one for _, one in found]
        curves[name] = Curve(points=tuple(points.items()))
    for kind in ("elementwise", "copy", "optimiser"):  # of dtypes that were not timed: as in float32, byte by byte
        fixed[kind], curves[kind] = fixed[f"{kind} float32"], curves[f"{kind} float32"]
    curves["product"] = curves["copy"]
    return fixed, curves, {kind: _quartiles(found) for kind, found in ratios.items()}


@dataclass(frozen=True)
class Fit:
    """How fast products of a dtype are, their fixed time, and measured over fitted times."""

    products: Products
    fixed_s: float
    ratios: list[float]


def _fit(timed: Timed, dtype: str, memory: Curve, tile: int) -> Fit:
    """The rate, half sizes and fixed time by which products' times are least off, in logarithms; far ones count less
    (least squares with a soft l1 loss)."""
    own = _of(timed, "product", dtype)
    taken = np.array([seconds for _, seconds in own])
    moved = np.array([case.moved_bytes / memory.at(case.moved_bytes) for case, _ in own])
    best = max(case.operations / seconds for case, seconds in own)

    def products(at: np.ndarray) -> Products:
        return Products(operations_per_s=best * math.exp(at[0]), halves=tuple(np.exp(at[2:])), tile=tile)

    def seconds(at: np.ndarray) -> np.ndarray:
        computed = np.array([products(at).seconds(case.shape) for case, _ in own])
        return np.maximum(computed, moved) + math.exp(at[1])

    start = np.array([0.0, math.log(taken.min() / 2), *[math.log(8.0)] * 3])
    low, high = [-3, math.log(1e-8), *[math.log(0.01)] * 3], [3, math.log(taken.min() * 1.1), *[math.log(4096)] * 3]
    found = least_squares(
        lambda at: np.log(seconds(at) / taken), start, bounds=(low, high), loss="soft_l1", f_scale=0.1
    ).x
    return Fit(products(found), math.exp(found[1]), list(taken / seconds(found)))


def _quartiles(ratios: Sequence[float]) -> Range:
    """Between which half of the ratios lie: sums over many kernels stay nearer to their middle than one kernel does."""
    first, middle, third = statistics.quantiles(ratios, n=4)
    return Range(low=first, high=third, likely=middle)


@contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """Compute in one thread, where that is wanted, and then in as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if wanted else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
