"""What ships is proven: every hop from the run to the files in the folder, by real llama.cpp."""

import json
import sys

import pytest
from typer.testing import CliRunner

import shippable
from tunetrial import Study, cli
from tunetrial.core.errors import ConfigError, IntegrityError, StoreError
from tunetrial.core.fidelity import Chain
from tunetrial.ship import formats, gguf_files
from tunetrial.ship.order import Order
from tunetrial.ship.registry import Registry
from tunetrial.ship.shipped import Shipped

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's, in these tests


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNETRIAL_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return shippable.make_study(
        tmp_path_factory.mktemp("text"), arms=("full", "lora"), seeds=1, merges=(("e", "r"), ("a", "t"))
    )


def ship(study, to, format, **more):
    return study.ship(Order(arm="lora", format=format, **more), to, prove=True)


def test_base_and_adapter_in_llama_cpp_are_the_run_that_was_scored(study, tmp_path):
    made = ship(study, tmp_path / "out", "ollama")
    hops = [(hop.before, hop.after) for hop in made.chain.hops]
    assert ("adapter", "adapter.gguf") in hops and made.chain.passed and not made.broken, str(made)
    assert all(hop.measures.probes == 12 for hop in made.chain.hops)
    stated = Shipped.model_validate_json((tmp_path / "out" / "tunetrial.json").read_bytes())
    assert stated.chain.passed is True and stated.chain.first_break is None
    assert Chain.model_validate_json((tmp_path / "out" / "chain.json").read_bytes()) == made.chain
    (kept,) = [one for one in study.decide().proven if one.format == "ollama"]
    assert kept.chain == made.chain and (kept.trial, kept.arm, kept.seed) == (made.trial, "lora", made.seed)
    assert not list(tmp_path.glob("*chain*")) and str(made).splitlines()[-1] == "PASS"


@pytest.mark.parametrize(("format", "more"), [("gguf", {"merge": True}), ("merged", {})])
def test_merged_files_are_those_that_were_measured(study, tmp_path, format, more):
    made = ship(study, tmp_path / "out", format, **more)
    assert made.chain.passed, str(made)


def test_a_scale_that_is_not_the_trained_one_fails_and_cannot_be_promoted(study, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_files, "rescaled", lambda weights, scales: (90.0, dict.fromkeys(scales, 1.0)))
    asked = ["--arm", "lora", "--to", str(tmp_path / "out"), "--format", "gguf", "--prove"]
    ran = CliRunner().invoke(cli.app, ["ship", str(study.path), *asked])
    assert ran.exit_code == 1 and "FAIL: first broken at adapter → adapter.gguf" in ran.stdout, ran.stdout
    registry = Registry(tmp_path / "registry")
    registry.add("mail", tmp_path / "out")
    with pytest.raises(StoreError, match="its fidelity chain failed"):
        registry.promote("mail", "1")
    page = (study.folder / "report.html").read_text()
    assert "✗\u00a0FAIL" in page and "first broken: adapter → adapter.gguf" in page


def test_files_that_were_not_measured_are_a_fault(study, tmp_path, monkeypatch):
    def spoilt(source, folder, write=formats.write):
        made = write(source, folder)
        with (folder / "adapter.gguf").open("ab") as file:
            file.write(b"\0")
        return made

    monkeypatch.setattr(sys.modules["tunetrial.ship.export"], "write", spoilt)
    made = ship(study, tmp_path / "out", "gguf")
    assert made.broken and made.chain.first_break.startswith("adapter.gguf: none of the forms that were measured")


def test_what_no_chain_leads_to_is_refused_before_anything_is_written(study, tmp_path):
    with pytest.raises(ConfigError, match="beside a base in fp32, got --format gguf and q8_0; add --merge"):
        ship(study, tmp_path / "no", "gguf", dtype="q8_0")
    assert not (tmp_path / "no").exists()


def test_heads_and_other_rows_are_refused_and_leave_nothing(study, tmp_path):
    head = shippable.make_study(tmp_path / "head", shippable.LABELS, arms=("full", "lora"), seeds=1)
    with pytest.raises(ConfigError, match="--prove: compares what is written as text, got readout head"):
        ship(head, tmp_path / "no", "adapter")
    rows = head.path.parent / "validation.jsonl"
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    lines[0]["text"] += " again"
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(IntegrityError, match="validation rows are not those of the study"):
        ship(head, tmp_path / "no", "adapter")
    assert not (tmp_path / "no").exists()
