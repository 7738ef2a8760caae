"""Draw the log of `tools/pretrain_base.py`: every recipe's loss, and what the shipped one fits.

python tools/draw_pretraining.py     # tools/pretrain_base.json to docs/pretrain_base.png
"""

import json
from pathlib import Path

from matplotlib.figure import Figure


def draw(logs: dict, path: Path) -> None:
    """Draw bits/byte on the validation file over tokens for every recipe, and the shipped one's other losses."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, log in logs.items():
        tokens = [row["tokens"] / 1e6 for row in log["rows"]]
        bits = [row["validation"]["bits_per_byte"] for row in log["rows"]]
        left.plot(tokens, bits, label=f"{name} {bits[-1]:.3f}", lw=2.2 if name == "base" else 1)
    left.set(title="validation file, every recipe", xlabel="million tokens", ylabel="bits/byte", ylim=(1.28, 1.7))
    left.legend(fontsize=7)
    rows = logs["base"]["rows"]
    tokens = [row["tokens"] / 1e6 for row in rows]
    right.plot(tokens, [row["train_nats"] for row in rows], label="training text, dropout on, mean since last point")
    right.plot(tokens, [row["held_out"]["nats_per_token"] for row in rows], label="held-out training documents")
    right.plot(tokens, [row["validation"]["nats_per_token"] for row in rows], label="validation file")
    right.set(title="base", xlabel="million tokens", ylabel="nats/token", ylim=(2.9, 4.4))
    right.legend(fontsize=7)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    draw(json.loads(Path("tools/pretrain_base.json").read_text(encoding="utf-8")), Path("docs/pretrain_base.png"))
