"""Check the embedded data sets and print every number of their cards.

    python tools/check_data.py

Fails when two items of a set share half or more of their character 5-grams (Jaccard), as written or with names and
digits masked, when a sender stands in two splits, or when a row is too long.
"""

import re
import statistics
import sys
from collections import Counter
from itertools import combinations

import numpy as np
from sklearn.metrics import cohen_kappa_score
from transformers import AutoTokenizer

from build_data import read_items, read_reader
from tunetrial import models, tasks

LIKENESS_LIMIT = 0.5
LONGEST_TOKENS, MEDIAN_TOKENS = 96, 40


def masked(text: str) -> str:
    """Replace digits by 0 and capitalised words inside sentences by N, so that slot filling shows."""
    return re.sub(r"\d+", "0", re.sub(r"(?<![.!?] )(?<!^)\b[A-Z][a-z]+", "N", text))


def grams(text: str) -> frozenset[str]:
    """Character 5-grams of lower-cased text with white space folded."""
    text = re.sub(r"\s+", " ", text.lower())
    return frozenset(text[i : i + 5] for i in range(len(text) - 4))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Shared over all; 0 when either is empty."""
    return len(a & b) / len(a | b) if a and b else 0.0


def likeness(texts: dict[str, str]) -> tuple[float, str, str]:
    """Return the most alike pair of all texts: (Jaccard, id, id)."""
    sets = {name: grams(text) for name, text in texts.items()}
    return max((jaccard(sets[a], sets[b]), a, b) for a, b in combinations(sets, 2))


def icc_agreement(scores: np.ndarray) -> float:
    """Intraclass correlation ICC(A,1) of shape (items, raters): two-way, absolute agreement, one rater.

    Source: Shrout and Fleiss (1979), their ICC(2,1).
    """
    n, k = scores.shape
    total = scores.mean()
    items = k * ((scores.mean(axis=1) - total) ** 2).sum() / (n - 1)
    raters = n * ((scores.mean(axis=0) - total) ** 2).sum() / (k - 1)
    squares = ((scores - total) ** 2).sum() - items * (n - 1) - raters * (k - 1)
    error = squares / ((n - 1) * (k - 1))
    return float((items - error) / (items + (k - 1) * error + k * (raters - error) / n))


def report_likeness(name: str, texts: dict[str, str], faults: list[str]) -> None:
    for how, shown in (("as written", texts), ("names and digits masked", {k: masked(v) for k, v in texts.items()})):
        value, a, b = likeness(shown)
        print(f"{name}: {len(texts)} items, most alike pair {how}: Jaccard {value:.3f} ({a}, {b})")
        if value >= LIKENESS_LIMIT:
            faults.append(f"{name}: {a} and {b} share {value:.2f} of their 5-grams {how}; rewrite one")


def report_rows(name: str, faults: list[str]) -> None:
    """Sizes, senders, token lengths and label shares of each split of a task."""
    task, tokenizer = tasks.find(name), AutoTokenizer.from_pretrained(models.resolve("embedded").folder)
    senders: dict[str, str] = {}
    lengths, whole = [], []
    for split in task.splits:
        rows = tasks.read_rows(task, split)
        for row in rows:
            if senders.setdefault(row["sender"], split) != split:
                faults.append(f"{name}: sender {row['sender']!r} stands in {senders[row['sender']]} and {split}")
        lengths += [len(tokenizer(tasks.render(task, row)).input_ids) for row in rows]
        if task.kind == "generate":
            whole += [len(tokenizer(tasks.render(task, row) + row[task.target]).input_ids) + 1 for row in rows]
        count = Counter(int(row[task.target]) if task.kind == "regress" else row[task.target] for row in rows)
        shown = "" if task.kind == "generate" else f", {dict(sorted(count.items()))}"
        print(f"{name} {split}: {len(rows)} rows, {len({row['sender'] for row in rows})} senders{shown}")
    print(f"{name}: prompt tokens median {statistics.median(lengths):g}, longest {max(lengths)}")
    if max(lengths) > LONGEST_TOKENS or statistics.median(lengths) > MEDIAN_TOKENS:
        faults.append(f"{name}: prompts are too long for a laptop; shorten or leave out the longest")
    if whole:
        second = sorted(whole)[-2]
        print(
            f"{name}: tokens with the answer median {statistics.median(whole):g}, longest {max(whole)}, then {second}"
        )


def report_agreement() -> None:
    """The two newsletter readers, and the tickets' author against the blind reader, over all written items."""
    a, b = (read_reader("newsletter", name) for name in ("reader_a", "reader_b"))
    scores = np.array([[int(a[item]["score"]), int(b[item]["score"])] for item in sorted(a)])
    kappa = cohen_kappa_score(scores[:, 0], scores[:, 1], weights="quadratic")
    gap = abs(scores[:, 0] - scores[:, 1])
    print(f"newsletter readers, {len(scores)} items: ICC(A,1) {icc_agreement(scores.astype(float)):.3f}, ", end="")
    print(f"quadratic kappa {kappa:.3f}, equal {np.mean(gap == 0):.3f}, mean gap {gap.mean():.3f}, largest {gap.max()}")
    means = Counter(scores.mean(axis=1).tolist())
    print(f"newsletter labels: {dict(sorted(means.items()))}")
    author, reader = {item["id"]: item for item in read_items("tickets")}, read_reader("tickets", "reader")
    for field in ("queue", "urgency", "product"):
        pairs = [(author[i][field], reader[i][field]) for i in author]
        kappa = cohen_kappa_score(*zip(*pairs, strict=True))
        print(f"tickets {field}: author and blind reader differ on {sum(x != y for x, y in pairs)}", end="")
        print(f" of {len(pairs)} (kappa {kappa:.3f})")


def main() -> None:
    faults: list[str] = []
    newsletter, tickets = read_items("newsletter"), read_items("tickets")
    report_likeness("newsletter", {i["id"]: f"{i['title']} {i['snippet']}" for i in newsletter}, faults)
    report_likeness("tickets", {i["id"]: i["message"] for i in tickets}, faults)
    for name in tasks.BUILT_IN:
        report_rows(name, faults)
    report_agreement()
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
