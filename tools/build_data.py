"""Make the embedded data sets from `sources/`: label, leave out the longest, split by sender, write, seal.

    python tools/build_data.py            # rewrites src/tunetrial/embedded/{newsletter,tickets}
    python tools/build_data.py --check    # fails if what is committed differs

Every step is a pure function of the committed sources, so the same bytes come out anywhere.
"""

import argparse
import csv
import hashlib
import json
import random
from pathlib import Path

from tunetrial.core.manifest import write_manifest

ROOT = Path(__file__).resolve().parent.parent
SOURCES, EMBEDDED = ROOT / "sources", ROOT / "src/tunetrial/embedded"
NEWSLETTER_SPLITS = {"train": 81, "train_extra": 159, "validation": 100, "test": 190}
TICKETS_SPLITS = {"train": 320, "validation": 160, "test": 420}


def read_items(task: str) -> list[dict]:
    return [json.loads(line) for line in (SOURCES / task / "items.jsonl").read_text(encoding="utf-8").splitlines()]


def read_reader(task: str, name: str) -> dict[str, dict[str, str]]:
    """Read one reader's labels, keyed by item id."""
    with open(SOURCES / task / f"{name}.csv", newline="", encoding="utf-8") as file:
        return {row.pop("id"): row for row in csv.DictReader(file)}


def label_newsletter() -> list[dict]:
    """Join items with the mean of the two readers' scores and reader A's rationale."""
    first, second = read_reader("newsletter", "reader_a"), read_reader("newsletter", "reader_b")
    return [
        item
        | {
            "score": (int(first[item["id"]]["score"]) + int(second[item["id"]]["score"])) / 2,
            "rationale": first[item["id"]]["rationale"],
        }
        for item in read_items("newsletter")
    ]


def label_tickets() -> list[dict]:
    """Join items with the blind reader's labels: an author knows what was meant, a reader what can be told."""
    reader = read_reader("tickets", "reader")
    rows = []
    for item in read_items("tickets"):
        fields = reader[item["id"]]
        rows.append(item | fields | {"json": json.dumps(fields, separators=(",", ":"))})
    return rows


def shortest(rows: list[dict], *, count: int, text: str) -> list[dict]:
    """Keep the `count` rows with the fewest characters, in their order; ties by id."""
    kept = sorted(rows, key=lambda row: (sum(len(row[name]) for name in text.split()), row["id"]))[:count]
    return sorted(kept, key=lambda row: row["id"])


def spread(rows: list[dict], label: str) -> dict[str, float]:
    """Share of each value of a label; scores are taken in whole points."""
    values = [str(int(row[label])) if isinstance(row[label], float) else row[label] for row in rows]
    return {value: values.count(value) / len(values) for value in set(values)}


def split_by_sender(rows: list[dict], sizes: dict[str, int], labels: tuple[str, ...]) -> dict[str, list[dict]]:
    """Deal whole senders into splits of exactly these sizes; of 300 seeded deals, the most even in its labels."""
    senders: dict[str, list[dict]] = {}
    for row in rows:
        senders.setdefault(row["sender"], []).append(row)
    whole = {label: spread(rows, label) for label in labels}
    best, best_unevenness, seed, found = None, float("inf"), 0, 0
    while found < 300:
        rng, seed = random.Random(seed), seed + 1
        deal: dict[str, list[dict]] = {name: [] for name in sizes}
        for sender in rng.sample(sorted(senders), len(senders)):
            open_splits = [n for n in sizes if len(deal[n]) + len(senders[sender]) <= sizes[n]]
            if not open_splits:
                break
            room = [sizes[n] - len(deal[n]) for n in open_splits]
            deal[rng.choices(open_splits, room)[0]] += senders[sender]
        else:
            found += 1
            unevenness = sum(
                abs(spread(part, label).get(value, 0) - share)
                for part in deal.values()
                for label in labels
                for value, share in whole[label].items()
            )
            if unevenness < best_unevenness:
                best, best_unevenness = deal, unevenness
    return {
        name: sorted(part, key=lambda row: hashlib.sha256(row["id"].encode()).hexdigest())
        for name, part in best.items()
    }


def build(folder: Path) -> None:
    """Write both data sets with their manifests under `folder`."""
    newsletter = shortest(label_newsletter(), count=sum(NEWSLETTER_SPLITS.values()), text="sender title snippet")
    tickets = shortest(label_tickets(), count=sum(TICKETS_SPLITS.values()), text="message")
    fields = {
        "newsletter": ("id", "sender", "title", "snippet", "topic", "score", "rationale"),
        "tickets": ("id", "sender", "message", "queue", "urgency", "product", "json"),
    }
    splits = {
        "newsletter": split_by_sender(newsletter, NEWSLETTER_SPLITS, ("score",)),
        "tickets": split_by_sender(tickets, TICKETS_SPLITS, ("queue", "urgency", "product")),
    }
    for task, parts in splits.items():
        (folder / task).mkdir(parents=True, exist_ok=True)
        for name, rows in parts.items():
            lines = [json.dumps({field: row[field] for field in fields[task]}, ensure_ascii=False) for row in rows]
            (folder / task / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        write_manifest(folder / task, [f"{name}.jsonl" for name in parts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if not parser.parse_args().check:
        return build(EMBEDDED)
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        build(Path(scratch))
        for made in sorted(Path(scratch).rglob("*.json*")):
            kept = EMBEDDED / made.relative_to(scratch)
            if not kept.exists() or made.read_bytes() != kept.read_bytes():
                raise SystemExit(f"{kept}: differs from what sources/ give; run tools/build_data.py and commit")
    print("embedded data equal their sources")


if __name__ == "__main__":
    main()
