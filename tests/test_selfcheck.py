"""The self-check: it passes as the lab is, and a lab that is broken on purpose is caught, with the part named."""

import inspect
import json
import os
import subprocess
import sys

import pytest
from scipy.stats import binom
from typer.testing import CliRunner

from tunetrial import cli
from tunetrial.analysis import fairness, stats, verdict
from tunetrial.core.study import Tuning
from tunetrial.store import trial
from tunetrial.trial import safeguards, selfcheck, simulated

SELFCHECK = [sys.executable, "-c", "from tunetrial.cli import main; main()", "selfcheck"]


@pytest.fixture
def brief(monkeypatch):
    """A self-check in this process without trainings, of few draws and few kinds; returns what it found."""
    monkeypatch.setattr(selfcheck, "DRAWS", 200)
    monkeypatch.setattr(safeguards, "trained", lambda seed: ())

    def check(studies: int = 1, seed: int = 0, *, kinds: tuple[str, ...] = ("equal arms",)) -> selfcheck.SelfCheck:
        monkeypatch.setattr(selfcheck, "SHARES", dict.fromkeys(kinds, 1 / len(kinds)))
        return selfcheck.selfcheck(studies=studies, seed=seed, processes=1)

    return check


@pytest.fixture(scope="module")
def found():
    """A self-check of one study of each kind, without trainings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selfcheck, "DRAWS", 200)
        patch.setattr(safeguards, "trained", lambda seed: ())
        return selfcheck.selfcheck(studies=1, processes=1)


def failing(found: selfcheck.SelfCheck) -> set[str]:
    return {finding.what for finding in found.findings if finding.holds is False}


def test_a_sound_lab_passes_with_every_kind_of_study(found):
    assert found.failed == () and set(found.kinds) == set(selfcheck.KINDS)
    assert found.studies == len(selfcheck.KINDS) == sum(tally.studies for tally in found.kinds.values())
    assert selfcheck.SelfCheck.model_validate_json(found.model_dump_json()) == found


def test_it_is_the_same_twice_and_another_seed_counts_anew(brief):
    first, again, other = brief(), brief(), brief(seed=1)
    assert first == again and first.findings != other.findings


def test_the_table_fits_80_columns_and_ends_with_one_sentence(found):
    *table, empty, sentence = str(found).splitlines()
    assert all(len(line) <= 80 for line in table) and empty == ""
    assert sentence == "All holds: on planted truth this installation errs no more often than it says."
    assert all(line.endswith(" ok") for line in table[1:] if "told, no bound" not in line)


def test_bounds_are_those_that_an_exact_lab_exceeds_in_one_of_twenty_self_checks(found):
    counted = [finding for finding in found.findings if finding.most is not None]
    exceeded = [binom.sf(finding.most, finding.of, finding.nominal) for finding in counted]
    assert sum(exceeded) <= 0.05 and all(
        binom.sf(finding.most - 1, finding.of, finding.nominal) > 0.05 / len(counted) for finding in counted
    )
    assert {finding.nominal for finding in counted} == {0.05, 0.2}


def test_an_interval_of_half_its_length_is_caught(brief, monkeypatch):
    whole = stats.Components.se.fget
    monkeypatch.setattr(stats.Components, "se", property(lambda parts: whole(parts) / 2))
    found = brief()
    assert {"drawn: equal, called BETTER or WORSE", "drawn: intervals without the truth"} <= failing(found)
    assert found.sentence == "Do not trust the words of verdicts or intervals of this installation."
    assert str(found).splitlines()[-1] == found.sentence and " NO" in str(found)


def test_levels_that_are_too_mild_are_caught(brief, monkeypatch):
    real = verdict.per_look
    monkeypatch.setattr(verdict, "per_look", lambda alpha, looks, *, sides: real(3 * alpha, looks, sides=sides))
    assert brief().failed == ("verdicts",)


def test_a_lab_that_never_tells_is_caught(brief, monkeypatch):
    monkeypatch.setattr(verdict, "words", lambda direction, size, *, not_worse: "CAN'T TELL YET")
    assert failing(brief(4, kinds=tuple(selfcheck.BEYOND))) == {"three margins not found"}


@pytest.mark.parametrize("holds", [True, False])
def test_the_verb_ends_with_status_1_and_says_what_not_to_trust(monkeypatch, found, holds):
    last = found.findings[-1].model_copy(update={"holds": holds})
    made = found.model_copy(update={"findings": (*found.findings[:-1], last)})
    asked = {}
    monkeypatch.setattr(selfcheck, "selfcheck", lambda **given: asked.update(given) or made)
    ran = CliRunner().invoke(cli.app, ["selfcheck", "--studies", "50", "--seed", "3"])
    assert ran.exit_code == (0 if holds else 1) and asked == {"studies": 50, "seed": 3}
    assert inspect.signature(cli.selfcheck).parameters["studies"].default == selfcheck.STUDIES
    sentence = "All holds: " if holds else "Do not trust the fairness ledger of this installation."
    assert ran.stdout.splitlines()[-1].startswith(sentence)


@pytest.mark.parametrize(
    ("rule", "accepted"),
    [("_same_tokens", "an arm trained on other examples"), ("_same_examples", "an arm tested on other examples")],
)
def test_a_ledger_without_a_rule_is_caught(monkeypatch, rule, accepted):
    kept = {what: check for what, check in fairness.RULES.items() if check.__name__ != rule}
    assert len(kept) == len(fairness.RULES) - 1
    monkeypatch.setattr(fairness, "RULES", kept)
    assert {one.what for one in safeguards.compared(0) if not one.holds} == {accepted}


def test_a_worker_that_does_not_answer_is_told_and_not_raised(monkeypatch):
    monkeypatch.setattr(safeguards, "ANSWER_S", 0.01)
    [shown] = safeguards.trained(0)
    assert not shown.holds and shown.found == "no answer in 0 s" and shown.part == "training"


def test_no_two_kinds_or_seeds_share_a_world():
    worlds = [selfcheck.first_world(kind, seed) for kind in selfcheck.KINDS for seed in range(3)]
    assert len(set(worlds)) == len(worlds) and min(abs(a - b) for a in worlds for b in worlds if a != b) >= 1_000_000


@pytest.mark.slow
def test_rates_tuned_with_one_seed_are_caught(brief, monkeypatch):
    real = simulated.study
    monkeypatch.setattr(
        simulated, "study", lambda planted: real(planted).model_copy(update={"tuning": Tuning(seeds=1)})
    )
    assert "tuning" in brief(150, kinds=tuple(selfcheck.TUNING)).failed


@pytest.mark.slow
def test_the_verb_passes_as_the_lab_is(tmp_path):
    environment = {**os.environ, "TUNETRIAL_HOME": str(tmp_path)}
    ran = subprocess.run([*SELFCHECK, "--json"], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = selfcheck.SelfCheck.model_validate(json.loads(ran.stdout))
    assert found.failed == () and {"training", "storage", "ledger"} <= {finding.part for finding in found.findings}


@pytest.mark.slow
def test_storage_that_checks_nothing_is_caught(monkeypatch):
    monkeypatch.setattr(trial, "_check_sealed", lambda folder, seal, *, known: None)
    assert "saved weights with one bit changed" in {one.what for one in safeguards.trained(0) if not one.holds}
