"""B10: what storing the base in NF4 costs a step, by how many tokens of packed adapters it is dequantised for.

    python benchmarks/b10_nf4.py --device cuda
    python benchmarks/b10_nf4.py --small

Same rows and adapters as in B2. The price is the time of a step over that of the same step on the base in bf16.
"""

from b2_packed import BATCH, RANK, by_peft, by_tunetrial
from contest import OURS, Benchmark, Case, Target

NF4, BF16, BITSANDBYTES = f"{OURS}, NF4", f"{OURS}, bf16", "PEFT + bitsandbytes"


def case(shape: str, tokens: int, members: int, reach: float | None, predicted: float, **laps: int) -> Case:
    work = {"shape": shape, "tokens": tokens, "batch": BATCH, "rank": RANK, "members": members} | laps
    told = {"measure": "adapter_step_s", "of": (NF4,)}
    price = Target("price of NF4", "price", reach, None, predicted, against=(BF16,), **told)
    peer = Target("against bitsandbytes", "speed-up", None, None, 1.5 * members**0.5, against=(BITSANDBYTES,), **told)
    return Case(f"{shape}, {members} × {tokens} tokens", work, (BF16, NF4, BITSANDBYTES), (price, peer))


GPU = (
    case("7B", 256, 16, 0.05, 0.06),
    case("7B", 1024, 8, 0.05, 0.03),
    case("7B", 1024, 4, 0.05, 0.06),
    case("7B", 1024, 1, None, 0.25),
    case("7B", 256, 1, None, 0.6),
)
SMALL = (case("tiny", 256, 1, None, 0.5, warm=1, blocks=2, block=1),)


def ours_on(method: str):
    return lambda case, options: by_tunetrial(case, options, members=case.work["members"], method=method)


BENCHMARK = Benchmark(
    "B10",
    "The price of NF4 by packed tokens",
    {"cuda": GPU, "cpu": (), "small": SMALL},
    {
        BF16: ours_on("lora"),
        NF4: ours_on("qlora"),
        BITSANDBYTES: lambda case, options: by_peft(case, options, adapters="fp32", method="qlora"),
    },
)

if __name__ == "__main__":
    BENCHMARK.main(__file__)
