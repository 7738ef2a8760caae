"""What is made of raters' votes: who is preferred, and agreement where two were asked."""

import pytest

from tunetrial.analysis import rounds
from tunetrial.analysis.preferences import Vote
from tunetrial.core.errors import EvidenceError


def votes(rater, better, *, rows=range(12)):
    """Both orders of full against lora on every row; `better` names the arm that is better on a row, or none."""
    made = []
    for row in rows:
        for first, second in (("full", "lora"), ("lora", "full")):
            winner = {first: "first", second: "second"}.get(better(row), "tie")
            made.append(Vote(item=str(row), first=first, second=second, winner=winner, rater=rater, blind=True))
    return tuple(made)


def round_of(rater, better, *, alike=(), **more):
    pairs = tuple((str(row), None, *order) for row in alike for order in (("full", "lora"), ("lora", "full")))
    about = {"task": "t", "criterion": "right", "judge": False, "trials": {"id": "digest"}} | more
    return rounds.Round(**about, rater=rater, votes=votes(rater, better), alike=pairs)


def test_pairs_of_one_text_are_ties_in_what_is_preferred_and_say_nothing_of_raters():
    ann = round_of("Ann", lambda row: None if row >= 6 else "lora" if row < 4 else "full", alike=range(6, 12))
    bo = round_of("Bo", lambda row: None if row >= 6 else "lora" if row < 3 else "full", alike=range(6, 12))
    found = rounds.rated(ann, "full")
    assert found.preferred["lora"][0] == pytest.approx((4 + 6 / 2) / 12) and (found.rows, found.same) == (12, 6)
    assert found.consistent[0] == 1 and found.strengths["lora"][0] > 0 and found.position[0] == pytest.approx(0)
    [agreed] = rounds.concord([ann, bo], {"t": "full"})
    # Six rows, one of them judged otherwise: Krippendorff's alpha of two values, 1 - (N - 1) D / (n1 n2).
    assert agreed.rows == 6 and agreed.alpha[0] == pytest.approx(1 - 11 * 1 / (7 * 5))
    everything = rounds.concord([one.model_copy(update={"alike": ()}) for one in (ann, bo)], {"t": "full"})
    assert everything[0].rows == 12 and everything[0].alpha != agreed.alpha


def test_rounds_of_other_answers_criteria_and_single_raters_are_kept_apart():
    ann, bo = (round_of(name, lambda row: "lora" if row % 2 else "full") for name in ("Ann", "Bo"))
    assert rounds.concord([ann], {"t": "full"}) == ()
    assert rounds.concord([ann, bo.model_copy(update={"criterion": "short"})], {"t": "full"}) == ()
    assert rounds.belonging([ann], {"id": "digest", "other": "x"}) == (ann,)
    assert rounds.belonging([ann], {"id": "another"}) == rounds.belonging([ann], {}) == ()


def test_one_sided_votes_have_no_strength_and_unknown_references_none_at_all():
    found = rounds.rated(round_of("Ann", lambda row: "lora"), "full")
    assert found.preferred["lora"][0] == 1 and found.strengths == {} and "no maximum" in found.separated
    nobody = rounds.rated(round_of("Ann", lambda row: None, alike=range(12)), "full")
    assert nobody.consistent is None and nobody.preferred["lora"][0] == 0.5
    assert nobody.strengths["lora"] == (0, None, None) and nobody.preferred["lora"][1] < 0.4  # ties are no certainty
    with pytest.raises(EvidenceError):
        rounds.rated(round_of("Ann", lambda row: "lora"), "other")
