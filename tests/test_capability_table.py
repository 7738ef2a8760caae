"""docs/methods.md says what the probe finds."""

import warnings

import pytest

import capability_table
from tunetrial.methods.peft import capabilities, fitting

PAGE = capability_table.DOCS.read_text(encoding="utf-8").splitlines()


def found(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return capability_table.line(name, capability_table.probe(name))


def test_a_row_of_the_page_is_what_the_probe_finds():
    assert found("IA3") in PAGE


@pytest.mark.slow
@pytest.mark.parametrize("name", capability_table.ARMS)
def test_every_row_of_the_page_is_what_the_probe_finds(name):
    assert found(name) in PAGE


def test_every_method_and_type_has_a_row():
    rows = [line.split(" | ")[0].removeprefix("| ") for line in PAGE if line.startswith("| ")]
    assert [row for row in rows if row in capability_table.ARMS] == list(capability_table.ARMS)
    assert set(fitting()) < set(capability_table.ARMS)
    assert set(capabilities()) <= set(rows)


def test_a_failure_is_said():
    broken = capability_table.Found(True, False, False, True, False, "PEFT")
    assert broken.cells() == ["yes", "no", "no", "yes", "no"] and len(capability_table.COLUMNS) == 5
