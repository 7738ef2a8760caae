"""Pictures of learning: to scale, text that stays text, nothing that a page's policy forbids; the table of spends."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from tunetrial.analysis import learning
from tunetrial.analysis.ladder import Ascent, Rung
from tunetrial.analysis.prospects import Gain, Prospect, measured, prospect
from tunetrial.analysis.stats import Estimate
from tunetrial.core.errors import EvidenceError
from tunetrial.core.study import Arm
from tunetrial.report.learning import LEFT, RIGHT, Courses, courses_svg, ladder_svg, said_of, spend_rows, spend_sentence

SPACE = "{http://www.w3.org/2000/svg}"
STEPS = np.arange(1.0, 201.0)


def courses(name="lora", *, runs=5, diverged=0, arm=1):
    value_RS = np.stack([1 + np.exp(-STEPS / (15 + 5 * run)) for run in range(runs)])
    value_RS[:diverged, 100:] = np.nan
    found = {
        s: learning.over_seeds([learning.to_plateau(STEPS, -row, share=s) for row in value_RS]) for s in (0.9, 0.95)
    }
    return Courses(name, arm, STEPS, value_RS, found)


def drawn(svg):
    root = ElementTree.fromstring(svg)
    return root, [e.get("d") for e in root.iter(f"{SPACE}path")]


def curves(*arms):
    return courses_svg("Curves", arms, x_label="optimiser step", y_label="loss")


def ascent(**gains):
    """Rungs of 20, 40 and 80 rows; gains over the last."""
    arm = Arm(name="lora", method="lora")
    rungs = tuple(Rung("mail", arm, size, size == 80) for size in (20, 40, 80))
    of = {name: measured(Estimate(effect=value, se=0.01, df=8.0)) for name, value in gains.items()}
    return Ascent(rungs, (of["quarter"], of["half"], None), of.get("beyond"))


def steps_up(found, margin=0.05):
    return ladder_svg("More rows", found, arm=1, x_label="rows", y_label="accuracy", margin=margin)


def test_every_run_is_drawn_and_a_mean_of_those_that_ended():
    lines = [d for d in drawn(curves(courses()))[1] if d.count(" ") > 30]
    assert len(lines) == 6
    broken = [d for d in drawn(curves(courses(diverged=2)))[1] if d.count(" ") > 10]
    assert sorted(d.count(" ") for d in broken)[:2] == [24, 24] and len(broken) == 6
    assert len([d for d in drawn(curves(courses(diverged=5)))[1] if d.count(" ") > 10]) == 5


def test_intervals_lie_where_their_ends_are_and_point_beyond_what_was_seen():
    whole, lost = courses(), courses(diverged=3)
    at = {share: LEFT + (RIGHT - LEFT) * found.low / 200 for share, found in whole.reached.items()}
    _, paths = drawn(curves(whole))
    for share in (0.9, 0.95):
        assert any(d.startswith(f"M{round(at[share], 2)} ") and f"H{RIGHT}" not in d for d in paths)
    assert lost.reached[0.9].median is None and lost.reached[0.9].high is None
    text = curves(lost)
    assert f"H{RIGHT}M" in text and "3 of 5 not within it" in text and "3 of 5 runs never got there" in text


def test_a_median_is_said_with_its_interval():
    found = learning.over_seeds([30, None, 10, 20, None])
    assert said_of(found) == "30 (93.8\u202f% interval 10 to beyond the run; 2 of 5 runs never got there)"


def test_a_ladder_shows_its_rungs_and_one_step_beyond():
    root, paths = drawn(steps_up(ascent(quarter=-0.2, half=-0.1, beyond=0.05)))
    diamonds = [e for e in root.iter(f"{SPACE}path") if (e.get("d") or "").startswith("M0-5")]
    assert len(diamonds) == 4 and len({e.get("fill") for e in diamonds}) == 2
    spots = [re.match(r"translate\(([\d.]+) ([\d.]+)\)", e.get("transform")).groups() for e in diamonds]
    x = [float(x) for x, _ in spots]
    assert np.diff(x) == pytest.approx([x[1] - x[0]] * 3, abs=0.02)
    y = [float(y) for _, y in spots]
    assert (y[0] - y[2]) / (y[2] - y[3]) == pytest.approx(4, rel=0.01)
    texts = [e.text for e in root.iter(f"{SPACE}text")]
    assert {"20", "40", "80", "160"} <= set(texts)
    assert "no forecast" in steps_up(ascent(quarter=-0.2, half=-0.1))
    assert "margin" not in steps_up(ascent(quarter=-0.2, half=-0.1), margin=None)


def test_text_stays_text_and_nothing_is_loaded_or_styled():
    for svg in (
        curves(courses("<script>&"), courses("full", arm=0)),
        steps_up(ascent(quarter=-0.2, half=-0.1, beyond=0.1)),
    ):
        ElementTree.fromstring(svg)
        assert "<script" not in svg and "style=" not in svg and "href" not in svg and "<polyline" not in svg
    with pytest.raises(EvidenceError, match="nothing to draw"):
        curves()


def a_prospect(what, gain, usd, worth=400.0) -> Prospect:
    own = (
        None if gain is None else Gain(gain - 0.1, gain + 0.1, 0.95, (1.0,), (Estimate(effect=gain, se=0.05, df=8.0),))
    )
    return prospect(what, own, usd=usd, usd_per_unit=worth)


def test_the_table_says_what_is_known_and_what_is_not():
    head, labels, rank, full = spend_rows(
        [a_prospect("more labels", 0.1, 1.8), a_prospect("more rank", None, 0.5), a_prospect("full", 0.02, None)],
        margin=0.05,
    )
    assert len({len(head), len(labels), len(rank), len(full)}) == 1
    assert labels[1:3] == ("+0.100", "0.000 to +0.200") and labels[4:6] == ("$1.80", "0.056")
    assert "diminishing" in rank[1] and full[4:] == ("not known", "not known", "not known")


def test_no_chance_is_called_certain():
    sure, hopeless = a_prospect("more labels", 5.0, 1.8), a_prospect("more labels", -5.0, 1.8)
    assert [row[3] for row in spend_rows([sure, hopeless], margin=0.05)[1:]] == ["over 99\u202f%", "under 1\u202f%"]


def test_the_sentence_names_the_best_spend_or_says_stop():
    labels, full = a_prospect("more labels", 0.1, 1.8), a_prospect("full fine-tuning", 0.02, None)
    assert spend_sentence([labels, full]) == (
        "Spend on more labels: its expected gain is worth $38.20 more than its price; "
        "full fine-tuning could not be weighed."
    )
    assert spend_sentence([a_prospect("more labels", 0.001, 1.8)]).startswith("Stop: no further spend")
    assert spend_sentence([full]).startswith("What to spend on next cannot be said")
