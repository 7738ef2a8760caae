"""The picture of memory: bars to scale, text that stays text, nothing that a page's policy forbids."""

import re
import xml.etree.ElementTree as ElementTree

from tunetrial.report.memory import BAR, GIB, LABEL, RIGHT, WIDTH, Bar, svg

SPACE = "{http://www.w3.org/2000/svg}"
PARTS = {"base": 2 * GIB, "moments": 5 * GIB, "activations": GIB}


def rows(*bars: Bar):
    root = ElementTree.fromstring(svg("Memory", bars))
    return root, [r for r in root.iter(f"{SPACE}rect") if r.get("height") == str(BAR)]


def test_bars_are_to_scale_and_their_sum_ends_at_what_is_needed_at_most():
    _, drawn = rows(Bar("full", PARTS, 10 * GIB, 4 * GIB))
    whole = WIDTH - LABEL - RIGHT
    widths = [float(r.get("width")) for r in drawn]
    assert [round(w / whole, 2) for w in widths] == [0.2, 0.5, 0.1, 0.2]
    assert float(drawn[-1].get("x")) + widths[-1] == LABEL + whole


def test_a_bar_beyond_what_the_device_has_is_told_apart():
    text = svg("Memory", [Bar("full", PARTS, 10 * GIB, 4 * GIB), Bar("lora", {"base": GIB}, 2 * GIB, 4 * GIB)])
    assert text.count('fill="#98191b"') == 1 and "10.0 GiB" in text and "2.0 GiB" in text


def test_without_a_known_room_there_is_no_mark():
    assert 'stroke-width="2.5"' not in svg("Memory", [Bar("full", PARTS, 10 * GIB, None)])


def test_text_stays_text_and_nothing_is_loaded_or_run():
    text = svg("<script>alert(1)</script>", [Bar("a&b<i>", PARTS, 10 * GIB, 4 * GIB, note="<b>")])
    ElementTree.fromstring(text)
    assert "<script" not in text and "style=" not in text and not re.search(r"href|url\((?!#)", text)


def test_nothing_to_draw_is_no_fault():
    ElementTree.fromstring(svg("Memory", []))
