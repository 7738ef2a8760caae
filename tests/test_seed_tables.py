"""docs/seed-tables.md says what the script finds."""

import pytest

import seed_tables
from seed_tables import SAID, TABLES

PAGE = seed_tables.DOCS.read_text(encoding="utf-8").splitlines()
SAID_OF_MEMORY = {said["said"]: said for said in SAID["memory"]}


@pytest.mark.parametrize("said", SAID["counts"], ids=lambda said: said["said"])
def test_rows_of_weights_are_what_is_counted(said):
    assert seed_tables.count(said) in PAGE


def test_a_row_of_memory_is_what_is_counted():
    assert seed_tables.memory(SAID_OF_MEMORY["LoRA, 1B on a T4: 2.5 GB"]) in PAGE


def test_every_claim_has_its_row_and_its_place():
    rows = [line for line in PAGE if line.startswith("| ")]
    for name in TABLES:
        for said in SAID[name]:
            assert sum(said["said"].replace("|", "\\|") in row for row in rows) >= 1
            number, _, lines = said.get("at", "000:1").partition(":")
            assert number in SAID["documents"] and all(line.strip().isdigit() for line in lines.split(","))


def test_where_a_claim_would_be_right():
    ranges = {step: seed_tables.Range(low=n * 1e9, high=(n + 1) * 1e9) for n, step in enumerate(seed_tables.STEPS, 5)}
    assert seed_tables.right([1, 2], ranges) == "nowhere: too little"
    assert seed_tables.right([20, 30], ranges) == "nowhere here: too much"
    assert seed_tables.right([6, 7.5], ranges) == "1 × 128 and 4 × 512"
    assert seed_tables.right([5.5, 5.5], ranges) == "1 × 128" and seed_tables.right([0, 9], ranges) == "everywhere here"


def test_the_figures_of_the_text_by_hand():
    assert (65 * 0.10, round(13.08 * 0.10, 2), 65 * 0.10 * 24 * 30) == (6.5, 1.31, 4680)
    assert 8 * (4096 + 4096) == 65_536 and 32 * 8192 * 4096 * 2 == pytest.approx(2.1e9, rel=0.03)
    shape = seed_tables.described("meta-llama/Llama-2-7b-hf").shape
    blocks = 4.127 / 8 * shape.layers * shape.block_parameters
    assert (blocks + 2 * 2 * shape.vocabulary * shape.hidden) / 1e9 == pytest.approx(3.9, abs=0.05)


@pytest.mark.slow
def test_the_page_is_what_the_script_writes():
    assert list(seed_tables.page()) == PAGE
