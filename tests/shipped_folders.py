"""Folders as `ship` writes them, made up: some bytes and a statement of what they are."""

import json
from pathlib import Path

import numpy as np

from tunetrial.core.evidence import Scores
from tunetrial.store import table


def statement(**changes: object) -> dict:
    chain = {"passed": True, "first_break": None}
    words = {"arm": "lora", "trial": "3f" * 8, "verdict": "SAME (within your margin)"}
    return {"format": "adapter", "base_fingerprint": "ab" * 32, "study": "cd" * 32, **words, "chain": chain} | changes


def shipped(folder: Path, weights: bytes = b"weights", files: dict[str, bytes] | None = None, **changes) -> Path:
    """Write a folder with these weights and further files; `changes` are of its statement."""
    folder.mkdir(parents=True, exist_ok=True)
    every = {"adapter_model.safetensors": weights, "adapter_config.json": b"{}", **(files or {})}
    for name, content in every.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "tunetrial.json").write_text(json.dumps(statement(**changes)))
    return folder


def score_table(score_E: np.ndarray, *, split: str = "test", ids=None, targets=None, clusters=None) -> bytes:
    """A table of scores as a study keeps it."""
    ids = ids or [f"row-{number}" for number in range(len(score_E))]
    target_E = np.array(targets or ["spam"] * len(score_E), dtype=object)
    scores = Scores(tuple(ids), tuple(clusters or ids), target_E, target_E)
    return table.to_parquet({split: scores}, {split: np.asarray(score_E, dtype=np.float64)})
