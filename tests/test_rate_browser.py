"""The rating page in a real browser: a scripted rater with a keyboard alone, and hostile completions."""

import json
import threading

import pytest

import browser
import rating_page
import test_rate
from browser import ENTER, LEFT, RIGHT, SHIFT, SPACE, TAB
from test_rate import TOWNS, likes_the_town
from test_rating_page import HOSTILE, desk_of, items
from trial_study import load
from tunetrial.rating import web

pytestmark = pytest.mark.browser

ON_QUESTION = "return document.querySelector('#ask:not([hidden])') && document.activeElement.id === 'title'"
READ = """
const text = (node) => node.textContent.toWellFormed();
return {request: text(document.querySelector('#request')), title: text(document.querySelector('#title')),
        texts: [...document.querySelectorAll('#answers .text')].map(text),
        status: text(document.querySelector('#status')), alert: text(document.querySelector('#alert'))};
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser.chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rated")
    for split, count in (("train", 20), ("validation", 16), ("test", 60)):
        rows = [{"id": f"{split}{n}", "text": f"{split} {n}?", "town": TOWNS[n % 5]} for n in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "study.yaml").write_text(test_rate.STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNETRIAL_HOME", str(folder / "home"))
        study = load(folder / "study.yaml", "plain")
        study.run().decide()
        yield study


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Serve a desk from a thread of this process; gives a function from a desk to the page's address."""
    import uvicorn

    monkeypatch.setenv("TUNETRIAL_HOME", str(tmp_path / "home"))
    running = []

    def start(desk):
        config = uvicorn.Config(web.app(desk, "token"), host="127.0.0.1", port=0, lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        while not server.started:
            thread.join(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/#token"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()


def begin(found, name, *, points=False):
    """Sit down with the keyboard alone: the name, the kind, Begin."""
    found.until("return document.activeElement.id === 'title' && !document.querySelector('#start').hidden")
    found.press(TAB)
    found.type(name)
    found.press(TAB, *([RIGHT] if points else []), TAB, ENTER)
    found.until(ON_QUESTION)


def wait_saved(found, count):
    found.until(f"return document.querySelector('#status').textContent.startsWith('Saved. {count} of')")


def test_twenty_pairs_by_keyboard_alone_change_the_report(done, chromium):
    before = done.report().read_text()
    assert "Dana" not in before
    with rating_page.page(done.path, done.path.parent / "home", "--rows", 60) as (process, address):
        chromium.size(1280, 900)
        chromium.go(address)
        begin(chromium, "Dana")
        for answered in range(1, 41):
            told = chromium.script(READ)
            assert told["title"].startswith(f"Question {answered} of ") and not told["alert"]
            chromium.press(str(likes_the_town(told)))
            wait_saved(chromium, answered)
            if answered == 25:  # as after a crash of the browser: the page is loaded anew and the name given again
                chromium.until(ON_QUESTION)
                chromium.go(address)
                begin(chromium, "Dana")
            chromium.until(
                f"return document.querySelector('#title').textContent.startsWith('Question {answered + 1} ')"
            )
        printed = rating_page.stop(process)
    assert "Dana" in printed
    [dana] = [one for one in done.decide().rated if one.rater == "Dana"]
    assert dana.consistent[0] == 1 and dana.blank == 0  # forty questions are two blocks: twenty pairs, both ways round
    page = done.report().read_text()
    assert page != before and "Dana" in page and "preferred to the reference" in page.lower()


def test_points_keys_going_back_and_the_end(served, chromium, tmp_path):
    address = served(desk_of(tmp_path, items(3)))
    chromium.size(390, 800)
    chromium.go(address)
    begin(chromium, "Eve", points=True)
    for number, key in enumerate("7905", start=1):
        chromium.press(key)
        wait_saved(chromium, number)
        chromium.until(f"return document.querySelector('#title').textContent.startsWith('Question {number + 1} ')")
    chromium.press(LEFT)
    chromium.until("return document.querySelector('#title').textContent.startsWith('Question 4 ')")
    pressed = "return document.querySelector('[aria-pressed=true]').textContent"
    assert chromium.script(pressed) == "5"
    chromium.press(LEFT)
    chromium.until("return document.querySelector('#title').textContent.startsWith('Question 3 ')")
    assert chromium.script(pressed).startswith("10")
    chromium.press(RIGHT)
    chromium.until("return document.querySelector('#title').textContent.startsWith('Question 4 ')")
    chromium.press("6")  # changed one's mind
    chromium.until("return document.querySelector('#title').textContent.startsWith('Question 5 ')")
    chromium.script("document.querySelector('#keys').click()")
    chromium.press("1")
    assert chromium.script(READ)["title"].startswith("Question 5 ")  # keys are off
    for number in (5, 6):  # by Tab alone, past two texts to the first choice
        chromium.until(ON_QUESTION)
        chromium.press(TAB, TAB, TAB, SPACE)
        wait_saved(chromium, number)
    chromium.until("return !document.querySelector('#end').hidden")
    said = chromium.script("return document.querySelector('#end').innerText")
    assert "6 of 6 answered" in said and "Nobody else has answered yet" in said
    assert "full" not in said and "lora" not in said
    assert chromium.faults() == []


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_completions_stay_text(served, chromium, tmp_path, name):
    text = HOSTILE[name]
    address = served(desk_of(tmp_path, items(1, text=lambda row, seed, arm: text + " 1" * (arm == "lora"))))
    chromium.size(390, 800)
    chromium.go(address)
    begin(chromium, "Eve")
    texts = chromium.script(READ)["texts"]
    assert chromium.script("return document.title").startswith("Question 1 of 2")
    assert chromium.script("return document.querySelectorAll('.text script, .text img').length") == 0
    if name in ("script", "long"):
        assert sorted(texts) == sorted([text, text + " 1"])
    if name == "nul":
        assert "a\u2400b\u2407\u2421" in texts
    if name == "bidi":
        assert all("\u202e" not in one and "\u2066" not in one for one in texts)
    if name == "surrogate":
        assert "half \ufffd alone" in texts
    if name == "empty":
        assert "no text" in texts
    assert chromium.script(browser.WIDE) == 0
    assert chromium.script("return document.querySelector('#choices').getBoundingClientRect().bottom") < 3000
    chromium.press("1")
    wait_saved(chromium, 1)


def test_a_page_whose_program_is_gone_says_that_nothing_was_saved(done, chromium):
    with rating_page.page(done.path, done.path.parent / "home", "--rows", 4) as (process, address):
        chromium.go(address)
        begin(chromium, "Finn")
        process.kill()
        process.wait()
        chromium.press("1")
        alert = chromium.until("return document.querySelector('#alert').textContent")
    assert "was not saved" in alert and chromium.script(READ)["title"].startswith("Question 1 ")


def test_an_address_without_its_token_or_with_a_wrong_one_is_told(served, chromium, tmp_path):
    address = served(desk_of(tmp_path, items(1)))
    chromium.go(address.partition("#")[0])
    assert "open the one that tunetrial printed" in chromium.until(
        "return document.querySelector('#alert').textContent"
    )
    chromium.go(address + "x")
    chromium.press(TAB)
    chromium.type("Eve")
    chromium.press(ENTER)
    assert "not allowed" in chromium.until("return document.querySelector('#alert').textContent")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_everything_has_a_name_enough_contrast_and_room(served, chromium, tmp_path, width, dark):
    address = served(desk_of(tmp_path, items(2)))
    chromium.size(width, 800)
    chromium.dark(dark)
    chromium.go(address)
    chromium.until("return !document.querySelector('#start').hidden")
    assert chromium.faults() == []
    assert ("textbox", "Your name") in chromium.controls()
    begin(chromium, "Eve")
    assert chromium.faults() == []
    controls = chromium.controls()
    assert {("region", "Request"), ("region", "Answer 1"), ("region", "Answer 2")} <= set(controls)
    names = [name for role, name in controls if role == "button"]
    choices = {"Answer 1 is better", "Answer 2 is better", "Neither is better"}
    assert set(names) == choices | {"Back", "Forward", "Finish for now"}
    order = []
    for _ in range(8):
        chromium.press(TAB)
        order.append(chromium.script("const one = document.activeElement; return one.id || one.textContent"))
    assert order[0] == "request" and order[3].startswith("Answer 1 is better") and order[-1] in ("finish", "keys", "on")
    chromium.press(SHIFT + TAB)
    chromium.script("document.querySelector('#finish').click()")
    chromium.until("return !document.querySelector('#end').hidden")
    assert chromium.faults() == []
    chromium.dark(False)
