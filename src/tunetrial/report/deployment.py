"""How long deployments take: tables and sentences of what was timed; computes no statistics."""

from collections.abc import Iterable, Iterator

from tunetrial.core.deployment import Contender, Deployment, Ratio, Timing, Work

GIB, WIDTH = 2**30, 24
READ = ("separate", "full")  # of the other setups the tables say enough


def text(found: Deployment) -> str:
    """A table a kind of request, what it takes to have contenders in memory, and sentences."""
    parts = [_heading(found)]
    for work in dict.fromkeys(timing.work for timing in found.timings):
        parts.append("\n".join(_work(found, work)))
    parts.append("\n".join(_footprints(found)))
    if found.swaps:
        parts.append("\n".join(_swaps(found)))
    parts.append("\n".join(readings(found)))
    return "\n\n".join(parts) + "\n"


def readings(found: Deployment) -> Iterator[str]:
    """What separate adapters and full models cost beside merged ones, on each path, and what the framework does, in a
    sentence each."""
    for ratio in found.setup_ratios:
        if ratio.contender.setup in READ:
            of = f"{ratio.contender.path} {ratio.contender.name}"
            yield f"{of} takes {_said(ratio)} {ratio.against.name} at {ratio.work}: {ratio.pace}"
    for ratio in found.path_ratios:
        if ratio.contender.setup in ("merged", "separate"):
            yield f"engine {ratio.contender.name} takes {_said(ratio)} eager at {ratio.work}: {ratio.pace}"


def _said(ratio: Ratio) -> str:
    return f"{ratio.ratio:.2f} ×{_ends(ratio)}"


def _ends(ratio: Ratio) -> str:
    return "" if ratio.low is None else f" ({ratio.low:.2f} to {ratio.high:.2f})"


def _heading(found: Deployment) -> str:
    facts, asked = found.facts, found.asked
    lines = [
        f"Deployments of {asked.base} on {facts['device']}, {facts['dtype']}, {facts['threads']} threads",
        f"{asked.sessions} sessions (process starts) of about {asked.seconds:g} s, order by seed {asked.seed}; "
        f"SAME is within {found.margin:.0%}",
        "Ratios have intervals over sessions; each stands for itself, none is adjusted for there being many.",
    ]
    if asked.sessions == 1:
        lines.append("One session has no interval: nothing can be told from it; ask for more with --sessions.")
    if (load := facts.get("load")) and load > 0.5:
        lines.append(f"The machine was busy ({load:.2g} processes a core): measure again when it is idle.")
    return "\n".join(lines)


def _work(found: Deployment, work: Work) -> Iterator[str]:
    unit = "answers/s" if work.new_tokens == 1 else "tokens/s"
    yield f"{str(work)[0].upper()}{str(work)[1:]}"
    yield f"  {'':<{WIDTH}} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} {unit:>9}  × merged"
    ratios = {(one.contender, one.work): one for one in found.setup_ratios}
    for path in ("eager", "engine"):
        for timing in found.timings:
            if timing.work == work and timing.contender.path == path:
                yield _row(timing, ratios.get((timing.contender, work)))


def _row(timing: Timing, ratio: Ratio | None) -> str:
    times = " ".join(f"{_ms(seconds):>8}" for seconds in (timing.p50_s, timing.p95_s, timing.p99_s))
    against = "" if ratio is None else f"{ratio.ratio:.2f}{_ends(ratio)} {ratio.pace}"
    return f"  {_name(timing)} {times} {timing.per_s:>9.4g}  {against}".rstrip()


def _name(timing: Timing) -> str:
    many = f" of {timing.adapters}" if timing.contender.setup == "mixed" else ""
    return _short(timing.contender, many)


def _short(contender: Contender, more: str = "") -> str:
    name = f"{contender.path} {contender.name}{more}"
    return f"{name if len(name) <= WIDTH else f'{name[: WIDTH - 1]}…':<{WIDTH}}"


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.4g}"


def _footprints(found: Deployment) -> Iterator[str]:
    yield f"  {'':<{WIDTH}} {'load s':>9} {'weights':>10} {'peak':>10} {'on disk':>10}"
    for path in ("eager", "engine"):
        for one in (one for one in found.footprints if one.contender.path == path):
            held = (one.weights_bytes, one.peak_bytes, one.artifact_bytes)
            sizes = " ".join(f"{'–' if size is None else _size(size):>10}" for size in held)
            yield f"  {_short(one.contender)} {one.load_s:>9.3g} {sizes}"


def _swaps(found: Deployment) -> Iterable[str]:
    yield "From one adapter to another: resident beside it, from the host's memory, from disk"
    for swap in found.swaps:
        name = _short(Contender(setup="swapped", path=swap.path, arm=swap.arm))
        yield f"  {name} {swap.where:<9} {1e3 * swap.swap_s:.2g} ms"


def _size(size: int) -> str:
    return f"{size / GIB:.3g} GiB" if size >= GIB else f"{size / 2**20:.3g} MiB"
