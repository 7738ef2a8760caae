"""B11, ranks: what tuning the rank of LoRA on validation would find, and what it would take. Nothing is trained.

    python benchmarks/b11_ranks.py

Four ranks (8, 16, 32, 64), each at its own best rate, gain so much accuracy with every doubling. Runs have the luck of
`b11_adaptive`: a seed's 0.01 and 0.02 of validation rows (SD), half of it shared between a quarter of the steps and
the end. Either the best mean of three whole runs wins, or, at rungs, the two best of four by three runs of a quarter go
on to the end. What a search of rates at rungs takes is 5.4 whole runs.
"""

import math

import numpy as np

from b11_adaptive import SAME_LUCK, VALIDATION_SD
from tunetrial.plan.halving import SHARE

RANKS, SEEDS, DRAWS, GAINS = (8, 16, 32, 64), 3, 100_000, (0.0, 0.0025, 0.005, 0.01)
RUN_SD = math.hypot(0.01, VALIDATION_SD)
RUNS = {"whole": len(RANKS) * SEEDS, "rungs": SEEDS * (len(RANKS) * SHARE + 2 * (1 - SHARE))}


def chosen(gain: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The place of the rank that wins, shape (draws,), by whole runs and at rungs."""
    truth_K = gain * np.arange(len(RANKS))
    shared, own = (rng.standard_normal((DRAWS, len(RANKS), SEEDS)) for _ in range(2))
    ends_DK = (truth_K[:, None] + RUN_SD * (SAME_LUCK**0.5 * shared + (1 - SAME_LUCK) ** 0.5 * own)).mean(axis=2)
    early = rng.standard_normal(shared.shape)
    rungs_DK = (truth_K[:, None] + RUN_SD * (SAME_LUCK**0.5 * shared + (1 - SAME_LUCK) ** 0.5 * early)).mean(axis=2)
    going_on_DK = np.argsort(np.argsort(-rungs_DK, axis=1), axis=1) < 2
    return {"whole": ends_DK.argmax(axis=1), "rungs": np.where(going_on_DK, ends_DK, -np.inf).argmax(axis=1)}


def main() -> None:
    rng = np.random.default_rng(20_261_122)
    print("| gain a doubling | way | whole runs | rank 64 wins | gained over rank 16 | at most to gain |")
    print("|---|---|---|---|---|---|")
    for gain in GAINS:
        for way, place_D in chosen(gain, rng).items():
            gained, best = gain * (place_D.mean() - 1), gain * 2
            share = (place_D == len(RANKS) - 1).mean()
            print(f"| {gain} | {way} | {RUNS[way]:g} | {share:.0%} | {gained:.4f} | {best:.4f} |")


if __name__ == "__main__":
    main()
