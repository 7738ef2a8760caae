"""B6: what an adapter beside the base costs where text is written, one row at a time.

    python benchmarks/b6_decode.py --device cuda
    python benchmarks/b6_decode.py --small

128 tokens after a prompt of 128; `token_s` is the time of a token after the first, of a request as it is made. Merged
and separate run in the same engine and take turns; PEFT runs as its documentation has it, its adapter unmerged.
"""

import deployed
from contest import OURS, Benchmark, Case, Measured, Options, Target

MERGED, SEPARATE, PEFT = f"{OURS}, merged", f"{OURS}, separate", "PEFT eager"


def case(shape: str, adapted: str, price: tuple, peer: tuple, *, written: int = deployed.WRITTEN) -> Case:
    """`price` and `peer` are what is to be reached, aimed at and predicted."""
    work = {"shape": shape, "adapted": adapted, "adapters": 1, "batch": 1, "written": written}
    targets = (
        Target("separate against merged", "price", *price, measure="token_s", of=(SEPARATE,), against=(MERGED,)),
        Target("token against PEFT", "speed-up", *peer, measure="token_s", of=(SEPARATE,), against=(PEFT,)),
    )
    return Case(f"{shape}, {adapted}, one row", work, (MERGED, SEPARATE, PEFT), targets)


GPU = (
    case("1.1B", "q,v r8", (0.05, None, 0.02), (10, None, 18.0)),
    case("1.1B", "all-linear r16", (0.15, 0.10, 0.10), (10, None, 22.0)),
    case("8B", "q,v r8", (0.025, None, 0.01), (3.5, None, 5.0)),
    case("8B", "all-linear r16", (0.08, 0.05, 0.05), (3.5, None, 6.0)),
)
CPU = (
    case("embedded", "q,v r8", (None, None, 0.02), (None, None, 1.1), written=32),
    case("embedded", "all-linear r16", (None, None, 0.3), (None, None, 1.2), written=32),
)
SMALL = (case("tiny", "q,v r8", (None, None, 0.05), (None, None, 1.1), written=4),)
MADE: dict[str, dict[str, Measured]] = {}


def by_tunetrial(case: Case, options: Options, name: str) -> Measured:
    """Both are measured when the first of them is asked for."""
    if case.name not in MADE:
        held = deployed.bench(case, options)
        both = {MERGED: held.merged(), SEPARATE: held.separate()}
        MADE[case.name] = deployed.in_turns(both, held, case.work["written"])
    return MADE[case.name][name]


def by_peft(case: Case, options: Options) -> Measured:
    held = deployed.bench(case, options)
    return deployed.in_turns({PEFT: held.eager()}, held, case.work["written"] // 4)[PEFT]


BENCHMARK = Benchmark(
    "B6",
    "An adapter beside the base, a token of one row",
    {"cuda": GPU, "cpu": CPU, "small": SMALL},
    {
        MERGED: lambda case, options: by_tunetrial(case, options, MERGED),
        SEPARATE: lambda case, options: by_tunetrial(case, options, SEPARATE),
        PEFT: by_peft,
    },
)

if __name__ == "__main__":
    BENCHMARK.main(__file__)
