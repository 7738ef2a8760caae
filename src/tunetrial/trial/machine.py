"""What machine this is, asked without torch."""

import shutil
import subprocess

from tunetrial.plan.estimate import GPUS

WAIT_S = 5.0


def gpu_name() -> str | None:
    """The GPU as plans know it, or in its maker's words; None without one, or without NVIDIA's tools."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        asked = [tool, "--query-gpu=name", "--format=csv,noheader"]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=WAIT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    name = said.splitlines()[0].strip() if said.strip() else None
    return name and short_name(name)


def short_name(name: str) -> str:
    """`NVIDIA A100-SXM4-80GB` is `a100`; a name that plans do not know stays as it is."""
    plain = "".join(c for c in name.lower() if c.isalnum())
    return max((known for known in GPUS if known in plain), key=len, default=name)
