"""The picture of memory: bars to scale, text that stays text, nothing that a page's policy forbids."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

import report_fixtures as fixtures
from tunetrial import report
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import Held, Scored
from tunetrial.report.memory import BAR, FAR, GIB, LABEL, MIB, RIGHT, WIDTH, picture, svg

SPACE = "{http://www.w3.org/2000/svg}"
PARTS = {"base": 2 * GIB, "moments": 5 * GIB, "activations": GIB}


def held(label: str = "full", parts=PARTS, most=10 * GIB, room: float | None = 4 * GIB, **other) -> Held:
    return Held(label=label, parts=parts, most_bytes=most, room_bytes=room, **other)


def rows(*bars: Held):
    root = ElementTree.fromstring(svg("Memory", bars))
    return root, [r for r in root.iter(f"{SPACE}rect") if r.get("height") == str(BAR)]


def test_bars_are_to_scale_and_their_sum_ends_at_what_is_needed_at_most():
    _, drawn = rows(held())
    whole = WIDTH - LABEL - RIGHT
    widths = [float(r.get("width")) for r in drawn]
    assert [round(w / whole, 2) for w in widths] == [0.2, 0.5, 0.1, 0.2]
    assert float(drawn[-1].get("x")) + widths[-1] == LABEL + whole
    (bar,) = picture([held(measured_bytes=5 * GIB)]).bars
    assert [piece.at for piece in bar.pieces] == [0, 20, 70, 80] and (bar.room, bar.measured) == (40, 50)


def test_a_bar_beyond_what_the_device_has_is_told_apart():
    text = svg("Memory", [held(), held("lora", {"base": GIB}, 2 * GIB)])
    assert text.count('fill="#98191b"') == 1 and "10.0\u202fGiB" in text and "2.00\u202fGiB" in text


def test_without_a_known_room_there_is_no_mark():
    assert 'stroke-width="2.5"' not in svg("Memory", [held(room=None)])


def test_a_device_with_far_more_leaves_the_bars_their_width_and_is_named():
    most = 10 * GIB
    near, far = picture([held(room=FAR * most)]), picture([held(room=FAR * most + GIB)])
    assert near.beyond is None and near.bars[0].room == 100
    both = svg("Memory", [held(room=most), held(room=FAR * most + GIB)])
    assert "what the device has" in both and "room of 31.0\u202fGiB: beyond this scale" in both
    assert "what the device has" not in svg("Memory", [held(room=FAR * most + GIB)])
    assert far.beyond == "31.0\u202fGiB" and far.bars[0].room is None and far.bars[0].pieces[-1].at == 80


def test_a_small_model_has_a_scale_in_its_unit():
    found = picture([held(parts={"base": 40 * MIB}, most=100 * MIB, room=None)])
    assert [tick.text for tick in found.ticks][:2] == ["0", "20 MiB"]


def test_text_stays_text_and_nothing_is_loaded_or_run():
    text = svg("<script>alert(1)</script>", [held("a&b<i>", verdict="<b>")])
    ElementTree.fromstring(text)
    assert "<script" not in text and "style=" not in text and not re.search(r"href|url\((?!#)", text)


def test_without_bars_there_is_no_picture_and_the_report_has_none():
    assert picture([]).bars == ()
    with pytest.raises(EvidenceError, match="nothing to draw"):
        svg("Memory", [])


@pytest.mark.parametrize("measured", [None, 7.9 * GIB])
def test_the_report_draws_it_in_the_plan_s_section_and_says_it_without_colour(measured):
    evidence, decision = fixtures.clear()
    row = {"what": "peak memory", "arm": "full", "unit": "bytes", "low": 1.0, "high": 2.0, "measured": None}
    bars = (held("<i>full</i>", measured_bytes=measured),)
    decision = decision.model_copy(update={"memory": bars, "predictions": (Scored(**row),)})
    page = report.html(evidence, decision)
    section = page[page.index('<section id="predictions">') :].partition("</section>")[0]
    assert "base 2.00\u202fGiB, moments 5.00\u202fGiB" in section and "the device has 4.00\u202fGiB" in section
    assert "<i>full" not in page and "style=" not in section
    assert section.count('class="measured"') == (0 if measured is None else 2)
    assert 'class="memory"' not in report.html(evidence, decision.model_copy(update={"memory": ()}))
