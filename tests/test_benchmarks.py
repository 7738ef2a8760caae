"""What the benchmarks count, and that their page says what their files say."""

import json
import random
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import b9_memory
import b9_time
import contest
import lengths
import shapes
import table
from contest import Case, Target
from laps import Laps
from tunetrial import models

BENCHMARKS = Path(table.__file__).parent


def test_the_page_says_what_the_results_say():
    page = table.README.read_text(encoding="utf-8")
    assert page == table.written(page), "run python benchmarks/table.py"


def test_outcomes_in_the_files_are_those_of_the_targets():
    for path in contest.RESULTS.glob("*.json"):
        for case in json.loads(path.read_text(encoding="utf-8"))["cases"]:
            for saved in case["targets"]:
                fields = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
                value, words = fields.pop("value"), fields.pop("outcome")
                target = Target(**fields)
                assert target.value(case["measured"]) == value and target.outcome(value) == words


@pytest.mark.parametrize("file", ["memory", "memory-after"])
def test_the_page_has_the_errors_of_memory_that_the_rows_have(file):
    rows = [json.loads(line) for line in (b9_memory.RESULT.parent / f"{file}.jsonl").read_text().splitlines()]
    page = table.README.read_text(encoding="utf-8")
    done = [row for row in rows if "allocated" in row]
    errors = sorted(abs(row["predicted"] / row["allocated"] - 1) for row in done)
    median, late = statistics.median(errors), errors[int(0.95 * len(errors))]
    assert f"measured {len(done)} | tunetrial | {median:.2%} | {late:.2%} |" in page
    assert len(done) + sum(row["predicted"] > b9_memory.MOST_BYTES for row in rows) == len(rows)


@pytest.mark.parametrize(
    ("kind", "reach", "aim", "ours", "peer", "value", "outcome"),
    [
        ("speed-up", 4, 7, 0.1, 0.5, 5.0, "reached"),
        ("speed-up", 4, 7, 0.1, 0.8, 8.0, "aim reached"),
        ("speed-up", 4, None, 0.1, 0.3, 3.0, "missed"),
        ("price", 0.5, None, 1.5, 1.0, 0.5, "reached"),
        ("price", 0.25, None, 1.5, 1.0, 0.5, "missed"),
        ("time", 900, 600, 700, None, 700, "reached"),
        ("speed-up", None, None, 0.1, 0.3, 3.0, "no target"),
        ("speed-up", 4, None, 0.1, None, None, "not run"),
        ("speed-up", 4, None, None, 0.3, None, "not run"),
    ],
)
def test_a_target_is_of_the_fastest_on_either_side(kind, reach, aim, ours, peer, value, outcome):
    target = Target("x", kind, reach, aim, against=("slow", "fast"))
    measured = {"tunetrial": {"not_run": "why"} if ours is None else {"step_s": ours}}
    if peer is not None:
        measured |= {"slow": {"step_s": 9.0}, "fast": {"step_s": peer}}
    found = target.value(measured)
    assert (found if found is None else round(found, 9)) == value
    assert target.outcome(found) == outcome


def test_a_contender_that_cannot_take_part_is_said_to_be_not_run(tmp_path):
    script = tmp_path / "toy.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "from contest import *\n"
        "def absent(case, options):\n    import no_such_module\n"
        "def fast(case, options):\n    return {'step_s': 0.5, 'settings': {'at': 'best'}}\n"
        "targets = (Target('step', 'speed-up', 2, against=('b', 'absent')),)\n"
        "cases = (Case('toy', {}, ('tunetrial', 'b', 'absent'), targets),)\n"
        "who = {'tunetrial': fast, 'b': lambda case, options: {'step_s': 1.5}, 'absent': absent}\n"
        "Benchmark('B0', 'A toy', {'cpu': cases, 'cuda': (), 'small': ()}, who).main(__file__)\n"
    )
    run = subprocess.run([sys.executable, script, "--results", tmp_path], capture_output=True, text=True, check=True)
    (case,) = json.loads((tmp_path / "b0-cpu.json").read_text())["cases"]
    assert case["measured"]["absent"] == {"not_run": "ModuleNotFoundError: No module named 'no_such_module'"}
    assert case["targets"][0]["value"] == 3.0 and case["targets"][0]["outcome"] == "reached"
    assert "absent" in run.stdout and "no_such_module" in run.stdout and case["versions"]["torch"]


def test_results_of_other_cases_stay(tmp_path):
    cases = tuple(Case(name, {}, ("tunetrial",)) for name in ("first", "second"))
    made = contest.Benchmark("B0", "A toy", {"cpu": cases})
    for case, step_s in zip((cases[1], cases[0], cases[1]), (1.0, 2.0, 3.0), strict=True):
        contest.save(made, [contest.document(case, {"tunetrial": {"step_s": step_s}}, "cpu", 0.0)], "cpu", tmp_path)
    saved = json.loads((tmp_path / "b0-cpu.json").read_text())["cases"]
    assert [(c["name"], c["measured"]["tunetrial"]["step_s"]) for c in saved] == [("first", 2.0), ("second", 3.0)]


@pytest.mark.parametrize("name", ["tiny", "embedded"])
def test_the_weights_that_a_token_meets_are_counted(name):
    shape = shapes.SHAPES[name]
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
    )
    model = LlamaForCausalLM(config)
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    table, head = (m.weight.numel() for m in (model.get_input_embeddings(), model.get_output_embeddings()))
    assert (shape.multiplied(text=True), shape.multiplied(text=False)) == (matrices - table, matrices - table - head)
    assert shape.flop("lora", text=True) == 4 * (matrices - table)
    assert shape.flop("full", text=False) == 6 * (matrices - table - head)


def test_real_shapes_have_the_size_they_are_called_by():
    real = {name: shapes.SHAPES[name] for name in ("1.1B", "7B")}
    sizes = {name: shape.multiplied(text=True) + shape.vocabulary * shape.hidden for name, shape in real.items()}
    assert sizes == {"1.1B": pytest.approx(1.10e9, rel=0.01), "7B": pytest.approx(6.74e9, rel=0.01)}


def test_rows_have_the_tokens_that_were_drawn():
    tokenizer = AutoTokenizer.from_pretrained(models.EMBEDDED)
    sizes = lengths.drawn("alpaca", 40)
    rows = lengths.examples(tokenizer, sizes)
    assert sizes == lengths.drawn("alpaca", 40) != lengths.drawn("alpaca", 40, seed=1)
    assert [len(tokenizer(row.prompt).input_ids) for row in rows] == [prompt for prompt, _ in sizes]
    made = [len(tokenizer(row.target, add_special_tokens=False).input_ids) + 1 for row in rows]
    assert made == [max(answer, 2) for _, answer in sizes]


def test_lengths_have_the_means_that_are_stated():
    rng = random.Random(0)
    for name, stated in (lengths.PROMPTS | {"answers": lengths.ANSWERS["alpaca"]}).items():
        drawn = [stated.draw(rng) for _ in range(20_000)]
        assert sum(drawn) / len(drawn) == pytest.approx(stated.mean, rel=0.03), name
    rows = lengths.drawn("alpaca", 20_000)
    assert sum(map(sum, rows)) / len(rows) == pytest.approx(196, rel=0.03)


def test_laps_take_the_median_block_and_refuse_other_work(monkeypatch):
    laps = Laps("cpu", warm=2, blocks=3, block=2)
    clock = iter([0.0, 5.0, 6.0, 10.0, 12.0])
    monkeypatch.setattr(laps, "now", lambda: next(clock))
    laps.start()
    for _ in range(laps.steps):
        laps.lap(100)
    found = laps.measured()
    assert (found["step_s"], found["fastest_step_s"], found["cold_s"], found["tokens_per_s"]) == (1.0, 0.5, 5.0, 100.0)
    laps.lap(100)
    with pytest.raises(ValueError, match="got 9 of 8"):
        laps.measured()


def test_predicted_times_are_scored_by_what_was_measured():
    assert len(b9_time.ROWS["cpu"]) >= 12 and len(b9_time.ROWS["cuda"]) >= 12
    row = {"low_s": 0.9, "predicted_s": 1.0, "high_s": 1.1}
    found = [row | {"measured_s": measured} for measured in (1.0, 0.8, 0.5)]
    assert "median error 25% (target 10%: missed), worst 100%; 1 within" in b9_time.concluded(found)
    with pytest.raises(ValueError, match="no row was measured"):
        b9_time.concluded([])
