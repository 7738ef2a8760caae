"""Learning in the report: pictures to scale, text that stays text, nothing that a page's policy forbids; tables."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from tunetrial.analysis import learning
from tunetrial.analysis.prospects import Gain, prospect
from tunetrial.analysis.stats import Estimate
from tunetrial.core.findings import Ascent, Gained, Outlook, Prospect
from tunetrial.report.learning import _reached, ladder_svg, spend_rows, spend_sentence

SPACE = "{http://www.w3.org/2000/svg}"


def drawn(svg):
    root = ElementTree.fromstring(svg)
    return root, [e.get("d") for e in root.iter(f"{SPACE}path")]


def ascent(beyond=None, **gains):
    """Rungs of 20, 40 and 80 rows; gains over the last."""
    of = {name: Gained(expected=value, low=value - 0.02, high=value + 0.02) for name, value in gains.items()}
    further = None if beyond is None else Gained(expected=beyond, low=beyond - 0.05, high=beyond + 0.05)
    return Ascent(of="rows", sizes=(20, 40, 80), gains=(of["quarter"], of["half"], None), beyond=further)


def steps_up(found, margin=0.05):
    return ladder_svg(found, arm=1, y_label="gain in accuracy", margin=margin)


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
    assert {"20", "40", "80", "160", "More rows", "training rows"} <= set(texts)
    assert "no forecast" in steps_up(ascent(quarter=-0.2, half=-0.1))
    assert "margin" not in steps_up(ascent(quarter=-0.2, half=-0.1), margin=None)


def test_text_stays_text_and_nothing_is_loaded_or_styled():
    svg = ladder_svg(ascent(quarter=-0.2, half=-0.1, beyond=0.1), arm=1, y_label="<script>&", margin=0.05)
    ElementTree.fromstring(svg)
    assert "<script" not in svg and "style=" not in svg and "href" not in svg and "<polyline" not in svg


def test_a_median_is_said_with_its_interval_and_its_price():
    found = learning.over_seeds([30, None, 10, 20, None])
    assert _reached(found, None) == "30 (10 to beyond the run)"
    assert _reached(found, 0.1) == "30 (10 to beyond the run); $3.00"
    assert _reached(learning.over_seeds([None, None, 10]), 0.1) == "beyond the run (10 to beyond the run)"


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


def outlook(*prospects, best):
    return Outlook(task="mail", arm="lora", level=0.95, ascents=(), unread={}, prospects=prospects, best=best)


def test_the_sentence_names_the_best_spend_or_says_stop_and_why():
    labels, full = a_prospect("more labels", 0.1, 1.8), a_prospect("full fine-tuning", 0.02, None)
    assert spend_sentence(outlook(labels, full, best="more labels"), margin=0.05) == (
        "Spend on more labels, because the expected gain of +0.100 is worth $38.20 more than its price; "
        "95\u202f% likely to pay at all; full fine-tuning could not be weighed."
    )
    little = a_prospect("more labels", 0.001, 1.8)
    assert spend_sentence(outlook(little, best="stop"), margin=0.05) == (
        "Stop, because no further spend is expected to gain more than it costs; most is expected of more labels: "
        "+0.001 (\N{MINUS SIGN}0.099 to +0.101)."
    )


def test_without_prices_the_sentence_leaves_the_weighing_to_the_user():
    full, lost = a_prospect("full fine-tuning", 0.02, None), a_prospect("more rank", -0.02, None)
    said = spend_sentence(outlook(lost, full, best=None), margin=0.05)
    assert said.startswith("What to spend on next is yours to weigh") and "full fine-tuning: +0.020" in said
    assert spend_sentence(outlook(lost, best=None), margin=0.05).startswith(
        "Stop, because no further spend is expected"
    )
    none = a_prospect("more rank", None, 0.5)
    assert "cannot be said" in spend_sentence(outlook(none, best=None), margin=0.05)
