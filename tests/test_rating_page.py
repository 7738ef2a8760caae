"""The rating page without a browser: who may ask, what is asked, and what is left on the disk."""

import asyncio
import json
import os

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import planted
from tunetrial.analysis import ratings, rounds
from tunetrial.core.errors import ConfigError, IntegrityError, StoreError
from tunetrial.rating import Item, web
from tunetrial.rating.sitting import BLOCK, Answer, answer_of, questions, round_of
from tunetrial.store.ratings import RatingFolder
from tunetrial.trial import raters
from tunetrial.trial.desk import Desk
from tunetrial.trial.raters import Asked

HOSTILE = {
    "script": "<script>document.title = 'owned'</script><img src=x onerror=alert(1)>",
    "bidi": "\u202eabc\u2066 right to left \u05d0",
    "nul": "a\x00b\x07\x7f",
    "surrogate": "half \ud83d alone",
    "long": "x" * 1_000_000,
    "empty": "",
}
TOKEN = "secret-token"


def items(rows=6, seeds=(1,), arms=("full", "lora"), text=lambda row, seed, arm: f"{arm} says {row} at {seed}"):
    return [
        Item(f"r{row}", f"request {row}", {arm: text(row, seed, arm) for arm in arms}, seed)
        for row in range(rows)
        for seed in seeds
    ]


def desk_of(folder, made):
    held = planted.lock(("full", "lora"), metric="exact_match", tasks=("mail",))
    return Desk(Asked(held, "mail", "which is right", tuple(made), {"t1": "digest"}), folder)


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNETRIAL_HOME", str(tmp_path / "home"))


def ask(desk, *requests):
    """Put requests to the application as it is served: (path, method, headers, body) each."""

    async def all_of_them():
        transport = httpx.ASGITransport(app=web.app(desk, TOKEN))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            return [await client.request(m, path, headers=headers, content=body) for path, m, headers, body in requests]

    return asyncio.run(all_of_them())


def question(name, headers=None, **body):
    given_headers = {"Authorization": f"Bearer {TOKEN}"} if headers is None else headers
    return f"/ask/{name}", "POST", given_headers, json.dumps(body).encode()


# What is asked.


def test_every_pair_is_asked_in_both_orders_and_comes_back_after_a_block():
    order = questions(items(25), "pairs", seed=0, rater="Ann")
    assert len(order) == 50
    place = {one.of: number for number, one in enumerate(order)}
    for one in order:
        other = place[one.turned().of]
        assert abs(other - place[one.of]) in (BLOCK, 5)  # the last block has five
    assert len({one.of[0][0] for one in order[:BLOCK]}) == BLOCK
    first = sum(one.of[0][2] == "full" for one in order[:BLOCK] + order[2 * BLOCK : 3 * BLOCK])
    assert 0 < first < 2 * BLOCK


def test_the_order_is_the_raters_own_and_the_same_every_time():
    one, again, other, seeded = (
        [q.of for q in questions(items(9), "points", seed=seed, rater=rater)]
        for seed, rater in ((0, "Ann"), (0, "Ann"), (0, "Bo"), (1, "Ann"))
    )
    assert one == again and sorted(one) == sorted(other) == sorted(seeded)
    assert one != other and one != seeded


def test_what_reads_alike_is_asked_once_and_goes_for_all():
    made = items(2, seeds=(1, 2), text=lambda row, seed, arm: "same" if row == 0 else f"{arm} of any seed")
    order = questions(made, "pairs", seed=0, rater="Ann")
    assert [len(one.of) for one in order] == [2, 2]  # both seeds of row 1, in both orders
    assert {place[0] for one in order for place in one.alike} == {"r0"}
    assert sum(len(one.alike) for one in order) == 4  # two seeds, both orders
    points = questions(made, "points", seed=0, rater="Ann")
    assert sorted(len(one.of) for one in points) == [2, 2, 4]


def test_answers_become_votes_of_whole_pairs_and_ratings():
    about = {"task": "mail", "criterion": "right", "rater": "Ann", "trials": {}}
    order = questions(items(3), "pairs", seed=0, rater="Ann")
    lora = [2 if one.of[0][3] == "lora" else 1 for one in order]
    answers = [Answer("pairs", one.of, said) for one, said in zip(order, lora, strict=True)]
    whole = round_of(about, answers)
    assert len(whole.votes) == 6 and all(vote.points_of("lora") == 1 and vote.blind for vote in whole.votes)
    torn = round_of(about, answers[:-1])
    assert (len(torn.votes), torn.blank) == (4, 1)
    changed = round_of(about, [*answers, Answer("pairs", order[0].of, 0)])
    assert [vote.winner for vote in changed.votes].count("tie") == 1
    rated = round_of(about, [Answer("points", (("r0", 1, "full"), ("r0", 2, "lora")), 7)])
    assert [(one.arm, one.seed, one.points) for one in rated.ratings] == [("full", 1, 7), ("lora", 2, 7)]


@given(st.lists(st.lists(st.sampled_from(["a", "b", "c"]), min_size=3, max_size=3), min_size=1, max_size=25))
def test_whoever_answers_everything_has_answered_every_pair_of_arms_in_both_orders(texts):
    arms = ("full", "lora", "qlora")
    made = [Item(f"r{n}", "?", dict(zip(arms, row, strict=True)), 1) for n, row in enumerate(texts)]
    order, answers = questions(made, "pairs", seed=0, rater="Ann"), []
    for one in order:
        answers += [Answer("alike", one.alike)] if one.alike else []
        answers.append(Answer("pairs", one.of, 1))
    found = round_of({"task": "t", "criterion": "c", "rater": "Ann", "trials": {}}, answers)
    differ = [
        (n, *sorted(pair)) for n, row in enumerate(texts) for pair in differing(dict(zip(arms, row, strict=True)))
    ]
    assert found.blank == 0
    assert len(found.votes) == (6 * len(texts) if order else 0)
    assert len(found.said) == 2 * len(differ)
    assert [answer_of(answer.line()) for answer in answers] == answers


def differing(said):
    names = sorted(said)
    return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if said[a] != said[b]]


# Who may ask.


def test_only_the_token_opens_it_and_only_under_this_machines_name(tmp_path):
    desk = desk_of(tmp_path, items())
    begin = {"rater": "Ann", "kind": "pairs"}
    answers = ask(
        desk,
        question("begin", {}, **begin),
        question("begin", {"Authorization": "Bearer wrong"}, **begin),
        question("begin", {"Authorization": TOKEN}, **begin),
        question("begin", {"Authorization": f"Bearer {TOKEN}", "Host": "evil.example"}, **begin),
        ("/", "GET", {"Host": "evil.example:8000"}, b""),
        ("/ask/begin", "GET", {"Authorization": f"Bearer {TOKEN}"}, b""),
        question("begin", **begin),
    )
    assert [one.status_code for one in answers] == [401, 401, 401, 400, 400, 405, 200]
    assert not any("full" in one.text or "lora" in one.text for one in answers)


def test_the_page_loads_nothing_from_elsewhere_and_may_run_its_own_script_alone(tmp_path):
    answers = ask(desk_of(tmp_path, items()), *((path, "GET", {}, b"") for path in web.FILES))
    for one in answers:
        policy = one.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy and one.headers["x-content-type-options"] == "nosniff"
        assert "http:" not in one.text and "https:" not in one.text and "innerHTML" not in one.text
    assert {one.headers["content-type"].partition(";")[0] for one in answers} == set(web.TYPES.values())


def test_what_is_shown_names_no_arm_and_is_the_text_itself(tmp_path):
    for name, text in HOSTILE.items():
        made = items(1, text=lambda row, seed, arm, text=text: text + " 1" * (arm == "lora"))
        desk = desk_of(tmp_path / name, made)
        begun, shown = ask(
            desk,
            question("begin", rater="Ann", kind="pairs"),
            question("show", rater="Ann", kind="pairs", number=0),
        )
        assert shown.status_code == 200 and shown.headers["content-type"] == "application/json"
        assert shown.json().keys() == {"request", "texts"} and set(shown.json()["texts"]) == {text, text + " 1"}
        assert "lora" not in shown.text and begun.json()["answered"] == [None, None]


def test_bad_questions_are_one_line_and_change_nothing(tmp_path):
    desk = desk_of(tmp_path, items())
    good = {"rater": "Ann", "kind": "pairs"}
    unbegun, *_ = ask(desk, question("answer", **good, number=0, said=1))
    assert unbegun.status_code == 400 and "begin first" in unbegun.json()["error"]
    bad = (
        {**good, "number": 12, "said": 1},
        {**good, "number": -1, "said": 1},
        {**good, "number": True, "said": 1},
        {**good, "number": 0, "said": 3},
        {**good, "number": 0, "said": "1"},
        {**good, "number": 0, "said": True},
        {"rater": "Ann", "kind": "points", "number": 0, "said": 0},
        {"rater": "Ann", "kind": ["pairs"], "number": 0, "said": 1},
        {"rater": "Bo", "kind": "pairs", "number": 0, "said": 1},
        {"rater": "a\nb", "kind": "pairs", "number": 0, "said": 1},
        {"rater": 3, "kind": "pairs", "number": 0, "said": 1},
        good,
    )
    _, *answers = ask(desk, question("begin", **good), *(question("answer", **one) for one in bad))
    raw = [("/ask/answer", "POST", {"Authorization": f"Bearer {TOKEN}"}, body) for body in (b"", b"[" * 4000, b"{}")]
    long, *more = ask(desk, question("begin", rater="x" * 5000, kind="pairs"), *raw)
    for one in (*answers, *more):
        assert one.status_code == 400 and len(one.json()["error"].splitlines()) == 1, one.text
    assert long.status_code == 413
    assert raters.rounds(tmp_path) == ()


# What is left on the disk.


def sit(desk, rater, kind, say, count=None):
    begun = desk.begin(rater, kind)
    for number in range(len(begun["answered"]) if count is None else count):
        desk.answer(rater, kind, number, say(desk.show(rater, kind, number)["texts"]))
    return begun


def likes_lora(texts):
    if len(texts) == 1:
        return 9 if "lora" in texts[0] else 4
    return 1 if "lora" in texts[0] else 2


def test_each_answer_is_kept_at_once_and_taken_up_again(tmp_path):
    sit(desk_of(tmp_path, items()), "Ann", "pairs", likes_lora, count=3)
    again = desk_of(tmp_path, items())
    assert [said is not None for said in again.begin(" Ann ", "pairs")["answered"]] == [True] * 3 + [False] * 9
    assert raters.rounds(tmp_path) == ()  # three first orders: nothing whole yet
    sit(again, "Ann", "pairs", likes_lora)
    [one] = raters.rounds(tmp_path)
    assert one.rater == "Ann" and len(one.votes) == 12 and not one.judge
    assert rounds.rated(one, "full").preferred["lora"][0] == 1


def test_a_line_that_a_crash_cut_short_was_never_said_and_an_altered_one_is_refused(tmp_path):
    desk = desk_of(tmp_path, items())
    sit(desk, "Ann", "pairs", likes_lora, count=4)
    path = next((tmp_path / "ratings" / "page").glob("*.jsonl"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert sum(said is not None for said in desk.begin("Ann", "pairs")["answered"]) == 3
    desk.answer("Ann", "pairs", 3, 1)
    assert sum(said is not None for said in desk.begin("Ann", "pairs")["answered"]) == 4
    for damaged in (
        whole.replace(b'"said":1', b'"said":2', 1),
        b"".join(whole.splitlines(True)[:2] + whole.splitlines(True)[3:]),
    ):
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match="not the line that was sealed here"):
            raters.rounds(tmp_path)
    for cut in range(len(whole.splitlines(True)[0])):
        path.write_bytes(whole[:cut])
        assert raters.rounds(tmp_path) == ()
    desk.begin("Ann", "pairs")
    assert path.read_bytes() == whole.splitlines(True)[0]


def test_a_full_disk_is_told_and_the_answer_not_taken(tmp_path, monkeypatch):
    desk = desk_of(tmp_path, items())
    sit(desk, "Ann", "pairs", likes_lora, count=1)
    kept = lambda: {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}  # noqa: E731
    before = kept()

    def full(_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    [refused] = ask(desk, question("answer", rater="Ann", kind="pairs", number=1, said=1))
    assert refused.status_code == 507 and "disk is full" in refused.json()["error"]
    monkeypatch.undo()
    assert before and kept() == before, "an answer that was refused counts"


def test_one_page_a_study(tmp_path):
    with RatingFolder(tmp_path / "ratings").hold_page():
        with pytest.raises(StoreError, match="the rating page is held by"):
            web.serve(desk_of(tmp_path, items()), port=0, tell=print)


def test_a_name_that_a_judge_or_a_sheet_has_is_refused(tmp_path):
    kept = RatingFolder(tmp_path / "ratings")
    made = round_of({"task": "mail", "criterion": "which is right", "rater": "wise", "trials": {}}, [])
    kept.keep(("x",), made.model_copy(update={"judge": True}).model_dump(mode="json"))
    kept.keep(("y",), made.model_copy(update={"rater": "Bo"}).model_dump(mode="json"))
    desk = desk_of(tmp_path, items())
    for name in ("wise", "Bo"):
        with pytest.raises(ConfigError, match="goes by this name"):
            desk.begin(name, "pairs")
    desk.begin("Ann", "pairs")


def test_agreement_at_the_end_names_no_arm_and_is_that_of_the_ratings(tmp_path):
    desk = desk_of(tmp_path, items(8))
    sit(desk, "Ann", "points", likes_lora)
    alone = desk.end("Ann", "points")["agreement"]
    assert alone == ["Nobody else has answered yet, so how far raters agree is not known."]
    sit(desk, "Bo", "points", lambda texts: likes_lora(texts) - ("2" in texts[0]))
    said = " ".join(desk.end("Bo", "points")["agreement"])
    assert "full" not in said and "lora" not in said and "ICC(2,1)" in said
    [graded] = rounds.graded(raters.rounds(tmp_path), {"mail": "full"})
    base = np.array([[4, 9] * 8, [4, 9] * 8])
    base[1, 2 * 2 : 2 * 2 + 2] -= 1  # row 2, both arms
    assert graded.alpha[0] == pytest.approx(ratings.alpha(base, "ordinal").value)
    assert graded.icc[0] == pytest.approx(ratings.icc(base.T).single.value)
    assert graded.higher["lora"][0] == 1 and graded.mean == {"full": 4 - 1 / 16, "lora": 9 - 1 / 16}
    sit(desk, "Ann", "pairs", likes_lora)
    sit(desk, "Bo", "pairs", lambda texts: 0)
    said = " ".join(desk.end("Bo", "pairs")["agreement"])
    assert "one verdict in both orders on 100" in said and "of pairs" in said


def test_people_are_what_preference_is_counted_from(tmp_path):
    desk = desk_of(tmp_path, items(4))
    sit(desk, "Ann", "points", likes_lora)
    found = rounds.preferred(raters.rounds(tmp_path), "mail", "full")
    assert (found["full"].value, found["lora"].value) == (0.5, 1.0)  # of ratings, nobody compared pairs
    sit(desk, "Bo", "pairs", lambda texts: 0)
    found = rounds.preferred(raters.rounds(tmp_path), "mail", "full")
    assert found["lora"].value == 0.5 and found["lora"].n == 4
    judged = [one.model_copy(update={"judge": True}) for one in raters.rounds(tmp_path)]
    assert rounds.preferred(judged, "mail", "full") == {} == rounds.preferred((), "mail", "full")
