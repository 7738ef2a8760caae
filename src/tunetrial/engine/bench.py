"""One session of a deployment benchmark: everything loaded afresh, proven to answer alike, then timed in turns.

    found = session(asked, base, [Offer(arm="lora", adapters=(…), merged=…)], number=0)

Whatever slows the machine for a while slows all contenders alike: they take turns, in an order that the seed gives anew
for every round, and a turn begins with a request that is not timed, so that each contender meets caches as it would if
the machine were its own. The first quarter of the time warms up. Nothing is timed before all contenders of the same
weights were seen to give the same logits.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
import torch

from tunetrial import models
from tunetrial.core.deployment import Asked, Contender, Gate, Laps, Offer, Opened, Session, Work
from tunetrial.core.errors import ConfigError, IntegrityError
from tunetrial.core.records import digest
from tunetrial.engine import attention, blocks
from tunetrial.engine.attention import TOLERANCE
from tunetrial.engine.contenders import Answering, Engine, Rows, weights_bytes
from tunetrial.engine.line_up import LineUp
from tunetrial.engine.loop import does_not_fit
from tunetrial.engine.probe import Clock
from tunetrial.engine.streams import stream
from tunetrial.engine.torch_engine import DTYPES, TorchEngine
from tunetrial.models import PinnedModel
from tunetrial.store.speeds import processor

LAPS_A_TURN, FEWEST_ROUNDS, WARM_SHARE = 2, 3, 0.25

Turn = tuple[Contender, Answering]


def session(
    asked: Asked, base: PinnedModel, offers: Sequence[Offer], *, number: int, device: str | None = None
) -> Session:
    """Load, prove and time all contenders of a study's offers on one base.

    Of the time asked for each kind of request has an equal share; in it as many rounds are taken as there is time for,
    three at least, and equally many of every contender.

    Raises:
        ConfigError: Prompt and answer are longer than the base's context.
        DoesNotFitError: The device has no room for all contenders at once.
        IntegrityError: A contender does not compute what others of the same weights do, or makes other than the tokens
            asked for; nothing was timed then.
        ModelError: An adapter is refused, or does not fit the base.
    """
    place = torch.device(device) if device else TorchEngine().device
    shape, rng = models.shape(base.folder), np.random.default_rng(stream(asked.seed, f"bench {number}"))
    longest = max(work.prompt_tokens + work.new_tokens for work in asked.works)
    if longest > shape.context:
        of = f"the base's context of {shape.context}"
        raise ConfigError(f"bench: prompt and answer are longer than {of}, got {longest} tokens; ask for fewer")
    clock, others = Clock(place), _others()
    with does_not_fit("bench: all contenders at once"):
        line_up = LineUp(base, offers, DTYPES[asked.precision], clock, place)
        gates = prove(line_up, rng.integers(shape.vocabulary, size=(line_up.most_adapters * 2, 16)).tolist())
        peaks: dict[Contender, list[int | None]] = {contender: [] for contender in line_up.contenders}
        laps, turns = [], []
        for work in [asked.works[n] for n in rng.permutation(len(asked.works))]:
            own = [(c, answering) for c, answering in line_up.contenders.items() if takes(c, answering, work)]
            for contender, answering in own:
                peaks[contender].append(first_request(answering, work, rows(rng, shape.vocabulary, work)))
            made, order = race(own, work, asked.seconds / len(asked.works), clock, rng, shape.vocabulary)
            laps += made
            turns.append([str(work), *order])
        swaps = list(line_up.swaps())
    return Session(
        number=number,
        order_digest=digest(turns),
        laps=tuple(laps),
        opened=tuple(_opened(line_up, peaks)),
        swaps=tuple(swaps),
        gates=tuple(gates),
        facts={**_facts(line_up, place), "others": others()},
    )


def rows(rng: np.random.Generator, vocabulary: int, work: Work) -> list[list[int]]:
    """Prompts drawn for one request."""
    return rng.integers(vocabulary, size=(work.batch, work.prompt_tokens)).tolist()


def takes(contender: Contender, answering: Answering, work: Work) -> bool:
    """Whether a contender takes part: a batch is mixed from two adapters on."""
    return contender.setup != "mixed" or answering.adapters_of(work.batch) > 1


def prove(line_up: LineUp, given: Rows) -> list[Gate]:
    """Hold every contender's logits against those of the same weights by transformers and PEFT.

    Raises:
        IntegrityError: They are further apart than rounding in their dtype explains.
    """
    gates, tolerance = [], TOLERANCE[line_up.dtype]
    for contender, answering in line_up.contenders.items():
        owners = line_up.owners(contender, len(given))
        own = given[: len(owners)]
        expected = line_up.expected(contender, own, owners).double()
        found = answering.logits(own, owners).double()
        difference = float((found - expected).norm() / expected.norm())
        if not difference <= tolerance:
            got = f"got logits that differ by {difference:.1e} of their size"
            raise IntegrityError(
                f"bench: {contender.path} {contender.name} does not answer as the same weights elsewhere, {got}; "
                "do not deploy it, and report this"
            )
        gates.append(Gate(contender=contender, difference=difference, tolerance=tolerance))
    return gates


def first_request(answering: Answering, work: Work, given: Rows) -> int | None:
    """Answer a first time; bytes that this took beside the weights, None where the system does not tell.

    Raises:
        IntegrityError: The answer has other than the tokens asked for.
    """
    with _rise(answering.model) as rise:
        made = answering.answer(given, work.new_tokens)
    if [len(row) for row in made] != [work.new_tokens] * work.batch:
        got = f"got {sorted({len(row) for row in made})} in {len(made)} rows"
        raise IntegrityError(f"bench: {work}: an answer has other than the tokens asked for, {got}; report this")
    return rise()


def race(
    turns: Sequence[Turn], work: Work, seconds: float, clock: Clock, rng: np.random.Generator, vocabulary: int
) -> tuple[list[Laps], list[list[int]]]:
    """Time contenders in turns; their laps, and the order of every round."""
    taken: list[list[float]] = [[] for _ in turns]
    order: list[list[int]] = []
    gc.collect()
    began, warm = time.perf_counter(), True
    with _without_gc():
        while True:
            passed = time.perf_counter() - began
            if warm and order and passed >= WARM_SHARE * seconds:
                warm, first = False, len(order)
            if not warm and passed >= seconds and len(order) - first >= FEWEST_ROUNDS:
                break
            order.append(rng.permutation(len(turns)).tolist())
            given = rows(rng, vocabulary, work)
            for place in order[-1]:
                answer: Callable = turns[place][1].answer
                answer(given, work.new_tokens)
                laps = [clock.time(lambda: answer(given, work.new_tokens)) for _ in range(LAPS_A_TURN)]  # noqa: B023
                taken[place] += [] if warm else laps
    made = [
        Laps(contender=contender, work=work, adapters=answering.adapters_of(work.batch), laps_s=tuple(own))
        for (contender, answering), own in zip(turns, taken, strict=True)
    ]
    return made, order


@contextmanager
def _without_gc() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def _rise(model: torch.nn.Module) -> Iterator[Callable[[], int | None]]:
    """How far memory rises within, above what is held at the beginning; to be asked for afterwards."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    cuda = model.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    elif clear.exists():
        clear.write_text("5")
        before = psutil.Process().memory_info().rss

    def rise() -> int | None:
        if cuda:
            return torch.cuda.max_memory_allocated() - before
        if not clear.exists():
            return None
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return max(0, int(line.split()[1]) * 1024 - before)

    yield rise


def _opened(line_up: LineUp, peaks: dict[Contender, list[int | None]]) -> Iterator[Opened]:
    for contender, answering in line_up.contenders.items():
        held, seen = weights_bytes(answering.model), [one for one in peaks[contender] if one is not None]
        yield Opened(
            contender=contender,
            load_s=line_up.load_s[contender],
            weights_bytes=held,
            peak_bytes=held + max(seen) if seen else None,
        )


def _others() -> Callable[[], float]:
    """The share of all cores that other processes computed on, from now until it is asked for."""

    def computed() -> tuple[float, float]:
        every, own = psutil.cpu_times(), psutil.Process().cpu_times()
        waiting = every.idle + getattr(every, "iowait", 0.0)
        return sum(every) - waiting - own.user - own.system, sum(every)

    busy, passed = computed()

    def share() -> float:
        busy_now, passed_now = computed()
        return max(0.0, busy_now - busy) / max(passed_now - passed, 1e-9)

    return share


def _facts(line_up: LineUp, device: torch.device) -> dict[str, bool | int | float | str | None]:
    engines = [one for one in line_up.contenders.values() if isinstance(one, Engine)]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "dtype": str(line_up.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "attention": attention.way(engines[0].model),
        "blocks": "tunetrial" if blocks.fits(engines[0].model.base_model) else "transformers",
        "cuda_graphs": all(one.recorded for one in engines),
        **{name: version(name) for name in ("torch", "transformers", "peft")},
    }
