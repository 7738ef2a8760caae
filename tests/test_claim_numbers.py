"""Numbers of claims: bounds, spreads, shared prefixes, digits as written in a file, and intervals without an end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunetrial.core import expressions
from tunetrial.core.claims import ClaimFile
from tunetrial.core.errors import EvidenceError, SpecError
from tunetrial.core.quantities import Quantity, read
from tunetrial.spec import claims as files
from tunetrial.trial.audit import audit

HEAD = "document: d\nclaims:\n"
ROW = "  - {id: a, at: 'x:1', quote: q, kind: arithmetic, says: 7e9, of: a, given: {a: 6.74e9, b: 2.50}}\n"


@pytest.mark.parametrize(
    ("text", "low", "high", "slack"),
    [
        ("500-1K", 500, 1000, (0.5, 500)),
        ("900-1.2K", 900, 1200, (0.5, 50)),
        ("500-600K", 500e3, 600e3, (500, 500)),
        ("1-5M", 1e6, 5e6, (0.5e6, 0.5e6)),
        ("~500-1K", 500, 1000, (50, 500)),
        ("2.50 points", 0.025, 0.025, (5e-5, 5e-5)),
        ("Roughly 500x", 500, 500, (50, 50)),
        ("7e9", 7e9, 7e9, (0.5e9, 0.5e9)),
    ],
)
def test_what_stands_behind_a_number(text, low, high, slack):
    said = read(text)
    assert (said.value.low, said.value.high) == pytest.approx((low, high))
    assert said.slack == pytest.approx(slack)


def test_words_that_make_a_number_a_bound():
    relations = {
        "<3%": "<", "Less than 3%": "<", "fewer than 5": "<", "under 3 GB": "<", "at most 5": "<=", "≤ 5": "<=",
        "> 5": ">", "Over 5x": ">", "more than 5x": ">", "≥ 2x": ">=", "at least 2": ">=", "4000+": ">=",
        "up to 5": "up to", "Up to 5": "up to", "7": "=", "~7": "=", "almost 7": "=", "= 7": "=",
    }  # fmt: skip
    assert {text: read(text).relation for text in relations} == relations


def test_a_spread_has_its_own_unit():
    spreads = {"26 ms ± 5 %": 1.3e-3, "26 ms ± 180 us": 180e-6, "26 ms ± 2": 2e-3, "26 ± 5 ms": 5e-3}
    spreads |= {"35.2 % ± 5 %": 0.05, "26 ± 5 %": 0.05, "$20 ± 5 %": 1.0, "$20 ± 5": 5.0}
    assert {text: read(text).spread.low for text in spreads} == pytest.approx(spreads)
    with pytest.raises(ValueError, match="do not go together"):
        read("26 ms ± 5 GB")


@pytest.mark.parametrize("text", ["~1" + 309 * "0", "1" + 400 * "0", "~9" + 307 * "0" + " trillion", "1e999"])
def test_a_number_that_is_too_large_is_refused(text):
    with pytest.raises(ValueError, match="must be a finite number"):
        read(text)


PARTS = [*"0123456789.,~<>+-$%xKM ", "up to ", "±", "GB", "e9", "0" * 320]


@given(st.lists(st.sampled_from(PARTS), max_size=9).map("".join))
def test_what_looks_like_a_number_is_read_or_refused(text):
    try:
        said = read(text)
    except ValueError:
        return
    for quantity in (said.value, said.exact, said.rounded, said.binary.rounded, said.plain.rounded):
        assert quantity.low <= quantity.high and said.show(quantity)
    assert said.rounded.low <= said.value.low <= said.value.high <= said.rounded.high


ENDS = st.sampled_from(["-3", "-1", "0", "1", "2", "0.5", "<2", ">1", "at least 0", "<= 3", "< -1", "1-2", "0-4"])


@given(ENDS, ENDS, st.sampled_from(["a + b", "a - b", "a * b", "a / b", "a ** 2 - b", "min(a, b)", "max(a, b) * b"]))
def test_open_intervals_hold_all_that_their_bounds_allow(first, second, text):
    a, b = read(first).exact, read(second).exact
    try:
        got = expressions.quantity(text, {"a": a, "b": b})
    except ValueError as error:
        assert "divisor" in str(error) and b.low <= 0 <= b.high
        return
    for x in inside(a):
        for y in inside(b):
            if "/" not in text or y:
                exact = eval(text, {"a": x, "b": y, "min": min, "max": max})
                assert got.low - 1e-9 <= exact <= got.high + 1e-9, (x, y)


def inside(of: Quantity) -> list[float]:
    """Numbers of an interval, far out where it has no end."""
    low, high = max(of.low, -1e6), min(of.high, 1e6)
    return [low, high, (low + high) / 2, low + (high - low) / 1000, high - (high - low) / 1000]


def test_what_has_no_end_is_shown_so():
    said = read("3x")
    assert said.show(read("> 2").exact) == "2 x and above" and said.show(read("< -2").exact) == "-2 x and below"
    assert said.show(read("< 3 %").exact - read("< 5 %").exact) == "any number"


@pytest.mark.parametrize("text", ["a.T", "a.T + b", "(a + b).T", "a @ b"])
def test_numbers_have_no_transpose_and_no_matrix_product(text):
    with pytest.raises(ValueError, match="^must be arithmetic of numbers, got '?[.@]"):
        expressions.tree(text, expressions.FUNCTIONS)
    with pytest.raises(SpecError, match="claims.a.of: must be arithmetic of numbers"):
        files.parse(HEAD + ROW.replace("of: a", f"of: '{text}'"))


@given(st.text(alphabet="ab+-*/() 01.,T@", max_size=30))
def test_any_expression_of_matrices_is_tried_or_refused(text):
    for claim in (
        {"kind": "formula", "of": text.replace("a", "X").replace("b", "Y"), "law": "scale"},
        {"kind": "shapes", "of": text, "shapes": {"a": (2, 3), "b": (3, 2)}, "gives": (2, 2)},
    ):
        head = {"id": "a", "at": "x:1", "quote": "q"}
        try:
            audit(ClaimFile.model_validate({"document": "d", "claims": ({**head, **claim},)}, strict=True))
        except (ValueError, EvidenceError) as error:
            assert any(words in str(error) for words in ("must ", "cannot be ", "has no shape")), error


def test_a_number_of_a_file_is_known_to_the_digits_that_are_written():
    file = files.parse(HEAD + ROW)
    (claim,) = file.claims
    assert (claim.says, claim.given) == ("7e9", {"a": "6.74e9", "b": "2.50"})
    assert files.parse(files.write(file)) == file
    assert audit(file).findings[0].outcome == "HOLDS WITHIN ROUNDING"
    assert files.parse(HEAD + ROW.replace("7e9", "5.")).claims[0].says == 5.0  # no number as people write them
    assert files.parse(HEAD + ROW.replace("7e9", "7000000000")).claims[0].says == 7_000_000_000


def test_scores_of_a_file_are_numbers():
    matrix = "{id: m, at: 'x:1', quote: q, kind: matrix, says: {b: 2.0}, weights: {c: 1.00}, scores: {b: {c: 2.50}}}"
    file = files.parse(f"{HEAD}  - {matrix}\n")
    (claim,) = file.claims
    assert claim.scores == {"b": {"c": 2.5}} and claim.weights == {"c": "1.00"}
    assert "{c: 2.5}" in files.write(file) and files.parse(files.write(file)) == file


def test_every_option_of_a_matrix_has_every_score():
    scores = "{lora: {c: 2.0}, full: {d: 1.0}}"  # full is not among the totals
    row = f"{{id: m, at: 'x:1', quote: q, kind: matrix, says: {{lora: 2}}, weights: {{c: 1.0}}, scores: {scores}}}"
    weighing = "{id: w, at: 'x:1', quote: q, kind: weighing, says: lora, matrix: m, scored: opinions}"
    with pytest.raises(SpecError, match="claims.m.scores.full: must have a weight and a score for every criterion"):
        files.parse(f"{HEAD}  - {row}\n  - {weighing}\n")
