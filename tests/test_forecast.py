"""A model on devices that need not be there: `tunetrial plan --model`, through the command line."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
from typer.testing import CliRunner

from tunetrial.cli import app
from tunetrial.core.errors import ConfigError
from tunetrial.engine.batches import order
from tunetrial.trial.forecast import forecast

TINY = "llama:layers=2,hidden=64,heads=4,kv_heads=2,intermediate=128,vocabulary=512,context=256,tied"


def plan(*arguments: str):
    return CliRunner().invoke(app, ["plan", *arguments])


@pytest.fixture(scope="module")
def printed():
    return plan("--model", TINY, "--gpu", "t4,l4", "--step", "4x32", "--rows", "200")


def test_a_table_says_of_every_method_and_gpu_whether_it_fits_how_long_it_takes_and_what_it_costs(printed):
    assert printed.exit_code == 0
    rows = [line.split() for line in printed.stdout.splitlines() if re.match(r"(full|lora:16|qlora:16) +(t4|l4)", line)]
    assert [row[:2] for row in rows] == [[m, g] for g in ("t4", "l4") for m in ("full", "lora:16", "qlora:16")]
    assert all("fits" in row for row in rows)
    assert "106,816 weights" in printed.stdout and "as written" in printed.stdout
    assert re.search(r"price: t4: .* USD a GPU-hour \(.*20\d\d-", printed.stdout), "no price without source and date"


@pytest.fixture(autouse=True)
def no_price(monkeypatch):
    monkeypatch.delenv("TUNETRIAL_USD_PER_HOUR", raising=False)


def test_lines_fit_100_columns(printed):
    assert max(map(len, printed.stdout.splitlines())) <= 100


def test_json_has_what_the_table_has():
    asked = ("--gpu", "l4", "--method", "lora", "--step", "4x32")
    found = json.loads(plan("--model", TINY, *asked, "--json").stdout)
    (cell,) = found["cells"]
    assert cell["fit"]["verdict"] == "fits" and cell["precision"] == "bf16" and cell["usd"] is None
    assert sum(cell["fit"]["need"]["parts"].values()) == cell["fit"]["need"]["peak_bytes"]
    phases = {name: found["likely"] for name, found in cell["phases"].items()}
    assert list(phases) == ["load", "prepare", "step", "evaluate", "save", "resume", "merge", "serve"]
    assert max(phases["load"], phases["prepare"], phases["step"]) == cell["fit"]["need"]["peak_bytes"]
    assert phases["load"] < phases["resume"] < phases["step"] and phases["merge"] is None
    served = 2 * 106_816 + 2 * 32_768 + 2 * 2 * 2 * 16 * 2 * (4 * 32)  # base, adapter, keys and values: 16 bits
    assert phases["serve"] == served


def test_what_does_not_fit_anywhere_ends_with_status_4_and_says_what_would():
    big = "llama:layers=32,hidden=4096,heads=32,kv_heads=32,intermediate=11008,vocabulary=512,context=256"
    found = plan("--model", big, "--gpu", "t4", "--method", "full", "--step", "16x16")
    text = " ".join(found.stdout.split())
    assert found.exit_code == 4 and "does not fit" in text
    assert "another method: add it as an arm of its own" in text and "such GPUs" in text


def test_a_gpu_without_bf16_computes_in_fp16():
    cells = {cell.fit.device: cell for cell in forecast(TINY, ("lora",), ("t4", "l4"), step="4x32").cells}
    assert (cells["t4"].precision, cells["l4"].precision) == ("fp16", "bf16")


def test_ones_own_price_wins_and_is_named_as_such():
    (cell,) = forecast(TINY, ("lora",), ("l4",), step="4x32", rows=64, usd_per_hour=36.0).cells
    assert cell.usd.low == pytest.approx(cell.run_s.low / 100) and "usd_per_hour" in cell.price


def test_free_tiers_tell_their_limits():
    found = forecast(TINY, ("lora",), ("colab",), step="4x32", rows=64)
    assert "12 h" in found.sessions["colab"] and found.cells[0].usd.high == 0


def test_with_test_rows_it_says_what_could_be_told_apart():
    asked = ("--gpu", "l4", "--method", "lora", "--step", "2x16", "--test", "277:0.01")
    found = plan("--model", TINY, *asked)
    text = " ".join(found.stdout.split())
    assert "with 277 test items no number of seeds can resolve 1 point" in text


def test_the_picture_is_written_and_never_over_another_file(tmp_path):
    path = tmp_path / "memory.svg"
    asked = ("--model", TINY, "--gpu", "l4", "--method", "lora", "--step", "2x16", "--plot", str(path))
    assert plan(*asked).exit_code == 0 and plan(*asked).exit_code == 0
    ElementTree.fromstring(path.read_text())
    path.write_text("mine")
    assert plan(*asked).exit_code == 1 and path.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ((), 2, "give a study file or --model"),
        (("study.yaml", "--model", TINY), 2, "not both"),
        (("--model", "no/such-model"), 1, "model"),
        (("--model", "embedded", "--gpu", "a1000"), 1, "did you mean"),
        (("--model", "embedded", "--method", "lorra"), 1, "method: unknown, got 'lorra'"),
        (("--model", "embedded", "--method", "lora:many"), 1, "--method: not a number"),
        (("--model", "embedded", "--step", "-3x5"), 1, "--step: not a number"),
        (("--model", "embedded", "--step", "16"), 1, "as in 16x512"),
        (("--model", "embedded", "--step", "16xnone.txt"), 1, "neither a number nor a file of numbers"),
        (("--model", "embedded", "--step", "16x-3"), 1, "--step: not a number"),
        (("--model", "embedded", "--rows", "0"), 1, "--rows: "),
        (("--model", "embedded", "--gpu", ""), 1, "--gpu: "),
        (("--model", "embedded", "--test", "1:0.01"), 1, "test rows: "),
        (("--model", "embedded", "--test", "many"), 1, "--test: not a number"),
        (("--model", "embedded", "--test", "277:x"), 1, "--test: not a margin"),
        (("--model", "embedded", "--test", "277:-1"), 1, "margin: "),
    ],
)
def test_bad_input_is_one_line(arguments, status, said, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = plan(*arguments)
    assert found.exit_code == status and said in found.stderr
    assert found.stderr.strip().count("\n") == 0 and "Traceback" not in found.stderr


def test_no_method_is_an_error_as_well():
    with pytest.raises(ConfigError, match="--method"):
        forecast(TINY, (), ("l4",))


@pytest.mark.parametrize("price", ["-1", "much", "nan", "inf"])
def test_a_price_from_the_environment_that_is_none_is_told(price, monkeypatch):
    monkeypatch.setenv("TUNETRIAL_USD_PER_HOUR", price)
    found = plan("--model", TINY, "--gpu", "l4")
    assert found.exit_code == 1 and "TUNETRIAL_USD_PER_HOUR: not a price" in found.stderr


def test_an_encoder_is_counted_with_a_head():
    (cell,) = forecast("google-bert/bert-base-uncased", ("lora",), ("l4",), step="2x16").cells
    assert cell.fit.verdict == "fits"


def test_numbers_are_written_without_powers_of_ten(printed):
    assert not re.search(r"\de[+-]", printed.stdout) and "under 0.01" in printed.stdout


@pytest.mark.slow
def test_several_gpus_take_as_long_as_torchtitan_published():
    """Llama 3.1 8B on eight H100, FSDP2, two rows of 8,192 tokens each: 5,762 tokens a second and GPU, 6,667 compiled;
    82.4 and 77.0 GiB with selective recomputation (github.com/pytorch/torchtitan, performance of Llama 3.1, table 1).
    """
    (cell,) = forecast("meta-llama/Llama-3.1-8B", ("full",), ("8xh100",), step="16x8192").cells
    assert cell.step_s.low < 2 * 8192 / 6667 < 2 * 8192 / 5762 < cell.step_s.high
    assert cell.fit.need.peak_bytes > 82.4 * 2**30


def test_several_gpus_would_fit_and_are_for_information():
    found = forecast(TINY, ("full",), ("4xL4", "16xl4"), step="8x32", rows=80, usd_per_hour=1.0)
    four, sixteen = found.cells
    assert (four.fit.verdict, four.fit.devices) == ("would fit sharded", 4)
    assert four.fit.need.ask.micro_batch == 2 and sixteen.fit.need.ask.micro_batch == 1
    assert four.usd.high == pytest.approx(4 * four.run_s.high / 3600) and sixteen.usd is None
    text = " ".join(str(found).split())
    assert "16xl4: more GPUs than a step has rows" in text and "4xL4: more GPUs" not in text
    assert "tunetrial trains on one GPU" in text and "several machines is not known" in text


def test_rows_of_their_own_lengths_need_what_their_fullest_step_does(tmp_path):
    """Steps of four in the order of seed 0; a mean step lies between the least and the fullest."""
    lengths = [8] * 10 + [60, 50]
    path = tmp_path / "x lengths.txt"
    path.write_text("\n".join(map(str, lengths)))
    asked = {"asked": ("lora",), "devices": ("l4",)}
    (found,) = forecast(TINY, step=f"4 x {path}", rows=12, **asked).cells
    steps = [[lengths[row] for row in rows] for rows in order(12, epochs=1, batch_examples=4, seed=0)]
    fullest, least = max(steps, key=sum), min(steps, key=sum)
    (other,) = forecast(TINY, step=f"4x{max(fullest)}", **asked).cells
    assert found.fit.need.peak_bytes < other.fit.need.peak_bytes
    each = {str(one): [row for row in one for _ in range(3)] for one in (fullest, least)}
    ends = []
    for rows in each.values():  # a file whose rows are one step's alone, three times: no other step is there
        path.write_text(" ".join(map(str, sorted(rows))))
        ends.append(forecast(TINY, step=f"12x{path}", **asked).cells[0].step_s.likely)
    assert min(ends) < 3 * found.step_s.likely and found.run_s.likely == pytest.approx(3 * found.step_s.likely)


@pytest.mark.parametrize("text", ["", "12 many", "12 0", "12 -4"])
def test_a_file_of_lengths_with_something_else_in_it_is_told(tmp_path, text):
    path = tmp_path / "lengths.txt"
    path.write_text(text)
    found = plan("--model", TINY, "--gpu", "l4", "--step", f"4x{path}")
    assert found.exit_code == 1 and found.stderr.startswith("tunetrial: --step: ") and found.stderr.count("\n") == 1


def test_rows_longer_than_the_context_are_cut_and_it_says_so(tmp_path):
    path = tmp_path / "lengths.txt"
    path.write_text("300 256 20 20")
    found = forecast(TINY, ("lora",), ("l4",), step=f"2x{path}")
    assert any("cut at the model's context of 256" in remark for remark in found.remarks)
    assert "20 to 256 tokens" in found.step
