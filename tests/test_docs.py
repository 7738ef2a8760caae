"""What the documents point to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path
    for where in ("*.md", "docs/*.md", "benchmarks/*.md", "examples/**/*.md", "src/**/README.md")
    for path in ROOT.glob(where)
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_to_a_file(page):
    links = re.findall(r"\]\(<?([^)\s>]+)", page.read_text(encoding="utf-8"))
    paths = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:", link)]
    assert [path for path in paths if path and not (page.parent / path).exists()] == []


def test_every_test_that_the_faults_name_is_there():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/faults.md").read_text(encoding="utf-8")))
    defined = {
        name for path in ROOT.glob("tests/test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 40 and named <= defined, named - defined


def test_links_are_looked_for_on_the_pages_that_have_them():
    assert {"README.md", "architecture.md"} <= {page.name for page in PAGES} and len(PAGES) >= 8
