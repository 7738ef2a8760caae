"""Draw the rows of `studies/seed`: SST-2, MRPC and TREC at 1,500 training rows, and held-out paragraphs of WikiText-2.

    TUNETRIAL_DATA=folder python tools/seed_study.py
    tunetrial run studies/seed/study.yaml
    python tools/seed_study.py studies/seed/study-results/decision.json     # the tables of docs/seed-study.md

It is drawn by a digest of each row's own content, so the same rows come whatever their order; none is committed. Labels
are words, since a label is a text to the engine's readers.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

ROWS = Path(__file__).resolve().parent.parent / "studies/seed/rows"
SIZES = {"train": 1500, "validation": 400, "test": 1800}
LABELS = {
    "sst2": ("negative", "positive"),
    "mrpc": ("different", "same"),
    "trec": ("description", "entity", "abbreviation", "human", "location", "number"),
}
FOLDERS = {"sst2": "glue_sst2", "mrpc": "glue_mrpc", "trec": "trec6"}
PARAGRAPHS, FEWEST_CHARACTERS = 60, 200


def main() -> None:
    if len(sys.argv) > 1:
        print(tables(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
        return
    data = Path(os.environ.get("TUNETRIAL_DATA", ""))
    if not (data / "glue_sst2").is_dir():
        sys.exit(f"seed_study: TUNETRIAL_DATA: no folder with glue_sst2, got {str(data)!r}; name it")
    ROWS.mkdir(exist_ok=True)
    for task, folder in FOLDERS.items():
        for split, rows in splits(task, data / folder).items():
            write(ROWS / f"{task}-{split}.jsonl", rows)
    write(ROWS / "wikitext.jsonl", paragraphs(data / "wikitext2_eval/test.jsonl"))


def splits(task: str, folder: Path) -> dict[str, list[dict]]:
    """Rows by split, of each task the first of its own; one without validation rows has them drawn from training's."""
    found = {path.stem: [row for row in read(path) if row["label"] >= 0] for path in sorted(folder.glob("*.jsonl"))}
    drawn = {split: draw(rows) for split, rows in found.items()}
    if "validation" not in drawn:
        drawn["validation"], drawn["train"] = (
            drawn["train"][: SIZES["validation"]],
            drawn["train"][SIZES["validation"] :],
        )
    return {split: [labelled(task, row) for row in rows[: SIZES[split]]] for split, rows in drawn.items()}


def labelled(task: str, row: dict) -> dict:
    texts = {name: value for name, value in row.items() if name.startswith("text")}
    return {"id": key(row)[:12], **texts, "label": LABELS[task][row["label"]]}


def paragraphs(path: Path) -> list[dict]:
    """Paragraphs with the article that they stand in, which makes them less than independent."""
    article, found = "", []
    for row in read(path):
        text = row["text"].strip()
        if text.startswith("= ") and not text.startswith("= ="):
            article = text.strip("= ")
        elif not text.startswith("=") and len(text) >= FEWEST_CHARACTERS:
            found.append({"id": key(row)[:12], "cluster": article, "text": text})
    return draw(found)[:PARAGRAPHS]


def draw(rows: list[dict]) -> list[dict]:
    """Each text once, the first of its rows."""
    first = {key(row): row for row in reversed(rows)}
    return [first[own] for own in sorted(first)]


def key(row: dict) -> str:
    texts = [row[name] for name in sorted(row) if name.startswith("text")]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def tables(decision: dict) -> str:
    """What a decision says of scores, verdicts, drift, updates and forgetting, as Markdown."""
    scores = [
        [a["task"], a["arm"], *(number(a[name]) for name in ("learning_rate", "mean", "sd", "floor")), a["state"]]
        for a in decision["arms"]
    ]
    verdicts = [
        [v["task"], v["words"], ends((v["effect"], v["low"], v["high"])), number(v["margin"]), v["n_replicates"]]
        for v in decision["verdicts"]
    ]
    moved = [
        [m["task"], m["source"], m["arm"], m["measure"], ends(m["overall"]), ends(m["difference"]), equal(m)]
        for m in decision.get("moved", [])
        if m["pooling"] == "mean" and m["measure"] in ("1 - CKA", "change")
    ]
    updated = [
        [u["task"], u["arm"], ends(u["size"]), ends(u["stable"]), ends(u["effective"]), intruders(u)]
        for u in decision.get("updated", [])
    ]
    forgotten = [
        [f["task"], f["arm"], *(ends(f["losses"][0][name]) for name in ("nats", "beyond", "kl"))]
        for f in decision.get("forgotten", [])
        if f["losses"]
    ]
    explained = [
        [e["task"], e["source"], ends(e["pooled"]), ends(e["within"]), e["runs"]] for e in decision.get("explained", [])
    ]
    parts = {
        ("task", "arm", "rate", "mean", "SD of seeds", "best constant", "state"): scores,
        ("task", "verdict", "LoRA minus full", "margin", "seeds"): verdicts,
        ("task", "rows of", "arm", "measure", "mean over layers", "minus full", "at equal score"): moved,
        ("task", "arm", "update / base", "stable rank", "effective rank", "intruders of 10"): updated,
        ("task", "arm", "nats a token lost", "more than full", "KL"): forgotten,
        ("task", "drift on", "Spearman, all runs", "within arms", "runs"): explained,
    }
    return "\n".join(line for head, rows in parts.items() for line in table(head, rows))


def table(head: tuple[str, ...], rows: list[list]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*("| " + " | ".join(map(str, line)) + " |" for line in lines), ""]


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def ends(found: list | tuple | None) -> str:
    if found is None or found[0] is None:
        return ""
    return number(found[0]) if None in found else f"{found[0]:.3g} ({found[1]:.3g} to {found[2]:.3g})"


def equal(moved: dict) -> str:
    return ends(moved["at_equal_score"]) or moved["unequal"] or ""


def intruders(updated: dict) -> str:
    """Left vectors, k = 10, epsilon = 0.5."""
    return ends(updated["intruders"]["left"][updated["tops"].index(10)][updated["epsilons"].index(0.5)])


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
