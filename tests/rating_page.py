"""The rating page as a user starts it: a process of its own, and its questions put as the page puts them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

HERE = Path(__file__).parent


@contextmanager
def page(study: Path, home: Path, *options: object) -> Iterator[tuple[subprocess.Popen, str]]:
    """Start `tunetrial rate`; give its process and the address that it prints. What still runs at the end is killed."""
    path = f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    process = subprocess.Popen(
        [sys.executable, "-c", "from tunetrial.cli import main; main()", "rate", str(study), *map(str, options)],
        env={**os.environ, "TUNETRIAL_HOME": str(home), "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("open http"):
                break
        else:
            raise AssertionError("".join(said))
        yield process, line.split()[1]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def stop(process: subprocess.Popen) -> str:
    """End it as Ctrl-C does; gives what it prints."""
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return printed


def put(address: str, name: str, **body: object) -> dict:
    """Put one question; gives the answer."""
    at, _, token = address.partition("#")
    with httpx.Client(trust_env=False) as client:
        answer = client.post(f"{at}ask/{name}", json=body, headers={"Authorization": f"Bearer {token}"}, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()
