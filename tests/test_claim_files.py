"""Claim files, numbers as people write them, expressions, drafts from text, and the verb."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tunetrial import cli
from tunetrial.analysis.drafts import draft
from tunetrial.core import expressions
from tunetrial.core.claims import Audit, ClaimFile, Finding
from tunetrial.core.errors import EvidenceError, SpecError
from tunetrial.core.quantities import NONE, Quantity, figure, read
from tunetrial.report import audit as report
from tunetrial.spec import claims as files
from tunetrial.trial.audit import audit, drafted

HEAD = "document: d\nclaims:\n"
ROW = "  - {id: a, at: 'x:1', quote: q, kind: ratio, says: 3x, of: 90 min, to: 30 min}\n"
REPORT = """# A report
| Phase | LoRA | Full | Advantage |
|-------|------|------|-----------|
| Train | 30 min | 90 min | 3x faster |
| Test | Instant | 2 min | Instant |
| **Total** | **30 min** | **91 min** | **3x faster** |

| Criteria | Weight | LoRA | Full | LoRA Weighted | Full Weighted |
|---|---|---|---|---|---|
| Cost | 60% | 10 | 4 | 6.0 | 2.4 |
| Quality | 40% | 8 | 9 | 3.2 | 3.6 |
| TOTAL | 100% | - | - | 9.2 | 6.1 |

- 500× smaller files (4MB vs 2GB), and 99.6% fewer weights (4K vs 1B)
- 3 tasks (a, b, c) × 2 methods × 3 seeds = 18 models, p < 0.001, needs 17GB
1234
"""


@pytest.mark.parametrize(
    ("text", "low", "high", "half", "unit"),
    [
        ("17 GB", 17e9, 17e9, 0.5e9, "GB"),
        ("17GB", 17e9, 17e9, 0.5e9, "GB"),
        ("~56–84 GB", 56e9, 84e9, 0.5e9, "GB"),
        ("~560 GB", 560e9, 560e9, 5e9, "GB"),
        ("99.6 %", 0.996, 0.996, 0.0005, "%"),
        ("0.1-1%", 0.001, 0.01, 0.0005, "%"),
        ("$10,247", 10247, 10247, 0.5, "USD"),
        ("$5,000-50,000", 5000, 50000, 0.5, "USD"),
        ("$13K", 13_000, 13_000, 500, "USD"),
        ("2-3x", 2, 3, 0.5, "x"),
        ("2.0×", 2, 2, 0.05, "×"),
        ("-27%", -0.27, -0.27, 0.005, "%"),
        ("−0.7", -0.7, -0.7, 0.05, ""),
        ("3e-6", 3e-6, 3e-6, 0.5e-6, ""),
        ("1.2B parameters", 1.2e9, 1.2e9, 0.05e9, "parameters"),
        ("1-5M", 1e6, 5e6, 0.5e6, ""),
        ("16 million", 16e6, 16e6, 0.5e6, ""),
        ("22 layers", 22, 22, 0, "layers"),
        ("26.01 ± 0.18 ms", 26.01e-3, 26.01e-3, 0.005e-3, "ms"),
        ("28.43 req/s", 28.43, 28.43, 0.005, "req/s"),
        ("90 min", 5400, 5400, 30, "min"),
        ("0.10 USD/GB-month", 0.10 / (1e9 * 730 * 3600), 0.10 / (1e9 * 730 * 3600), 0.005 / 2.628e15, "USD/GB-month"),
        (4096, 4096, 4096, 0.5, ""),
        (0.25, 0.25, 0.25, 0.005, ""),
    ],
)
def test_numbers_as_people_write_them(text, low, high, half, unit):
    said = read(text)
    assert (said.value.low, said.value.high, said.unit) == (pytest.approx(low), pytest.approx(high), unit)
    assert said.slack[0] == pytest.approx(half)


def test_bounds_spreads_and_what_is_no_number():
    assert [read(text).relation for text in ("<3%", "≥ 2x", "4000+", "up to 5", "7", "~7")] == [
        "<",
        ">=",
        ">=",
        "up to",
        "=",
        "=",
    ]
    assert read("26.01 ± 0.18 ms").spread.low == pytest.approx(0.18e-3) and read("26 ms").spread is None
    for text in ("", "Instant", "17 elephants", "1/2", "17 GB and more", "1,23", "nan", "inf", "1e999"):
        with pytest.raises(ValueError, match="must "):
            read(text)


@given(st.decimals(-(10**9), 10**9, allow_nan=False, places=3), st.sampled_from(["", " GB", "%", "x", " ms", " USD/h"]))
def test_a_number_written_with_separators_reads_back(number, unit):
    said = read(f"{number:,}{unit}")
    assert said.value.low == said.value.high == pytest.approx(float(number) * said.scale, rel=1e-12, abs=1e-15)
    assert said.slack[0] == pytest.approx(0.0005 * said.scale)


@given(st.text(max_size=80))
def test_reading_a_number_never_fails_otherwise(text):
    try:
        assert read(text).value.low <= read(text).value.high
    except ValueError:
        pass


whole = st.integers(-50, 50).map(lambda number: Quantity.of(number))


@given(whole, whole, whole)
def test_intervals_hold_what_their_ends_give(a, b, c):
    wide = Quantity.of(a.low, a.low + 3)
    got = expressions.quantity("a * b - c + b ** 2", {"a": wide, "b": b, "c": c})
    for inner in range(4):
        exact = (a.low + inner) * b.low - c.low + b.low**2
        assert got.low <= exact <= got.high


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')", "a.b", "[1]", "(1, 2)", "a if b else c", "lambda: 1", "'text'", "True", "f'{a}'", "a < b",
        "a and b", "open('x')", "sum(a for a in b)", "sum(x=1)", "1 if", "", "a := 3", "a[0]", "~a", "a // b",
        "+".join("1" * 300), "(" * 40 + "1" + ")" * 40 + "*" + "-" * 40 + "1", "b" * 500, "\x00",
    ],
)  # fmt: skip
def test_expressions_compute_and_do_nothing_else(text):
    with pytest.raises(ValueError, match="must "):
        expressions.tree(text, expressions.FUNCTIONS)


@pytest.mark.parametrize(
    "text", ["9 ** 9 ** 9", "a / (b - b)", "1 / 0", "10 ** 12 ** 12 ** 12", "sqrt(0 - 1)", "9" * 390, "sum()", "sqrt()"]
)
def test_what_has_no_finite_value_is_refused(text):
    with pytest.raises(ValueError):
        expressions.quantity(text, {"a": Quantity.of(1), "b": Quantity.of(1)})


@given(st.text(alphabet="ab+-*/() 0123.,sumtT@", max_size=40))
def test_any_expression_is_a_value_or_refused(text):
    try:
        found = expressions.quantity(text, {"a": Quantity.of(2), "b": Quantity.of(3, 4)})
        assert found.low <= found.high and found.dimensions == NONE
    except ValueError:
        pass


def test_figures():
    assert [figure(n) for n in (75236, 2.06, 99.609375, 1e-7, 0.0622449, 19154.0)] == [
        "75,236", "2.06", "99.6094", "1e-07", "0.062245", "19,154",
    ]  # fmt: skip


def test_a_claim_file_reads_and_writes_back():
    file = files.parse(HEAD + ROW)
    assert files.parse(files.write(file)) == file and file.claims[0].says == "3x"
    for path in (Path(__file__).parent.parent / "docs/audit").glob("*.yaml"):
        read_in = files.read(path)
        assert files.parse(files.write(read_in)) == read_in
    assert "Ratio" in files.json_schema()["$defs"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a claim file, got an empty file; begin with document: and claims:"),
        ("document: d\n", "claims: is missing; give the claims"),
        (HEAD + ROW.replace("says: 3x", "says: three"), ":3: claims.a.says: must be a number with a unit, got 'three'"),
        (HEAD + ROW.replace("3x", "3 elephants"), "must have a known unit, got 'elephants'"),
        (HEAD + ROW.replace("ratio", "ration"), ":3: claims.a.kind: unknown kind, got 'ration'; did you mean 'ratio'?"),
        (HEAD + ROW.replace(", to: 30 min", ""), ":3: claims.a.to: is missing; give the number below the line"),
        (HEAD + ROW.replace("to:", "too:"), "claims.a.too: unknown key; did you mean 'to'?"),
        (HEAD + ROW.replace("'x:1'", "x"), "claims.a.at: "),
        (HEAD + ROW + ROW, ":3: claims.a.id: must be another in each claim, got 'a' twice; rename one"),
        (
            HEAD + "  - {id: a, at: 'x:1', quote: q, kind: arithmetic, says: 3, of: a + c, given: {a: 1}}\n",
            "claims.a.of: must use names under given, got 'c'; give it a number",
        ),
        (
            HEAD + "  - {id: a, at: 'x:1', quote: q, kind: arithmetic, says: 3, of: 'a.b', given: {a: 1}}\n",
            "claims.a.of: must use .T alone, got .b; write a function instead",
        ),
        (
            HEAD + "  - {id: a, at: 'x:1', quote: q, kind: weighing, says: lora, matrix: m, scored: opinions}\n",
            "claims.a.matrix: must be the id of a matrix, got 'm'; add one of kind matrix",
        ),
        (
            HEAD
            + "  - {id: a, at: 'x:1', quote: q, kind: matrix, says: {b: 1}, weights: {c: 1}, scores: {b: {d: 1.0}}}\n",
            "must have a weight and a score for every criterion, got one of 'c'; give both",
        ),
        (
            HEAD + "  - {id: a, at: 'x:1', quote: q, kind: statistic, says: 2x, test: {name: wald}}\n",
            "claims.a.test.name: unknown name, got 'wald'",
        ),
        (HEAD + "  - &a {id: a}\n", "anchors are not read, got '&a'; remove it"),
    ],
)
def test_faults_have_line_field_and_remedy(text, said):
    with pytest.raises(SpecError) as error:
        files.parse(text)
    assert said in str(error.value) and "study" not in str(error.value)


@settings(max_examples=60)
@given(st.text(max_size=300))
def test_any_text_is_a_claim_file_or_refused(text):
    try:
        files.parse(text)
    except SpecError:
        pass


def by_line(text: str, name: str = "x") -> dict[str, list]:
    of: dict[str, list] = {}
    for claim in draft(text, name):
        of.setdefault(claim.at, []).append(claim)
    return of


def test_a_draft_of_tables_and_sentences():
    of = by_line(REPORT)
    assert [claim.kind for claim in of["x:4"]] == ["ratio"] and of["x:4"][0].of == "90 min"
    total = {claim.says: claim for claim in of["x:6"] if claim.kind == "arithmetic"}
    assert total["91 min"].given == {"row1": "90 min", "row2": "2 min"} and "30 min" not in total  # one number alone
    (matrix,) = of["x:12"]
    assert matrix.kind == "matrix" and matrix.says == {"lora": "9.2", "full": "6.1"}
    smaller, fewer = of["x:14"]
    assert (smaller.kind, smaller.of, smaller.to) == ("ratio", "2GB", "4MB")
    assert (fewer.kind, fewer.part, fewer.whole) == ("share", "4K", "1B")
    assert [claim.kind for claim in of["x:15"]] == ["arithmetic"] and "x:16" not in of


def test_a_draft_that_is_audited_finds_what_is_wrong_in_tables():
    found = {each.at: each for each in audit(ClaimFile(document="d", draft=True, claims=draft(REPORT, "x"))).findings}
    outcomes = [each.outcome for each in audit(ClaimFile(document="d", claims=draft(REPORT, "x"))).findings]
    assert found["x:12"].outcome == "WRONG" and "= 6" in found["x:12"].working  # 6.1 is stated
    assert outcomes.count("WRONG") == 2 and found["x:4"].outcome == found["x:15"].outcome == "HOLDS"


def test_a_draft_condemns_no_row_that_it_cannot_read():
    text = "| a | b | c | d |\n|---|---|---|---|\n| rows | 10 | 30 | 7x faster |\n"
    (claim,) = draft(text, "x")
    assert claim.kind == "untestable" and claim.why.startswith("for a reader")


def test_text_that_was_read_as_mac_roman_is_put_right():
    text = "- 500× smaller (4MB vs 2GB)".encode().decode("mac_roman")
    (claim,) = draft(text, "x")
    assert claim.kind == "ratio" and claim.says == "500x"


LINES = st.lists(st.text(alphabet=st.characters(exclude_characters="\r\n"), max_size=40), max_size=12)


@settings(max_examples=150)
@given(LINES, st.text(max_size=20))
def test_a_draft_never_fails_and_its_lines_are_right(lines, name):
    marked = [*lines, "needs 17 GB", *lines, "3x faster"]
    claims = draft("\n".join(marked), name)
    at = {int(claim.at.rpartition(":")[2]) for claim in claims}
    assert {len(lines) + 1, 2 * len(lines) + 2} <= at or any("|" in line for line in lines)
    if claims:
        file = ClaimFile(document="d", draft=True, claims=claims)
        assert files.parse(files.write(file)) == file
        audit(file)


CELLS = st.sampled_from(
    [
        "Total",
        "30 min",
        "1.2GB",
        "99.6%",
        "3x",
        "+5%",
        "-",
        "**9.2**",
        "Weight",
        "A",
        "A Weighted",
        "1e-4",
        "|",
        "~5-7 GB",
        "9" * 400,
    ]
)


@settings(max_examples=150)
@given(st.lists(st.lists(CELLS, min_size=1, max_size=6), min_size=1, max_size=6))
def test_any_table_is_drafted_and_audited(rows):
    head, *others = ["| " + " | ".join(cells) + " |" for cells in rows]
    claims = draft("\n".join([head, "|---|---|", *others]), "x")
    if claims:
        audit(ClaimFile(document="d", draft=True, claims=claims))


@pytest.mark.parametrize(
    "line", ["|-|", "| 1 | 2 |", "-" * 1999 + "x", " " * 1999 + "x", "(1 vs " * 300, "3 x 3 = " * 200, "1," * 900]
)
def test_a_large_text_takes_a_moment(line):
    begin = time.process_time()
    draft("\n".join([line] * (200_000 // len(line))), "x")
    assert time.process_time() - begin < 20


def run(*arguments: object):
    return CliRunner().invoke(cli.app, ["audit", *map(str, arguments)])


def test_the_verb_drafts_audits_and_writes(tmp_path):
    text, kept, page = tmp_path / "r.md", tmp_path / "r.yaml", tmp_path / "r-audit.md"
    text.write_text(REPORT)
    assert run(text).stdout.startswith("A report\nDrafted by a program and read by nobody")
    done = run(text, "--draft", kept)
    assert done.exit_code == 0 and done.stdout.strip() == str(kept) and "take out `draft: true`" in done.stderr
    assert files.read(kept).draft and files.read(kept) == drafted(text)
    done = run(kept, "--out", page)
    assert (
        done.exit_code == 0 and page.read_text().startswith("# Claims, recomputed") and "**WRONG**" in page.read_text()
    )
    found = json.loads(run(kept, "--json").stdout)["documents"][0]
    assert found["draft"] and found["counts"]["WRONG"] == 2 and found["findings"][0]["at"] == "r:4"
    page.write_text("mine")
    assert run(kept, "--out", page).exit_code == 1 and page.read_text() == "mine"


def test_what_the_verb_refuses(tmp_path):
    text, empty, kept = tmp_path / "r.md", tmp_path / "e.md", tmp_path / "r.yaml"
    text.write_text(REPORT)
    empty.write_text("nothing here\n")
    kept.write_text(HEAD + ROW)
    for arguments in ((kept, "--draft", tmp_path / "o"), (text, "--draft", tmp_path / "o", "--json"), ()):
        assert run(*arguments).exit_code == 2
    for arguments in ((empty,), (tmp_path / "no.yaml",), (tmp_path,), (kept, "--study", tmp_path / "s.yaml")):
        ran = run(*arguments)
        assert ran.exit_code == 1 and ran.stderr.startswith("tunetrial: ") and ran.stderr.count("\n") == 1
    assert not (tmp_path / "o").exists()
    with pytest.raises(EvidenceError, match="no claim found"):
        drafted(empty)


def test_words_of_a_document_stay_words():
    said = "<img src=x onerror=alert(1)> | `rm` [a](http://b) **c** _d_ \x1b[31m"
    each = Finding(claim="a", at="x:1", quote=said, kind="ratio", outcome="HOLDS", working=said)
    page = report.markdown([Audit(document="d", findings=(each,))])
    row = page.splitlines()[-1]
    assert "<img" not in row and row.count("[a](") == row.count("\\[a](") == 2
    assert row.replace("\\|", "").count("|") == 5 and "**c**" not in row
    assert "\x1b" not in report.text([Audit(document="d", findings=(each,))])
