"""The report: what is said first, what is drawn where, and that text from anywhere stays text."""

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from statistics import fmean

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

import report_fixtures as fixtures
from tunetrial import report
from tunetrial.core.evidence import Evidence, Measurement
from tunetrial.report import page, plots, words

VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(HTMLParser):
    """Elements in order, with attributes, and the text outside of style."""

    def __init__(self, source: str):
        super().__init__()
        self.elements, self.text, self._open = [], "", []
        self.feed(source)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.text += "" if tag in ("bdi", "span", "strong") else " "
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self.text += data

    def of_class(self, name: str) -> list[tuple[str, dict]]:
        return [(tag, attrs) for tag, attrs in self.elements if name in (attrs.get("class") or "").split()]


@cache
def source_of(name: str) -> str:
    return report.html(*fixtures.CASES[name]())


@cache
def drawn(name: str) -> Page:
    return Page(source_of(name))


def flat(text: str) -> str:
    return " ".join(text.replace("\u2060", "").replace("\u2011", "-").replace("\u202f", " ").split())


# What is said


def test_recommendation_is_read_first_with_effect_interval_margin_costs_price_and_flips():
    text = flat(drawn("clear").text)
    said = (
        "Use LoRA r16. SAME (within your margin): macro-F1 −0.003 vs full (97.2 %: −0.027…+0.021; "
        "you said 0.05 matters). 0.43 GiB vs 1.12 GiB peak memory; 0.61 MiB vs 23.5 MiB saved artifact; "
        "21.9 s vs 30.8 s one training run (LoRA r16 vs full). "
        "This study took 22 min of machine time for 68 runs, $0.29 at $0.80 an hour. "
        "Flips to full if the weight of quality reaches 0.83 (now 0.5). "
        "Flips to full if the margin of tickets (macro_f1) reaches 0.027 (now 0.05)."
    )
    assert said in text
    assert text.index("Use LoRA r16.") < text.index("Verdicts")


def test_abstention_says_why_what_is_safe_what_it_costs_at_worst_and_what_to_spend_next():
    for text in (flat(drawn("cant_tell").text), flat(report.summary(*fixtures.cant_tell()))):
        assert "No recommendation yet." in text
        assert "Why: on tickets LoRA r16 may be 0.085 worse or 0.043 better than full" in text
        assert "Cheapest safe choice: full; at worst: 0.69 GiB more memory" in text
        assert "Best next spend: 300 more test rows, not more seeds." in text
        assert "Use " not in text


def test_no_winner_is_named_where_nothing_was_recommended():
    for name in ("cant_tell", "not_comparable", "untrained", "empty"):
        _, decision = fixtures.CASES[name]()
        page = drawn(name)
        assert decision.recommendation is None
        assert "recommended" not in [t.strip() for t in page.text.splitlines()]
        assert not re.search(r"\b(winner|wins|best arm)\b", page.text)


def test_all_verdict_words_appear_exactly_and_unsorted():
    evidence, decision = fixtures.crowd()
    text = drawn("crowd").text
    for comparison in decision.verdicts:
        assert comparison.words in text
    order = [v.comparison for v in report.headline.verdicts(decision)]
    assert order == list(decision.verdicts)


def test_lower_is_better_metric_says_how_it_is_turned():
    text = flat(report.summary(*fixtures.clear()))
    assert "newsletter, LoRA r16: WORSE; MAE −0.23 points vs full, + is better (97.2 %: −0.37…−0.09" in text
    assert "MAE (lower is better), against full" in flat(drawn("clear").text)


def test_unfair_comparison_shows_its_reason_and_no_effect():
    evidence, decision = fixtures.untrained()
    assert decision.verdicts[0].effect is not None
    source = report.html(evidence, decision)
    assert "neither arm trained" in source and "+0.001" not in source
    assert not Page(source).of_class("whisker") and not Page(source).of_class("axis")


def test_infeasible_and_diverged_arms_are_reported_not_dropped():
    text = flat(drawn("no_fit").text)
    assert "does not fit needs more memory than there is" in text and "8 GiB there are" in text
    text = flat(drawn("diverged").text)
    assert "3 final runs diverged at rate 3.2e-3; gradient norm is not finite at step 51" in text
    assert "diverged, SD 0.04, 2 seeds, 3 failed" in text


def test_missing_costs_are_said_to_be_missing_and_never_zero():
    rows = report.tables.rows(*fixtures.no_fit())
    full = next(row for row in rows if row.name == "full")
    assert [cell.text for cell in full.cells] == ["does not fit", *["not measured"] * 5]
    bars = report.plots.probe_bars(fixtures.no_fit()[0])
    assert {(b.share, b.text) for group in bars for b in group.bars if b.name == "full"} == {(None, "does not fit")}


def test_empty_states_say_what_is_not_there():
    text = flat(drawn("empty").text)
    for said in (
        "No comparison yet",
        "No cost was measured",
        "no criteria and no limits",
        "No tuning runs",
        "No curves were kept",
        "No probe ran",
        "No check is on record",
        "0 runs; their time is not recorded",
    ):
        assert said in text


def test_broken_fairness_and_post_hoc_changes_stand_out():
    evidence, decision = fixtures.not_comparable()
    source = Page(report.html(evidence, decision))
    assert len(source.of_class("broken")) == 1 and len(source.of_class("holds")) == 4
    assert "Post hoc. Changed after results were seen: the margin of tickets was 0.02" in flat(source.text)
    assert "broken: token stream" in report.summary(evidence, decision)
    assert "Post hoc" in report.markdown(evidence, decision)


def test_synthetic_results_are_stamped_in_every_form():
    evidence, decision = fixtures.synthetic()
    assert "SYNTHETIC" in drawn("synthetic").text.split("Question")[0]
    assert report.markdown(evidence, decision).startswith("# SYNTHETIC")
    assert report.summary(evidence, decision).startswith("SYNTHETIC")
    assert json.loads(report.to_json(evidence, decision))["synthetic"] is True
    assert "SYNTHETIC" not in report.html(*fixtures.clear())


def test_provenance_holds_digest_seeds_versions_and_what_differs_between_arms():
    evidence, decision = fixtures.clear()
    text = flat(drawn("clear").text)
    for said in (
        decision.study_digest,
        evidence.lock.base_fingerprint,
        "seeds 901–903",
        "20; seeds 1–5",
        "2.13.0",
        "8 (full); 16 (LoRA r16)",
        "3 rows longer than 512 tokens were dropped",
    ):
        assert said in text


def test_provenance_counts_the_openings_of_the_test_rows():
    evidence, decision = fixtures.clear()
    for openings, said in (({"tickets": 1}, "opened once"), ({"tickets": 3}, "opened 3 times")):
        counted = decision.model_copy(update={"test_openings": openings})
        assert f"tickets: test rows {said}" in flat(Page(report.html(evidence, counted)).text)
        assert json.loads(report.to_json(evidence, counted))["decision"]["test_openings"] == openings
    assert "test rows opened" not in drawn("clear").text


def test_provenance_says_the_epochs_of_each_task():
    evidence, decision = fixtures.clear()
    study = evidence.lock.study
    own = study.model_copy(update={"epochs": 3, "tasks": (study.tasks[0].model_copy(update={"epochs": 2}),)})
    lock = evidence.lock.model_copy(update={"study": own})
    text = flat(Page(report.html(replace(evidence, lock=lock), decision)).text)
    assert "tickets: epochs 2 " in text and "3 epochs" not in text


def test_study_cost_adds_all_attempts_and_needs_a_price():
    evidence, _ = fixtures.clear()
    twice = tuple(r.model_copy(update={"legs_s": (60.0, 30.0)}) for r in evidence.records)
    spent = report.headline.spending(Evidence(evidence.lock, twice, {}, {}))
    assert flat(spent) == f"{90 * len(twice) // 60} min of machine time for {len(twice)} runs, $1.36 at $0.80 an hour"
    assert "$" not in report.headline.spending(fixtures.diverged()[0])


# JSON, summary, Markdown


def test_json_has_stable_keys_and_the_decision_itself():
    evidence, decision = fixtures.clear()
    found = json.loads(report.to_json(evidence, decision))
    assert list(found) == [
        "schema_version",
        "synthetic",
        "question",
        "answer",
        "support",
        "reference",
        "primary_task",
        "runs",
        "machine_s",
        "usd_per_hour",
        "decision",
        "failures",
        "provenance",
    ]
    assert found["decision"] == decision.model_dump(mode="json")
    assert found["schema_version"] == 1
    assert json.loads(report.to_json(*fixtures.empty()))["machine_s"] is None


@pytest.mark.parametrize("name", fixtures.CASES)
def test_summary_fits_twelve_lines_and_ends_with_the_study(name):
    evidence, decision = fixtures.CASES[name]()
    lines = report.summary(evidence, decision).splitlines()
    assert len(lines) <= 12 and all(lines)
    assert lines[-1].endswith(f"Study {decision.study_digest[:12]}.")


def test_summary_counts_the_verdicts_that_it_leaves_out():
    evidence, decision = fixtures.crowd()
    lines = report.summary(evidence, decision).splitlines()
    shown = [line for line in lines if re.match(r"tickets, LoRA r\d+: ", line)]
    (left,) = [int(found[1]) for line in lines if (found := re.match(r"… and (\d+) more verdicts", line))]
    assert shown and left == len(decision.verdicts) - 1 - len(shown)


def rendered(source: str) -> list:
    return MarkdownIt("commonmark", {"html": True}).enable("table").parse(source)


@pytest.mark.parametrize("name", fixtures.CASES)
def test_markdown_tables_are_whole(name):
    tokens = rendered(report.markdown(*fixtures.CASES[name]()))
    opened = [t.type for t in tokens]
    evidence, decision = fixtures.CASES[name]()
    rows = opened.count("tr_open") - opened.count("table_open")
    assert rows == len(decision.verdicts) + len(evidence.lock.study.arms)
    assert opened.count("heading_open") == 7 + decision.synthetic


# Self-contained, safe, the same each time


@pytest.mark.parametrize("name", fixtures.CASES)
def test_page_is_self_contained_and_its_policy_allows_one_style_sheet(name):
    source, found = source_of(name), drawn(name)
    policy = next(a["content"] for t, a in found.elements if a.get("http-equiv") == "Content-Security-Policy")
    style = re.search(r"<style>(.*?)</style>", source, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert not {"script", "img", "link", "iframe", "object", "embed", "form", "base"} & {t for t, _ in found.elements}
    for _, attrs in found.elements:
        assert not [a for a in attrs if a in ("style", "src", "srcset") or a.startswith("on")]
        assert (attrs.get("href") or "#").startswith("#")
    assert "url(" not in style and "@import" not in style and "//" not in style
    assert source == report.html(*fixtures.CASES[name]())


@pytest.mark.parametrize("name", fixtures.CASES)
def test_links_lead_somewhere_and_pictures_have_words(name):
    found = drawn(name)
    ids = [a["id"] for _, a in found.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for t, a in found.elements if t == "a"} <= set(ids)
    outer = [a for t, a in found.elements if t == "svg" and ("viewBox" in a or "width" in a or "viewbox" in a)]
    assert all(a.get("aria-hidden") == "true" or a.get("role") == "img" and a.get("aria-label") for a in outer)
    levels = [int(t[1]) for t, _ in found.elements if re.fullmatch("h[1-6]", t)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in zip(levels, levels[1:], strict=False))
    assert all(a.get("scope") for t, a in found.elements if t == "th")


NASTY = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onload='x",
    "</style><script>x</script>",
    "{{ 7*7 }}",
    "{% for x in y %}",
    "{# x #}",
    "&lt;b&gt;",
    "<!--",
    "]]>",
    "a" * 5000,
    "שלום עולם",
    "\u202egnp.exe",
    "\x00\x1b[31m",
    "| a | b |",
    "[x](javascript:alert(1))",
    "![x](http://x/y.png)",
    "`code`",
    "# head",
    "<http://x>",
    "www.x.org",
    "$x$",
    "line\nbreak\r\n\u2028more",
    "javascript:alert(1)",
    "𝔘𝔫𝔦",
    "**b** _i_ ~~s~~",
)


# A finding is one paragraph a "; ", so that a semicolon alone changes the elements; all else must not.
HOSTILE = st.text(min_size=1, max_size=60).filter(str.strip).filter(lambda text: "; " not in text) | st.sampled_from(
    NASTY
)


def shape(source: str) -> list:
    return [(tag, sorted(attrs)) for tag, attrs in Page(source).elements]


PLAIN = shape(report.html(*fixtures.hostile("plain")))


@settings(max_examples=25)
@given(HOSTILE)
@example(NASTY[0])
@example(NASTY[1])
@example(NASTY[4])
@example(NASTY[11])
def test_hostile_text_stays_text_in_html(text):
    source = report.html(*fixtures.hostile(text))
    assert shape(source) == PLAIN
    assert flat(words.clean(text, 300)) in flat(Page(source).text)
    source.encode("utf-8")


@settings(max_examples=25)
@given(HOSTILE)
@example(NASTY[0])
@example(NASTY[14])
@example(NASTY[15])
@example(NASTY[16])
def test_hostile_text_stays_text_in_markdown_and_summary(text):
    evidence, decision = fixtures.hostile(text)
    tokens = rendered(report.markdown(evidence, decision))
    inner = [child for t in tokens for child in t.children or ()]
    assert not {"html_block", "fence", "code_block"} & {t.type for t in tokens}
    assert {t.type for t in inner} <= {"text", "text_special", "strong_open", "strong_close", "softbreak"}
    cells = [t.type for t in tokens]
    assert cells.count("td_open") + cells.count("th_open") == 3 * 9 + 3 * 3
    summary = report.summary(evidence, decision)
    assert len(summary.splitlines()) <= 12
    assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e]", summary)


def test_long_names_are_cut_in_the_middle():
    cut = words.clean("head" + "x" * 500 + "tail", 60)
    assert len(cut) == 60 and cut.startswith("head") and cut.endswith("tail") and "…" in cut
    assert words.clean("a\ud800b\u202ec\x07") == "a\ufffdb\ufffdc\ufffd"
    assert words.name("abc") == "abc" and words.name("שלום") == "\u2068שלום\u2069"


# Numbers


@pytest.mark.parametrize(
    ("value", "decimals", "said"),
    [(-0.3, 1, "−0.3"), (0.8, 1, "+0.8"), (-0.0004, 3, "0.000"), (0.0004, 3, "0.000"), (12345.6, 0, "+12\u202f346")],
)
def test_signed_numbers_have_a_true_minus_and_zero_has_no_sign(value, decimals, said):
    assert words.signed(value, decimals) == said


@pytest.mark.parametrize(
    ("margin", "decimals"), [(0.05, 3), (0.25, 2), (1, 1), (10, 0), (250, 0), (0.005, 4), (0.02, 3), (0.1, 2)]
)
def test_digits_of_effects_follow_the_margin(margin, decimals):
    assert words.decimals_for(margin) == decimals


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (2**30 * 1.12, "bytes", "1.12 GiB"),
        (640 * 1024, "bytes", "0.62 MiB"),
        (512, "bytes", "0.50 KiB"),
        (90, "bytes", "90 B"),
        (0.0123, "s", "12.3 ms"),
        (21.94, "s", "21.9 s"),
        (119, "s", "119 s"),
        (150, "s", "2 min"),
        (7500, "s", "2 h 05 min"),
        (0.43, "GiB", "0.43 GiB"),
        (4.2e-5, "MiB", "44 B"),
        (3.77, "MiB", "3.77 MiB"),
        (1.5e-5, "s", "under 1 ms"),
        (18.2, "ms", "18.2 ms"),
        (3.5, "USD", "$3.50"),
        (0.00487, "usd", "$0.0049"),
        (0, "USD", "$0.00"),
        (1234567, "tokens", "1 234 567 tokens"),
        (0.8127, "share", "0.813"),
        (1.5e-9, "x", "1.50e−9 x"),
        (0, "ms", "0 ms"),
        (1130496, "weights", "1 130 496 weights"),
    ],
)
def test_quantities_have_sensible_digits_and_units(value, unit, said):
    assert words.quantity(Measurement(value=value, unit=unit)).replace("\u202f", " ") == said


def test_rates_levels_and_set_numbers_read_as_typed():
    assert [words.rate(r) for r in (3e-4, 1e-3, 3.1623e-3, 2e-5, 1.0)] == ["3e-4", "1e-3", "3.2e-3", "2e-5", "1e0"]
    assert [words.percent(x).replace("\u202f", " ") for x in (0.95, 0.972, 0.9866)] == ["95 %", "97.2 %", "98.7 %"]
    assert [words.plain(x) for x in (1, 0.05, 0.25, 1e-12, -3)] == ["1", "0.05", "0.25", "1e−12", "−3"]
    assert (
        words.prose("by -0.3 (97 %: -0.8 to 2) for lr-16 and 3e-4, x-1")
        == "by −0.3 (97 %: −0.8 to 2) for lr-16 and 3e-4, x-1"
    )


# Where things are drawn


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_round_and_inside(low, width):
    high = low + width
    if (high - low) / max(abs(low), abs(high)) < 1e-6:
        return
    found = plots.ticks(low, high)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-6 * width <= t <= high + 1e-6 * width for t in found)
    if len(found) > 1:
        step = (found[-1] - found[0]) / (len(found) - 1)
        lead = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert min(abs(lead - k) for k in (1, 2, 5, 10)) < 1e-3


def test_forest_positions_are_linear_and_in_each_tasks_own_units():
    _, decision = fixtures.clear()
    tickets, newsletter = plots.forests(decision.verdicts)
    for forest, comparison in ((tickets, decision.verdicts[0]), (newsletter, decision.verdicts[1])):
        (dot,) = forest.dots
        per_unit = (dot.high - dot.low) / (comparison.high - comparison.low)
        assert dot.effect - forest.zero == pytest.approx(per_unit * comparison.effect, abs=0.01)
        assert forest.band[0] == pytest.approx(forest.zero - per_unit * comparison.margin, abs=0.01)
        assert forest.band[1] == pytest.approx(2 * per_unit * comparison.margin, abs=0.01)
        for tick in forest.ticks:
            value = float(tick.text.replace("−", "-"))
            assert tick.at == pytest.approx(forest.zero + per_unit * value, abs=0.01)
        assert 0 <= min(dot.low, forest.band[0]) and max(dot.high, sum(forest.band)) <= 100


def test_open_verdicts_are_hollow_and_settled_ones_are_not():
    evidence, decision = fixtures.crowd()
    dots = drawn("crowd").of_class("dot")
    hollow = ["hollow" in attrs["class"] for _, attrs in dots]
    assert hollow == [c.words == "CAN'T TELL YET" for c in decision.verdicts]


def test_an_arm_keeps_its_colour_and_more_arms_than_colours_differ_in_shape():
    found = drawn("crowd")
    marks = {
        (a["class"].split()[1], e[1]["d"])
        for (_, a), e in zip(found.of_class("glyph"), glyph_paths(found), strict=True)
    }
    assert len(marks) == len(fixtures.crowd()[0].lock.study.arms) == 9
    source = report.html(*fixtures.clear())
    names = re.findall(r'class="glyph (arm-\d)".*?</svg>\s*(?:<span>)?\s*<bdi>([^<]*)</bdi>', source)
    assert set(names) == {("arm-0", "full"), ("arm-1", "LoRA r16")}


def glyph_paths(found: Page) -> list:
    return [
        found.elements[i + 1] for i, (_, a) in enumerate(found.elements) if "glyph" in (a.get("class") or "").split()
    ]


def chosen(decision) -> dict:
    return {(a.task, a.arm): (a.learning_rate, a.at_edge) for a in decision.arms if a.learning_rate}


def test_rate_panels_hold_every_run_and_the_settled_rates():
    evidence, decision = fixtures.clear()
    panels = {p.task: p for p in plots.rate_panels(evidence, chosen(decision))}
    for task, panel in panels.items():
        tunes = evidence.of(purpose="tune", task=task)
        assert len(panel.marks) == sum(r.status == "ok" for r in tunes)
        assert len(panel.crosses) == sum(r.status != "ok" for r in tunes)
    assert [(p.name, p.rate, p.at_edge) for p in panels["newsletter"].chosen] == [
        ("full", "1e-3", False),
        ("LoRA r16", "3.2e-3", True),
    ]
    assert "at the edge of the grid" in drawn("clear").text
    full = [m for m in panels["tickets"].marks if m.arm == 0]
    line = [tuple(map(float, point.split(","))) for point in panels["tickets"].lines[0].points.split()]
    for x, y in line:
        assert y == pytest.approx(fmean(m.y for m in full if m.x == x), abs=0.02)


def test_curves_are_averaged_in_stretches_and_lost_losses_left_out():
    curve = [{"step": i, "loss": float(i % 7)} for i in range(1, 601)]
    thinned = plots.thin(curve)
    assert len(thinned) == 60
    assert thinned[3] == (fmean(range(31, 41)), fmean(i % 7 for i in range(31, 41)))
    assert plots.thin(
        [{"step": 1, "loss": math.nan}, {"step": 2, "loss": None}, {"step": 3}, {"step": 4, "loss": 2.0}]
    ) == [(4, 2.0)]
    assert plots.thin([]) == []


def test_wild_losses_do_not_flatten_the_others():
    (panel,) = plots.loss_panels(fixtures.diverged()[0])
    assert panel.clamped and panel.frame.y[1] < 3
    inside = [float(p.split(",")[1]) for line in panel.lines for p in line.points.split()]
    assert panel.frame.top <= min(inside) and max(inside) <= panel.frame.bottom
    assert "Losses above the frame are drawn at its edge." in drawn("diverged").text


def test_bars_begin_at_zero_and_share_one_scale():
    groups = {g.title: g for g in plots.probe_bars(fixtures.clear()[0])}
    full, lora = groups["Peak memory"].bars[:2]
    assert full.share == 100 and lora.share == pytest.approx(100 * 0.43 / 1.12, abs=0.01)
    assert groups["One optimiser step"].note == "median of 20"


# Colours


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_and_arms_have_contrast_in_light_and_dark():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    style = (page.TEMPLATES / "style.css").read_text()
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.S)[:2]
    )
    assert len(light) == len(dark) >= 24
    for scheme in (light, dark):
        for ground in ("paper", "card"):
            for ink in ("ink", "soft", "slight", *(f"c{i}" for i in range(8)), "better", "worse"):
                assert contrast(scheme[ink], scheme[ground]) >= 4.5, (ink, ground)
        for kind in ("better", "same", "slight", "worse", "open"):
            assert contrast(scheme[kind], scheme[f"{kind}-bg"]) >= 4.5, kind
