"""docs/operations.md says what the script finds in what was kept."""

import json

import pytest

import operations
from operations import KEPT

KEPT_NOW = json.loads(KEPT.read_text(encoding="utf-8"))


def test_the_page_is_what_was_kept():
    assert "\n".join(operations.page(KEPT_NOW)) + "\n" == operations.DOCS.read_text(encoding="utf-8")


def test_ratios_are_full_over_lora_and_what_nobody_measured_is_said_so():
    arms = {"lora": {"cycle": [10.0, "here"]}, "full": {"cycle": [25.0, "here"]}}
    row = {"at": "000:128", "what": "a whole iteration", "said": ["33 min", "107 min"], "values": [33, 107]}
    assert operations.cells(row | {"key": "cycle"}, arms)[2:] == [
        *("33 min", "107 min", "3.2", "10.0 s", "25.0 s", "2.5", "here"),
    ]
    assert operations.cells(row | {"key": "swap"}, arms)[5:] == ["not measured", "not measured", "", ""]


def test_the_documents_ratios_by_hand():
    of = {row["at"]: row["values"] for row in KEPT_NOW["said"] if row["values"]}
    ratios = {at: full / lora for at, (lora, full) in of.items()}
    assert ratios["000:128"] == pytest.approx(3.24, abs=0.01) and ratios["000:140, 150"] == pytest.approx(4)
    assert ratios["001:852, 842"] == pytest.approx(14) and ratios["001:873, 864"] == pytest.approx(4.97, abs=0.01)


def test_an_iteration_is_its_parts():
    for found in KEPT_NOW["measured"]["arms"].values():
        parts = [found[name] for name in ("train", "export", "deploy", "test")]
        if found["cycle"] is None:
            assert None in parts
        else:
            assert found["cycle"][0] == pytest.approx(sum(value for value, _ in parts))
