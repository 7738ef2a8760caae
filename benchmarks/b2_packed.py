"""B2: K adapters trained at once over one base, against one after the other.

    python benchmarks/b2_packed.py --device cuda --cases "1.1B, 512"
    python benchmarks/b2_packed.py --small

Rows are all of one length, 16 a step and adapter, and are read by a head, so that neither padding nor a vocabulary's
logits has a part in it. `adapter_step_s` is the time of a step over the number of adapters that took it.
"""

from dataclasses import replace

import lengths
import ours
import peers
import shapes
from contest import OURS, Benchmark, Case, Measured, Options, Target
from laps import Laps

SOLO, LOOP, LOOP_BF16 = f"{OURS}, K = 1", "PEFT loop, fp32 adapters", "PEFT loop, bf16 adapters"
LABELS = ("no", "yes")
RANK, BATCH = 16, 16


def packed(members: int) -> str:
    return f"{OURS}, K = {members}"


def case(shape: str, tokens: int, members: tuple[int, ...], *targets: Target, **laps: int) -> Case:
    packs = tuple(packed(k) for k in members)
    work = {"shape": shape, "tokens": tokens, "batch": BATCH, "rank": RANK} | laps
    of_packs = tuple(replace(target, of=packs[1:]) for target in targets)
    return Case(f"{shape}, {tokens} tokens an adapter-step", work, (*packs, LOOP, LOOP_BF16), of_packs)


def over_peft(reach: float | None, predicted: float) -> Target:
    against = (LOOP, LOOP_BF16)
    return Target("against PEFT's loop", "speed-up", reach, None, predicted, measure="adapter_step_s", against=against)


def over_solo(reach: float | None, predicted: float) -> Target:
    return Target("against solo", "speed-up", reach, None, predicted, measure="adapter_step_s", against=(SOLO,))


GPU = (
    case("1.1B", 512, (1, 4, 8, 16, 32), over_peft(5, 6.0), over_solo(3, 3.0)),
    case("7B", 1024, (1, 4, 8), over_peft(2.5, 2.2)),
    case("1.1B", 256, (1, 8, 16, 32), over_peft(None, 9.0), over_solo(None, 4.5)),
    case("1.1B", 1024, (1, 4, 8, 16), over_peft(None, 3.5), over_solo(None, 1.8)),
    case("1.1B", 4096, (1, 4, 8), over_peft(None, 1.8), over_solo(None, 1.1)),
    case("7B", 256, (1, 8, 16), over_peft(None, 4.5), over_solo(None, 3.0)),
)
CPU = (case("embedded", 512, (1, 4, 8), over_peft(None, 1.8), over_solo(None, 1.1), warm=2, blocks=3, block=2),)
SMALL = (case("tiny", 256, (1, 2), over_peft(None, 1.0), warm=1, blocks=2, block=1),)


def prepared(case: Case, options: Options):
    work = case.work
    laps = Laps(options.device, warm=work.get("warm", 6), blocks=work.get("blocks", 3), block=work.get("block", 4))
    folder = shapes.base(work["shape"], options.folder, options.device)
    tokenizer = peers.AutoTokenizer.from_pretrained(folder)
    sizes = [(work["tokens"] // BATCH, 0)] * (laps.steps * BATCH)
    rows = lengths.examples(tokenizer, sizes, labels=LABELS)
    return laps, folder, lengths.task("dense", rows, kind="classify", labels=LABELS)


def by_tunetrial(case: Case, options: Options, *, members: int, method: str = "lora") -> Measured:
    """Adapters that differ in seed and rate."""
    laps, _, data = prepared(case, options)
    held = ours.session(case.work["shape"], options)
    trials = [
        ours.trial(method, {"rank": RANK}, precision=held.precision, seed=1 + k, rate=1e-4 * (1 + k))
        for k in range(members)
    ]
    pack = ours.train(held, trials, data, laps)
    found = ours.measured(pack, laps, work=case.work, method=method, device=options.device)
    return {"adapter_step_s": found["step_s"] / members, **found}


def by_peft(case: Case, options: Options, *, adapters: str, method: str = "lora") -> Measured:
    """One adapter's steps in a bare loop; K of them one after the other take K times as long."""
    laps, folder, data = prepared(case, options)
    rows = peers.token_rows(folder, data, batch=BATCH)
    config = peers.lora_config(data, rank=RANK, targets=peers.ALL_LINEAR)
    loaded = peers.adapted(peers.model(folder, method, data, options.device), method, config)
    peers.bare_loop(loaded, rows, laps, batch=BATCH, device=options.device, adapters=adapters)
    settings = peers.described(loaded) | {"autocast": adapters == "fp32"}
    found = peers.measured(laps, settings, work=case.work, method=method, device=options.device)
    return {"adapter_step_s": found["step_s"], **found}


def pack_of(members: int):
    return lambda case, options: by_tunetrial(case, options, members=members)


BENCHMARK = Benchmark(
    "B2",
    "Adapters trained together over one base",
    {"cuda": GPU, "cpu": CPU, "small": SMALL},
    {packed(k): pack_of(k) for k in (1, 2, 4, 8, 16, 32)}
    | {
        LOOP: lambda case, options: by_peft(case, options, adapters="fp32"),
        LOOP_BF16: lambda case, options: by_peft(case, options, adapters="bf16"),
    },
)

if __name__ == "__main__":
    BENCHMARK.main(__file__)
