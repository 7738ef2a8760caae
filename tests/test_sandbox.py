"""Completions that are code: those that are right pass, and what is hostile neither passes nor gets out."""

import os
import time

import pytest

from tunetrial.tasks import sandbox

ADD = "def add(a, b):\n    return a + b"


@pytest.fixture
def walls() -> tuple[str, ...]:
    return sandbox.walls()


def need(walls: tuple[str, ...], wall: str) -> None:
    if wall not in walls:
        pytest.skip(f"this system does not allow the wall {wall!r}: {walls}")


@pytest.mark.parametrize(
    ("completion", "tests", "passed"),
    [
        (ADD, "assert add(1, 2) == 3", True),
        (ADD, "assert add(1, 2) == 4", False),
        (f"Here you are:\n```python\n{ADD}\n```\nIt adds.", "assert add(1, 2) == 3", True),
        (f"```\n{ADD}\n```", "assert add(1, 2) == 3", True),
        ("def add(a, b:", "", False),
        ("raise ValueError", "", False),
        ("import json, math, re, collections", "assert math.pi > 3", True),
        ("import threading\nseen = []\nthreading.Thread(target=seen.append, args=(1,)).start()", "", True),
        ("open('notes', 'w').write('kept')", "assert open('notes').read() == 'kept'", True),
        ("import sys\ntext = sys.stdin.read()", "assert text == ''", True),
    ],
)
def test_code_passes_if_its_tests_do(completion, tests, passed):
    assert sandbox.passes(completion, tests) is passed


@pytest.mark.parametrize(
    "completion",
    [
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "import os\nfor stream in range(3, 20):\n    try: os.write(stream, b'0' * 32)\n    except OSError: pass",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "print('x' * 10**8); raise ValueError",
    ],
)
def test_ending_early_is_not_passing(completion):
    assert not sandbox.passes(completion, "assert False")


@pytest.mark.parametrize(
    "completion",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "room = bytearray(8 * 2**30)",
        "room = []\nwhile True: room.append(bytes(10**7))",
        "big = open('big', 'wb')\nwhile True: big.write(bytes(10**6))",
        "number = 0\nwhile True:\n    open(str(number), 'wb').write(bytes(10**6))\n    number += 1",
    ],
)
def test_endless_code_is_ended_in_time(monkeypatch, completion):
    monkeypatch.setattr(sandbox, "WALL_S", 1)
    started_s = time.monotonic()
    assert not sandbox.passes(completion, "")
    assert time.monotonic() - started_s < 10


def test_much_output_is_no_fault():
    assert sandbox.passes("import sys\nprint('x' * 10**7)\nsys.stderr.write('y' * 10**7)", "")


def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert sandbox.passes("import os\nfound = [v for v in os.environ.values() if 'secret' in v]", "assert not found")


def refused(statement: str) -> bool:
    """Whether a statement is stopped by the system, and not by something else."""
    code = f"import os, shutil, socket, subprocess, ctypes\ntry:\n    {statement}\nexcept OSError: stopped = True"
    return sandbox.passes(f"stopped = False\n{code}", "assert stopped")


def test_no_process_is_started_and_none_is_signalled(walls):
    need(walls, "no processes")
    assert refused("subprocess.run(['true'])") and refused("os.fork()") and refused("os.kill(os.getppid(), 9)")
    assert not sandbox.passes("import os\nwhile True:\n    try: os.fork()\n    except OSError: raise SystemExit", "")


def test_no_connection_is_made(walls):
    need(walls, "no network")
    assert refused("socket.create_connection(('127.0.0.1', 80), timeout=1)")


def test_nothing_outside_is_written_or_removed(walls, tmp_path):
    need(walls, "no writing outside")
    (tmp_path / "kept").write_text("kept")
    tmp_path.chmod(0o777)
    assert refused(f"open({str(tmp_path / 'kept')!r}, 'w')") and refused(f"os.remove({str(tmp_path / 'kept')!r})")
    assert refused(f"open({str(tmp_path / 'new')!r}, 'w')") and refused(f"shutil.rmtree({str(tmp_path)!r})")
    undo = "if ctypes.CDLL(None).mount(b'none', b'/', None, 32 | 4096, None): raise OSError"
    assert refused(undo)
    assert refused(f"open('/proc/{os.getpid()}/environ').read()")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    assert sandbox.passes("open('a', 'w').write('1')", "") and not list(tmp_path.iterdir())


def test_a_python_that_does_not_run_is_an_error_and_no_score(monkeypatch, tmp_path):
    sandbox.walls.cache_clear()
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 0\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sandbox.sys, "executable", str(broken))
    with pytest.raises(OSError, match="does not run an empty module"):
        sandbox.walls()
    sandbox.walls.cache_clear()
