"""What the tiny real studies of B11 count, and that the page says what the file says."""

import json
import math

import pytest

import b11_counts
import b11_real
import table


def a_row(*, grid, rungs, judged, steps=(100, 30)):
    """A study whose arms have these rates by either way, and these scores there: (full, LoRA) each."""
    row = {}
    for place, arm in enumerate(("full", "lora")):
        row[f"grid, {arm}"] = {
            "rate": grid[place],
            "steps": steps[0],
            "apart": 0.5,
            "top": 1e-3,
            "moved": 0.3,
            "judged": [],
        }
        row[f"rungs, {arm}"] = {"rate": rungs[place], "steps": steps[1], "expected": 0.01, "judged": []}
        for way in ("grid", "rungs"):
            row[f"{way}, {arm}"]["judged"] = [judged[way][place]] * 3
    return row


def test_counts_by_hand():
    alike = a_row(grid=(1e-3, 1e-2), rungs=(3.16e-3, 1e-2), judged={"grid": (0.6, 0.7), "rungs": (0.5, 0.7)})
    turned = a_row(grid=(1e-3, 1e-2), rungs=(1e-3, 1e-3), judged={"grid": (0.6, 0.7), "rungs": (0.7, 0.6)})
    close = a_row(grid=(1e-3, 1e-2), rungs=(1e-3, 1e-2), judged={"grid": (0.6, 0.61), "rungs": (0.61, 0.6)})
    made = b11_counts.count([alike, turned, close], margin=0.05)
    assert made["studies"] == 3 and made["steps"] == {"mean": 0.3, "least": 0.3, "most": 0.3}
    assert (made["near"]["hits"], made["near"]["of"]) == (5, 6) and made["apart"]["hits"] == 6
    assert (made["ranking"]["hits"], made["ranking"]["of"], made["turned"]) == (1, 2, 1)
    assert made["lost"]["mean"] == pytest.approx(0.05 / 3, abs=1e-4) and made["lost"]["low"] < 0 < made["lost"]["high"]
    assert made["away"]["grid"] == {"mean": 0.5, "rms": 0.7071} and made["away"]["rungs"]["mean"] == 0.4166
    assert made["moved"] == {"mean": 0.3, "low": 0.3, "high": 0.3, "rms": 0.3, "of": 6} and made["expected"] == 0.01


def test_a_study_of_which_a_judged_run_diverged_is_not_judged():
    good = a_row(grid=(1e-3, 1e-2), rungs=(1e-3, 1e-2), judged={"grid": (0.6, 0.7), "rungs": (0.6, 0.7)})
    lost = a_row(grid=(1e-3, 1e-2), rungs=(1e-3, 1e-2), judged={"grid": (0.6, 0.7), "rungs": (None, 0.7)})
    made = b11_counts.count([good, good, lost], margin=0.05)
    assert made["ranking"]["of"] == 2 and made["near"]["of"] == 6 and made["accuracy"] == 0.65


def test_a_study_can_be_searched_from_its_runs_alone_and_says_which_is_missing():
    """Of planted runs whose best rate is the middle of the grid: both searches find it, at what each would take."""
    setting = b11_real.Setting.drawn(0)
    centre = {arm: b11_real.grid(setting.lock(600_000), arm)[2] for arm in b11_real.ARMS}
    asked = []

    def plant(trials):
        for trial in trials:
            asked.append(trial)
            score = 0.8 - 0.2 * math.log10(trial.learning_rate / centre[trial.arm.name]) ** 2 + 1e-4 * trial.seed % 0.01
            taken = trial.stop(setting.steps)
            end = score if trial.share is None else None
            key = setting.number, trial.arm.name, trial.learning_rate, trial.seed, 600_000, setting.steps
            yield b11_real.Run(*key, taken, score - 0.1, end, diverged=False)

    row = b11_real.carry_out(world := b11_real.World(setting, [], 600_000, plant))
    for arm in b11_real.ARMS:
        grid, rungs = row[f"grid, {arm}"], row[f"rungs, {arm}"]
        assert grid["rate"] == pytest.approx(centre[arm]) and grid["steps"] == 18 * setting.steps
        assert rungs["rate"] == pytest.approx(centre[arm], rel=0.05)
        assert rungs["steps"] == 11 * setting.steps / 4 + 3 * setting.steps * 3 / 4
    runs = list(world.runs.values())
    assert b11_real.complete({setting.number: runs}) == [row]
    assert b11_real.complete({setting.number: runs[:-1]}) == []


def test_the_page_has_the_counts_of_the_file():
    made = json.loads(b11_real.SUMMARY.read_text(encoding="utf-8"))
    page = table.README.read_text(encoding="utf-8")
    assert b11_counts.said(made) in page, "put what `python benchmarks/b11_real.py --count` prints into the page"
