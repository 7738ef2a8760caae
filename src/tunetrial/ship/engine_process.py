"""The process that runs a server's command, started by `engines` as a script: nothing of the package is loaded.

The command comes in as one line of JSON on stdin. When stdin closes, because the server is no longer wanted or because
whoever started it is gone, it and all that it started end: asked first, killed after a while.
"""

import json
import os
import signal
import subprocess
import sys
from threading import Thread

GRACE_S = 5


def main() -> None:
    """Run the command until it ends or stdin closes."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # sent to the whole group below; a command starts without it
    command = json.loads(sys.stdin.buffer.readline())
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    except OSError as error:
        print(f"error: {command[0]}: {error}", file=sys.stderr, flush=True)
        os._exit(127)
    Thread(target=_end_with_child, args=(child,), daemon=True).start()
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGTERM)
    try:
        child.wait(GRACE_S)
    finally:
        os.killpg(0, signal.SIGKILL)


def _end_with_child(child: subprocess.Popen) -> None:
    status = child.wait()
    os.killpg(0, signal.SIGTERM)
    os._exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
