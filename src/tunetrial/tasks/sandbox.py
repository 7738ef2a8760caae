"""Completions that are code, executed against their row's tests in a walled-in child process (this file, as a script).

A completion passes if it runs to its end and the tests after it, in the same module, do too. The child says so by a
number drawn for it, which it is given outside of the module's reach: a completion that ends the process early with a
good exit status has not passed. Code that goes looking for that number in its own process can find it; this is a
sandbox for what models write, not for what is written against it.

Where Linux allows, the child has no network, can start no process and signal none, writes to an empty folder in
memory alone, and sees no /proc; `walls` says what holds here. Everywhere it has an empty environment, an isolated
Python, and limits on time, memory, files and their sizes, and is killed with all of its group. It may read what its
user may read.
"""

import ctypes
import json
import os
import platform
import re
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache

CPU_S = 5
WALL_S = 20
MEMORY_BYTES = 2**30
FILE_BYTES = 8 * 2**20
OPEN_FILES = 64
PROCESSES = 64
FENCE = re.compile(r"^```[\w+-]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
# An empty Python loads numpy and its like in one thread; more would count against the memory.
ENVIRONMENT = {"LANG": "C.UTF-8", "PATH": os.defpath, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def passes(completion: str, tests: str) -> bool:
    """Execute a completion, or the first fenced block in it, and then the tests; say whether both came to their end.

    What takes too long or too much memory, raises, or ends the process has not passed.
    """
    fenced = FENCE.search(completion)
    return _execute(fenced[1] if fenced else completion, tests)[0]


@cache
def walls() -> tuple[str, ...]:
    """What keeps code in on this machine, beyond limits, such as "no network"; nothing where no wall can be built.

    Raises:
        OSError: Not even an empty module runs: Python does not start here on its own.
    """
    passed, built = _execute("x = 1", "assert x == 1")
    if not passed:
        raise OSError(f"sandbox: {sys.executable} does not run an empty module, got walls {built}; see its limits")
    return built


def _execute(code: str, tests: str) -> tuple[bool, tuple[str, ...]]:
    nonce, folder = secrets.token_hex(16), tempfile.mkdtemp(prefix="tunetrial-")
    order = json.dumps({"code": code, "tests": tests}).encode()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    settings = {"cwd": folder, "env": ENVIRONMENT | {"HOME": folder}, "start_new_session": True}
    try:
        with subprocess.Popen([sys.executable, "-I", "-B", __file__], **pipes, **settings) as process:
            try:
                said, _ = process.communicate(b"%16d" % len(order) + order + nonce.encode(), timeout=WALL_S)
            except subprocess.TimeoutExpired:
                said = b""
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    built, _, found = said.partition(b"\n")
    return found == nonce.encode(), tuple(json.loads(built or b"[]"))


def _serve() -> None:
    """Read the order, build walls, run code and tests, and only then read the number and say it."""
    source, answer = os.dup(0), os.dup(1)
    order = json.loads(_read(source, int(_read(source, 16))))
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    built = _build_walls()
    os.write(answer, json.dumps(built).encode() + b"\n")
    _limit(processes=None if "no processes" in built else PROCESSES)
    module = {"__name__": "__main__"}
    for name in ("code", "tests"):
        exec(compile(order[name], name, "exec", dont_inherit=True), module)
    os.write(answer, _read(source, 32))
    os._exit(0)


def _read(source: int, size: int) -> bytes:
    content = b""
    while len(content) < size:
        part = os.read(source, size - len(content))
        if not part:
            raise EOFError
        content += part
    return content


def _limit(*, processes: int | None) -> None:
    for name, most in (
        *([("RLIMIT_NPROC", processes)] if processes else []),
        ("RLIMIT_CPU", CPU_S),
        ("RLIMIT_AS", MEMORY_BYTES),
        ("RLIMIT_FSIZE", FILE_BYTES),
        ("RLIMIT_NOFILE", OPEN_FILES),
        ("RLIMIT_CORE", 0),
    ):
        with suppress(ValueError, OSError):  # not every system has or lowers each of them
            resource.setrlimit(getattr(resource, name), (most, most))


def _build_walls() -> list[str]:
    """Build what walls the system allows, and name them; a wall that cannot be built is not."""
    if sys.platform != "linux":
        return []
    kernel = ctypes.CDLL(None, use_errno=True)
    built = ["no network", "no writing outside"] if _unshare(kernel) else []
    filtered = _filter_calls(kernel)
    _drop_capabilities(kernel)
    return list(dict.fromkeys([*built, *(["no network", "no processes"] if filtered else [])]))


def _unshare(kernel: ctypes.CDLL) -> bool:
    """Take namespaces of one's own: no interface but a dead loopback, all mounts read-only but a small new one here."""
    new_user, new_mount, new_network, new_ipc = 0x10000000, 0x00020000, 0x40000000, 0x08000000
    private, recursive, no_suid, no_devices = 1 << 18, 0x4000, 2, 4
    user, group, here = os.getuid(), os.getgid(), os.getcwd()
    if kernel.unshare(new_user | new_mount | new_network | new_ipc):
        return False
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError:
        return False
    read_only = (ctypes.c_uint64 * 4)(1, 0, 0, 0)  # struct mount_attr
    mount_setattr, at_recursive = 442, 0x8000
    size = b"size=%d" % (2 * FILE_BYTES)
    done = (
        not kernel.mount(b"none", b"/", None, recursive | private, None)
        and not kernel.syscall(mount_setattr, -1, b"/", at_recursive, ctypes.byref(read_only), 32)
        and not kernel.mount(b"tmpfs", here.encode(), b"tmpfs", no_suid | no_devices, size)
        and not kernel.mount(b"tmpfs", b"/proc", b"tmpfs", no_suid | no_devices, b"size=4096")
    )
    os.chdir(here)
    return done


def _filter_calls(kernel: ctypes.CDLL) -> bool:
    """Let the kernel refuse to start processes, to open sockets and to signal others; threads may be started.

    Source: the seccomp filters of the kernel's manual, seccomp(2); numbers of calls from its tables.
    """
    x86 = {"architecture": 0xC000003E, "clone": 56, "others": (57, 58, 41, 62, 101, 425), "clone3": 435}
    arm = {"architecture": 0xC00000B7, "clone": 220, "others": (198, 129, 117, 425), "clone3": 435}
    calls = {"x86_64": x86, "aarch64": arm}.get(platform.machine())
    if calls is None or sys.maxsize < 2**32:
        return False
    load, equal, at_least, bits_set, end = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, absent = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38  # EPERM, ENOSYS
    thread, x32 = 0x10000, 0x40000000
    others = calls["others"]
    program = [
        *((load, 0, 0, 4), (equal, 1, 0, calls["architecture"]), (end, 0, 0, refuse)),
        *((load, 0, 0, 0), (at_least, 0, 1, x32), (end, 0, 0, refuse)),
        *(step for number in others for step in ((equal, 0, 1, number), (end, 0, 0, refuse))),
        *((equal, 0, 1, calls["clone3"]), (end, 0, 0, absent)),
        *((equal, 0, 3, calls["clone"]), (load, 0, 0, 16), (bits_set, 1, 0, thread), (end, 0, 0, refuse)),
        (end, 0, 0, allow),
    ]
    packed = b"".join(
        code.to_bytes(2, "little") + bytes((yes, no)) + value.to_bytes(4, "little") for code, yes, no, value in program
    )

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

    no_new_privileges, seccomp, mode_filter = 38, 22, 2
    held = Program(len(program), packed)
    return (
        not kernel.prctl(no_new_privileges, 1, 0, 0, 0)
        and not kernel.prctl(seccomp, mode_filter, ctypes.byref(held), 0, 0)
    )  # fmt: skip


def _drop_capabilities(kernel: ctypes.CDLL) -> None:
    """Give up all power over the namespaces just taken, and whatever root had."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    kernel.capset(header, (ctypes.c_uint32 * 6)())


if __name__ == "__main__":
    _serve()
