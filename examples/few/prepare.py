"""The 81 training rows of the built-in task `newsletter` as one CSV file beside the study.

python examples/few/prepare.py
"""

import csv
from pathlib import Path

from tunetrial import tasks

FIELDS = ("id", "sender", "title", "snippet", "score")

rows = tasks.read_rows(tasks.find("newsletter"), "train")
with (Path(__file__).parent / "newsletter81.csv").open("w", encoding="utf-8", newline="") as file:
    writer = csv.DictWriter(file, FIELDS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
