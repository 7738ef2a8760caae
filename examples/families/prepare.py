"""Rows for the five studies of this folder, from data sets as they are published: see README.md.

    python prepare.py code path/of/conala

reads train, validation and test (.jsonl, or .json holding a list) there and writes code_train.jsonl and so on beside
the study. Which rows are taken follows from their text alone: those whose SHA-256 is smallest.
"""

import argparse
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

MOST = {"train": 1000, "validation": 128, "test": 320}
TECHNICAL = re.compile(
    r"\b(comput\w*|software|hardware|algorithms?|program(s|ming|mers?)?|cod(e|ing)|databases?|sql|python|java(script)?"
    r"|html|css|apis?|servers?|networks?|internet|web ?sites?|wi-?fi|machine learning|deep learning|neural|data \w+"
    r"|cloud|cyber\w*|encrypt\w*|operating systems?|linux|windows|apps?|technolog\w*|artificial intelligence|ai"
    r"|blockchain|robots?|electr\w*|engines?|engineer\w*|circuits?|physics|chemi\w*|molecul\w*|equations?|functions?)\b",
    re.IGNORECASE,
)


def customer_service(row: dict) -> Iterator[dict]:
    """The last five turns as a chat; the customer speaks last, and the agent's reply is the answer."""
    turns = [turn.removeprefix("Customer: ").removeprefix("Agent: ") for turn in row["context"][-5:]]
    roles = ["user" if place % 2 == 0 else "assistant" for place in reversed(range(len(turns)))]
    said = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)]
    yield {"dialogue": row["dialogue_id"], "messages": [*said, {"role": "assistant", "content": row["response"]}]}


def code(row: dict) -> Iterator[dict]:
    """What is wanted, as rewritten with the names that the code uses where somebody did that, and the code."""
    intent = row["rewritten_intent"] or row["intent"]
    yield {"question": row["question_id"], "intent": intent.strip(), "snippet": row["snippet"].strip()}


def creative_writing(row: dict) -> Iterator[dict]:
    """Each paragraph of 80 to 400 characters, and of the two before it what fits into 300."""
    paragraphs = [text.strip() for section in row["sections"] for text in section.split("\n") if text.strip()]
    for place in range(2, len(paragraphs)):
        if 80 <= len(paragraphs[place]) <= 400:
            before = "\n".join(paragraphs[place - 2 : place])[-300:]
            yield {"title": row["title"], "before": before, "paragraph": paragraphs[place]}


def data_to_text(row: dict) -> Iterator[dict]:
    """A restaurant's data and one description of it."""
    yield {"data": row["input"], "text": row["output"]}


def technical_qa(row: dict) -> Iterator[dict]:
    """Questions about computers, engineering and science, with answers; 60 to 1,200 characters together."""
    question = "\n".join(filter(None, (row["instruction"].strip(), row["input"].strip())))
    if TECHNICAL.search(question) and 60 <= len(question) + len(row["output"].strip()) <= 1200:
        yield {"question": question, "answer": row["output"].strip()}


# How the rows are made, which fields say what they come of, and how many rows of one origin there may be in a split.
FAMILIES: dict[str, tuple[Callable[[dict], Iterator[dict]], str, dict[str, int]]] = {
    "customer_service": (customer_service, "dialogue", {"train": 2, "validation": 1, "test": 1}),
    "code": (code, "question", {"train": 3, "validation": 3, "test": 1}),
    "creative_writing": (creative_writing, "title", {"train": 16, "validation": 16, "test": 32}),
    "data_to_text": (data_to_text, "data", {"train": 3, "validation": 1, "test": 1}),
    "technical_qa": (technical_qa, "question", {"train": 1, "validation": 1, "test": 1}),
}


def mark(value: object) -> str:
    """SHA-256 of a row or of what it comes of."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read(folder: Path, split: str) -> list[dict]:
    """The rows of a split as published; none if it has no file."""
    for path in (folder / f"{split}.jsonl", folder / f"{split}.json"):
        if path.exists():
            text = path.read_text(encoding="utf-8")
            return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    return []


def pick(rows: list[dict], origin: str, each: int, most: int) -> list[dict]:
    """At most `each` rows of an origin and `most` in all, in the order of their SHA-256."""
    taken: dict[str, int] = {}
    chosen = []
    for row in sorted(rows, key=mark):
        taken[row[origin]] = taken.get(row[origin], 0) + 1
        if taken[row[origin]] <= each:
            chosen.append(row)
    return chosen[:most]


def divide(rows: list[dict], origin: str, split: str, share: float) -> tuple[list[dict], list[dict]]:
    """Move about this share of the origins to a split, the same ones each time."""
    moved = [int(mark([split, row[origin]])[:8], 16) < share * 2**32 for row in rows]
    return (
        [row for row, away in zip(rows, moved, strict=True) if not away],
        [row for row, away in zip(rows, moved, strict=True) if away],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("folder", type=Path, help="holds train, validation and test as .jsonl or .json")
    parser.add_argument("--to", type=Path, default=Path(__file__).parent, help="where to write; beside the studies")
    asked = parser.parse_args()
    make, origin, each = FAMILIES[asked.family]
    splits = {split: [new for row in read(asked.folder, split) for new in make(row)] for split in MOST}
    if not splits["train"]:
        parser.error(f"{asked.folder}: no rows for {asked.family}; give the folder of train.jsonl or train.json")
    if asked.family == "technical_qa":  # too few rows are technical to keep the published splits
        splits["train"], splits["test"] = divide(sum(splits.values(), []), origin, "test", 0.3)
        splits["validation"] = []
    if not splits["test"]:
        splits["train"], splits["test"] = divide(splits["train"], origin, "test", 0.2)
    if not splits["validation"]:
        splits["train"], splits["validation"] = divide(splits["train"], origin, "validation", 0.15)
    for split, rows in splits.items():
        chosen = pick(rows, origin, each[split], MOST[split])
        path = asked.to / f"{asked.family}_{split}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen), encoding="utf-8")
        print(f"{path}: {len(chosen)} rows")


if __name__ == "__main__":
    main()
