"""Servers under load: what is timed, what fails, what is counted; real HTTP, a real llama.cpp."""

import json
import math
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import scipy.stats
from typer.testing import CliRunner

from tunetrial import cli, models
from tunetrial.analysis.endpoints import summarise
from tunetrial.core.endpoints import Asked, EndpointBench, Request, Target, Turn
from tunetrial.core.errors import ConfigError, DataError, EndpointError, EvidenceError
from tunetrial.report import endpoints as shown
from tunetrial.trial import endpoints as load
from tunetrial.trial.endpoints import Terms

GAP_S = 0.01


class Stream:
    """What a server does with one request: sends pieces, and may end oddly."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._handler = handler

    def begin(self, status: int = 200) -> None:
        self._handler.send_response(status)
        self._handler.send_header("Content-Type", "text/event-stream")
        self._handler.send_header("Transfer-Encoding", "chunked")
        self._handler.end_headers()

    def send(self, text: str) -> None:
        data = text.encode()
        self._handler.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self._handler.wfile.flush()

    def event(self, **content) -> None:
        self.send(f"data: {json.dumps(content)}\n\n")

    def piece(self, text: str, **more) -> None:
        self.event(choices=[{"index": 0, "delta": {"content": text}, "text": text, "finish_reason": None, **more}])

    def end(self) -> None:
        self.send("data: [DONE]\n\n")
        self._handler.wfile.write(b"0\r\n\r\n")


def whole(stream: Stream, body: dict, *, gap_s: float = GAP_S, usage: bool = True) -> None:
    """A whole answer: `max_tokens` pieces, one every `gap_s`."""
    stream.begin()
    for _ in range(body["max_tokens"]):
        time.sleep(gap_s)
        stream.piece("a ")
    stream.event(choices=[{"index": 0, "delta": {}, "finish_reason": "length"}])
    if usage:
        stream.event(choices=[], usage={"completion_tokens": body["max_tokens"], "prompt_tokens": 3})
    stream.end()


@contextmanager
def server(say: Callable[[Stream, dict, int], None]) -> Iterator[tuple[str, list[dict]]]:
    """Serve; gives the address and the bodies of requests with their paths."""
    seen: list[dict] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            data = json.dumps({"data": [{"id": "m"}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                seen.append(body | {"path": self.path, "key": self.headers.get("Authorization")})
                number = len(seen)
            try:
                say(Stream(self), body, number)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        listening.block_on_close = False
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}/v1", seen
        finally:
            listening.shutdown()
            thread.join()


def measured(url: str, *more: str, prompts=None, **terms) -> EndpointBench:
    asked = Terms(**{"concurrency": (1,), "requests": 4, "tokens": 3, "sessions": 2, "timeout_s": 1.0} | terms)
    return load.measure(load.find_targets([url, *more], ["m"], asked), asked, prompts, tell=lambda said: None)


def test_a_streaming_server_is_timed_as_whoever_asks_sees_it():
    with server(lambda stream, body, _: whole(stream, body)) as (url, seen):
        made = measured(url, concurrency=(1, 4), requests=8, tokens=5, timeout_s=20)
    assert len(seen) == 2 * (1 + 8 + 4 + 8)  # in each session and turn those that are not timed, and those that are
    assert {(one["stream"], one["max_tokens"], one["temperature"], one["model"]) for one in seen} == {(True, 5, 0, "m")}
    assert {one["path"] for one in seen} == {"/v1/chat/completions"} and {one["key"] for one in seen} == {None}
    requests = [request for session in made.sessions for turn in session for request in turn.requests]
    assert all(one.tokens == 5 and one.fault is None for one in requests)
    assert all(one.first_s >= GAP_S and one.token_s > 0 and one.total_s >= 5 * GAP_S for one in requests)
    alone, many = summarise(made).timings
    assert many.answers_per_s > 1.5 * alone.answers_per_s  # four at once wait beside one another
    assert alone.tokens_per_s == pytest.approx(5 * alone.answers_per_s) and alone.tokens_made == 5
    assert made.asked.prompts == 64 and len({json.dumps(one["messages"]) for one in seen[:13]}) > 9


def test_the_same_seed_deals_the_same_prompts_to_all_targets():
    prompts = tuple({"prompt": f"p{number}"} for number in range(7))

    def dealt(seed: int) -> list[str]:
        with server(lambda stream, body, _: whole(stream, body, gap_s=0)) as (url, seen):
            with server(lambda stream, body, _: whole(stream, body, gap_s=0)) as (other, also):
                measured(url, other, prompts=prompts, seed=seed, timeout_s=20)
        assert [one["prompt"] for one in seen] == [one["prompt"] for one in also]
        assert {one["path"] for one in seen} == {"/v1/completions"}
        return [one["prompt"] for one in seen]

    assert dealt(1) == dealt(1) != dealt(2)


def breaks_off(stream: Stream, body: dict, number: int) -> None:
    stream.begin()
    stream.piece("a")
    stream._handler.close_connection = True


def hangs(stream: Stream, body: dict, number: int) -> None:
    stream.begin()
    stream.piece("a")
    time.sleep(3)


def dribbles(stream: Stream, body: dict, number: int) -> None:
    stream.begin()
    while True:
        stream.piece("a")
        time.sleep(0.05)


def fails(stream: Stream, body: dict, number: int) -> None:
    stream.begin(500)
    stream.end()


def ends_without_saying_so(stream: Stream, body: dict, number: int) -> None:
    stream.begin()
    stream.piece("a")
    stream._handler.wfile.write(b"0\r\n\r\n")


def says_nothing(stream: Stream, body: dict, number: int) -> None:
    stream.begin()
    stream.end()


def errs(stream: Stream, body: dict, number: int) -> None:
    stream.begin()
    stream.piece("a")
    stream.event(error={"message": "out of memory"})
    stream.end()


def babbles(stream: Stream, body: dict, number: int) -> None:
    stream.begin()
    stream.send("data: {not json\n\n")
    stream.end()


@pytest.mark.parametrize(
    ("odd", "fault"),
    [
        (breaks_off, "broke off"),
        (hangs, "no end in time"),
        (dribbles, "no end in time"),
        (fails, "HTTP 500"),
        (ends_without_saying_so, "broke off"),
        (says_nothing, "no text"),
        (errs, "an error in the stream"),
        (babbles, "not a stream of answers"),
    ],
)
def test_what_fails_is_counted_and_never_timed(odd, fault):
    """Every other request fails."""

    def say(stream: Stream, body: dict, number: int) -> None:
        odd(stream, body, number) if number % 2 else whole(stream, body)

    with server(say) as (url, _):
        made = measured(url, requests=4, sessions=1, timeout_s=0.6)
    (found,) = summarise(made).timings
    assert found.faults == {fault: 2} and (found.answered, found.requests) == (2, 4)
    assert found.answer.p50_s < 0.6 and found.first.low_s is None
    text = shown.text(summarise(made))
    assert f"2 of 4 requests failed (2 × {fault}); times are of the others" in text
    assert "One session has no interval" in text


def test_a_server_that_gives_nothing_is_one_line():
    with server(fails) as (url, _):
        with pytest.raises(EndpointError, match="m gave none of 4 answers, got HTTP 500 4 times; start it, or mend"):
            measured(url)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(EndpointError, match="got no connection 4 times"):
            measured(f"http://127.0.0.1:{free.getsockname()[1]}/v1")


def test_what_the_server_does_not_count_is_missing():
    with server(lambda stream, body, _: whole(stream, body, usage=False)) as (url, _):
        made = measured(url, timeout_s=20)
    (found,) = summarise(made).timings
    assert found.token is None and found.tokens_per_s is None and found.tokens_made is None
    assert "tokens/s not counted" in shown.text(summarise(made))


def bench(medians: dict[str, list[float]], *, faults: int = 0) -> EndpointBench:
    """Made-up sessions: of each target a median time of answers a session, first texts at a tenth of it."""
    targets = tuple(Target(url="http://h/v1", model=name) for name in medians)
    asked = Asked(
        targets=targets, concurrency=(2,), requests=3, tokens=4, sessions=3, prompts=1, prompts_digest="d", seed=0
    )

    def turn(target: Target, middle: float) -> Turn:
        times = [0.9 * middle, middle, 5 * middle]
        good = tuple(Request(first_s=0.1 * one, total_s=one, tokens=4) for one in times)
        bad = (Request(first_s=None, total_s=99.0, tokens=None, fault="HTTP 500"),) * faults
        return Turn(target=target, concurrency=2, wall_s=2 * middle, client_share=0.1, requests=good + bad)

    sessions = zip(*medians.values(), strict=True)
    return EndpointBench(asked=asked, sessions=tuple(tuple(map(turn, targets, one)) for one in sessions))


def test_quantiles_rates_and_ratios_by_an_independent_count():
    slow, quick = [2.2, 1.8, 2.1], [1.0, 1.1, 0.9]
    found = summarise(bench({"quick": quick, "slow": slow}, faults=2))
    own = found.timings[1]
    assert (own.answered, own.requests, own.faults) == (9, 15, {"HTTP 500": 6})
    times = sorted(share * middle for middle in slow for share in (0.9, 1, 5))
    assert own.answer.p50_s == statistics.median(times) and own.answer.p95_s is None
    assert own.answers_per_s == pytest.approx(9 / sum(2 * one for one in slow))
    assert own.tokens_per_s == pytest.approx(4 * own.answers_per_s) and own.token.p50_s == pytest.approx(
        statistics.median(0.9 * one / 3 for one in times)
    )
    logs = [math.log(one) for one in slow]
    middle, half = statistics.mean(logs), scipy.stats.t.ppf(0.975, 2) * statistics.stdev(logs) / 3**0.5
    said = own.answer.middle_s, own.answer.low_s, own.answer.high_s
    assert said == pytest.approx([math.exp(one) for one in (middle, middle - half, middle + half)])
    assert [one.of for one in found.ratios] == ["first token", "token", "answer"]
    logs = [math.log(a / b) for a, b in zip(slow, quick, strict=True)]
    middle, half = statistics.mean(logs), scipy.stats.t.ppf(0.975, 2) * statistics.stdev(logs) / 3**0.5
    ratio = found.ratios[2]
    assert (ratio.ratio, ratio.low, ratio.high) == pytest.approx(
        [math.exp(x) for x in (middle, middle - half, middle + half)]
    )
    assert ratio.pace == "SLOWER" and "slow at http://h/v1 takes 1.9" in shown.text(found).replace("2.0", "1.9")


def test_sessions_without_an_answer_or_of_other_turns_are_refused():
    made = bench({"a": [1.0, 2.0, 1.5]})
    broken = [one.model_copy(update={"fault": "HTTP 500"}) for one in made.sessions[1][0].requests]
    turn = made.sessions[1][0].model_copy(update={"requests": tuple(broken)})
    with pytest.raises(EvidenceError, match="a session without a whole answer, got faults alone; measure again"):
        summarise(made.model_copy(update={"sessions": (made.sessions[0], (turn,))}))
    with pytest.raises(EvidenceError, match="need sessions that timed the same, got 2"):
        summarise(made.model_copy(update={"sessions": (made.sessions[0], ())}))


def test_addresses_and_models_are_paired():
    terms = Terms()
    pairs = load.find_targets(["http://a/v1/", "http://b/v1"], ["m"], terms)
    assert [(one.url, one.model) for one in pairs] == [("http://a/v1", "m"), ("http://b/v1", "m")]
    assert [one.model for one in load.find_targets(["http://a/v1"], ["m", "n"], terms)] == ["m", "n"]
    with server(fails) as (url, _):
        assert load.find_targets([url], [], terms)[0].model == "m"
    with pytest.raises(ConfigError, match="as many --model as --endpoint are wanted, or one of either, got 2 and 3"):
        load.find_targets(["http://a/v1", "http://b/v1"], ["m", "n", "o"], terms)
    with pytest.raises(ConfigError, match="different targets are wanted, got http://a/v1 twice"):
        load.find_targets(["http://a/v1", "http://a/v1"], ["m"], terms)
    with pytest.raises(EndpointError, match="lists no models, got ConnectError; start it, mend the address"):
        load.find_targets(["http://127.0.0.1:9/v1"], [], terms)
    with pytest.raises(ConfigError, match="no web address, got 'ftp://a'; write https"):
        load.find_targets(["ftp://a"], [], terms)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"prompt": "a"}\n{"messages": []}\n', r":2: not a prompt, got '\{\"messages\": \[\]\}'; write"),
        ('{"text": "a"}', ":1: not a prompt"),
        ("[1]", ":1: not a prompt"),
        ("\n", "holds no prompts, got an empty file"),
        ('{"prompt": 3}', ":1: not a prompt"),
        ("[" * 100_000, ":1: not a prompt"),
    ],
)
def test_files_of_prompts_are_read_strictly(tmp_path, content, said):
    (tmp_path / "prompts.jsonl").write_text(content)
    with pytest.raises(DataError, match=said):
        load.read_prompts(tmp_path / "prompts.jsonl")


def ran(*words: object):
    return CliRunner().invoke(cli.app, ["bench", *map(str, words)])


def test_the_verb_tells_faults_by_its_status_and_takes_keys_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", "secret-of-mine")
    (tmp_path / "p.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n\n{"prompt": "b"}\n')

    def say(stream: Stream, body: dict, number: int) -> None:
        fails(stream, body, number) if number == 5 else whole(stream, body, gap_s=0)

    with server(say) as (url, seen):
        how = ("--prompts", tmp_path / "p.jsonl", "--key-from", "A_KEY", "--sessions", 2, "--tokens", 2)
        made = ran("--endpoint", url, "--concurrency", 2, "--requests", 6, *how, "--json")
        again = ran("--endpoint", url, "--concurrency", 1, "--requests", 2, *how)
    assert made.exit_code == 3 and again.exit_code == 0, (made.stderr, again.stderr)
    found = json.loads(made.stdout)
    assert EndpointBench.model_validate(found["bench"]).asked.concurrency == (2,)
    assert found["endpoints"]["timings"][0]["faults"] == {"HTTP 500": 1}
    assert {one["key"] for one in seen} == {"Bearer secret-of-mine"} and "secret" not in made.stdout + made.stderr
    assert "1 at once: 4 of 4 answered" in again.stdout and "session 2 of 2" in again.stderr
    for words, said in (
        (("--concurrency", "0"), "--concurrency: must be whole numbers above 0, got '0'"),
        (("--concurrency", "2,2"), "--concurrency: different whole numbers above 0 are wanted"),
        (("--requests", 0), "--requests: must be 1 or more, got 0"),
        (("--key-from", "NO_KEY"), "bench: no key in the environment, got 'NO_KEY' unset"),
        (("--prompts", tmp_path / "none"), "cannot be read, got FileNotFoundError"),
    ):
        refused = ran("--endpoint", url, *words)
        assert refused.exit_code == 1 and said in refused.stderr and len(refused.stderr.splitlines()) == 1


def test_llama_cpp_is_timed_as_any_other_server(tmp_path):
    from tunetrial.ship import gguf_files, llamacpp

    base = gguf_files.write_base(models.EMBEDDED, Path(tmp_path) / "base.gguf", kind="f32")
    with llamacpp.server(base, alias="mine", threads=1) as running:
        made = ran(
            *("--endpoint", f"{running.url}/v1", "--concurrency", "1,2", "--requests", 4, "--tokens", 4),
            *("--sessions", 2, "--json"),
        )
    assert made.exit_code in (0, 3), made.stderr  # an answer without text counts as a fault
    found = json.loads(made.stdout)["endpoints"]
    assert found["asked"]["targets"][0]["model"] == "mine"
    assert all(0 < one["first"]["p50_s"] <= one["answer"]["p50_s"] for one in found["timings"])
    assert all(1 <= one["tokens_made"] <= 4 for one in found["timings"])
