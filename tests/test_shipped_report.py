"""The report's section on what was shipped: hops with ticks, the first that breaks, and text that stays text."""

import re

import report_fixtures
from tunetrial import report
from tunetrial.core.fidelity import Chain, Hop, Measures, Proof, Score, Tolerance

MEASURES = Measures(
    probes=12,
    places=40,
    identical=11,
    ties=1,
    different=0,
    first_different=None,
    same_next_token=1.0,
    largest_difference=3e-5,
    kl_mean=1e-9,
    kl_largest=1e-8,
    tokens_compared=300,
)
SCORE = Score(metric="exact_match", before=0.75, after=0.5, effect=-0.25, low=-0.4, high=-0.1, level=0.95)


def proof(*, faults=(), evil: str = "") -> Proof:
    names = ("trained", f"adapter{evil}", "adapter.gguf")
    hops = tuple(
        Hop(before=a, after=b, measures=MEASURES, tolerance=Tolerance(different=0), score=SCORE, faults=found)
        for a, b, found in zip(names, names[1:], ((), faults), strict=False)
    )
    chain = Chain(
        hops=hops,
        faults=("adapter.gguf: other tokens",) if faults else (),
        left_out=("merged: a reason",),
        files={},
        passed=not faults,
        first_break="adapter → adapter.gguf" if faults else None,
    )
    return Proof(trial="ab" * 8, arm=f"lora{evil}", task="mail", seed=1001, format="gguf", chain=chain)


def drawn(*proofs: Proof) -> tuple[str, str]:
    evidence, decision = report_fixtures.clear()[:2]
    decision = decision.model_copy(update={"proven": proofs})
    return report.html(evidence, decision).replace("\u00a0", " "), report.markdown(evidence, decision)


def test_every_hop_has_its_tick_and_what_was_compared():
    for made in drawn(proof()):
        assert made.count("✓ PASS") == 2 and "✗ FAIL" not in made and "2 of 2 pass" in made
        assert "11 of 12 texts the same and 1 at ties" in made and "0.750 → 0.500" in made
        assert "merged: a reason" in made
    assert 'href="#shipped"' in drawn(proof())[0]


def test_the_first_hop_that_breaks_is_named_with_its_fault():
    fault = "different: at most 0 is allowed, got 3"
    for made in drawn(proof(faults=(fault,)), proof()):
        assert made.count("✗ FAIL") == 2 and "first broken: adapter → adapter.gguf" in made and fault in made
        assert "adapter.gguf: other tokens" in made and "1 of 3 pass" in made


def test_nothing_shipped_is_no_section():
    for made in drawn():
        assert "Shipped" not in made and 'id="shipped"' not in made


def test_hostile_names_stay_text():
    page, text = drawn(proof(evil='<script>x</script>"|`[a](b)'))
    rows = [line for line in text.splitlines() if "script" in line and line.startswith("|")]
    assert "<script>" not in page and rows and all("<script" not in line for line in rows)
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 4 for line in rows)
