"""B7: a batch in which every row has an adapter of its own, against the same batch of one merged model.

    python benchmarks/b7_mixed.py --device cuda
    python benchmarks/b7_mixed.py --small

Reading as many adapters takes at least their share of the bytes that a token takes ("byte floor"); what is allowed is
that and 8 points.
"""

import deployed
from contest import OURS, Benchmark, Case, Measured, Options, Target

MERGED, MIXED, PEFT = f"{OURS}, merged", f"{OURS}, mixed", "PEFT, adapter_names batch"
ROWS = 32
POINTS = 0.08


def case(shape: str, adapted: str, rows: int, peer: float | None, *, written: int) -> Case:
    work = {"shape": shape, "adapted": adapted, "adapters": rows, "batch": rows, "written": written}
    floor = deployed.adapter_share(shape, adapted, rows)
    reach = floor + POINTS if peer else None
    told = {"measure": "token_s", "of": (MIXED,)}
    targets = (
        Target(
            f"mixed against merged (byte floor {floor:.0%})", "price", reach, None, floor, against=(MERGED,), **told
        ),
        Target("token against adapter_names", "speed-up", peer, None, 20.0, against=(PEFT,), **told),
    )
    return Case(f"{shape}, {adapted}, {rows} rows of {rows} adapters", work, (MERGED, MIXED, PEFT), targets)


GPU = (
    case("1.1B", "q,v r8", ROWS, 8.0, written=128),
    case("1.1B", "all-linear r16", ROWS, 8.0, written=128),
    case("8B", "q,v r8", ROWS, 8.0, written=64),
)
CPU = (case("embedded", "q,v r8", 8, None, written=32),)
SMALL = (case("tiny", "q,v r8", 4, None, written=4),)
MADE: dict[str, dict[str, Measured]] = {}


def by_tunetrial(case: Case, options: Options, name: str) -> Measured:
    """Both are measured when the first of them is asked for."""
    if case.name not in MADE:
        held = deployed.bench(case, options)
        both = {MERGED: held.merged(), MIXED: held.separate()}
        MADE[case.name] = deployed.in_turns(both, held, case.work["written"])
    return MADE[case.name][name]


def by_peft(case: Case, options: Options) -> Measured:
    held = deployed.bench(case, options)
    return deployed.in_turns({PEFT: held.eager()}, held, max(2, case.work["written"] // 16))[PEFT]


BENCHMARK = Benchmark(
    "B7",
    "Every row with an adapter of its own",
    {"cuda": GPU, "cpu": CPU, "small": SMALL},
    {
        MERGED: lambda case, options: by_tunetrial(case, options, MERGED),
        MIXED: lambda case, options: by_tunetrial(case, options, MIXED),
        PEFT: by_peft,
    },
)

if __name__ == "__main__":
    BENCHMARK.main(__file__)
