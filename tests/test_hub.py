"""Models and data sets of the Hub: fetched once, pinned to a commit, read without a network, refused in one line.

The real client runs against a Hub on this machine and against caches in the Hub's layout.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

import bases
from hub_server import COMMIT, serve
from tunetrial import models, spec, tasks
from tunetrial.core.errors import DataError, ModelError, SpecError
from tunetrial.core.study import TaskSpec
from tunetrial.engine import attention
from tunetrial.models.hub import Repository

SECRET = "hf_" + "s3cret" * 6


def cache_of(home, kind, repository):
    return home / "hub" / f"{kind}s--{repository.replace('/', '--')}"


def put_in_cache(home, kind, repository, files, *, commit=COMMIT, ref="main"):
    """Lay files into a cache as the Hub's client does; returns the folder of the snapshot."""
    cache = cache_of(home, kind, repository)
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / ref).write_text(commit)
    shutil.copytree(files, cache / "snapshots" / commit)
    return cache / "snapshots" / commit


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """HF_HOME in a folder of its own, and HF_HUB_OFFLINE; the client has read both when it was imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "home"


def run(code, **environment):
    """Run code in a fresh process with this environment; its output, lines of both streams."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    proxies = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | proxies | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


RESOLVE = """
import json, sys
from tunetrial import models
from tunetrial.core.errors import ModelError
for name in {names!r}:
    try:
        found = models.resolve(name)
        print(json.dumps([str(found.folder), found.revision, found.fingerprint, found.name]))
    except ModelError as error:
        print(error)
"""


# Models.


@pytest.fixture
def hub(tmp_path):
    """Folders of a Hub with one good model, and one with pickled weights alone."""
    good = tmp_path / "hub" / "models" / "org" / "tiny"
    bases.make("llama", good)
    (good / "modeling_evil.py").write_text("raise SystemExit('run')")
    (good / "pytorch_model.bin").write_bytes(b"pickle")
    (good / "consolidated.safetensors").write_bytes(b"twice")
    pickled = tmp_path / "hub" / "models" / "org" / "pickled"
    pickled.mkdir()
    shutil.copy(good / "config.json", pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"pickle")
    (tmp_path / "hub" / "models" / "org" / "empty").mkdir()
    (tmp_path / "hub" / "models" / "org" / "empty" / "README.md").write_text("nothing")
    return tmp_path / "hub"


def test_a_model_is_fetched_once_and_pinned_to_its_commit(hub, tmp_path):
    with serve(hub) as (address, seen):
        environment = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": SECRET}
        printed, errors = run(RESOLVE.format(names=["org/tiny", "org/tiny@v1"]), **environment)
        first, tagged = map(json.loads, printed)
        assert ("Bearer " + SECRET) in {token for _, token in seen}
        before = len(seen)
        again, _ = run(RESOLVE.format(names=[f"org/tiny@{COMMIT}"]), **environment)
        assert len(seen) == before
    folder, revision, fingerprint, name = first
    assert revision == tagged[1] == COMMIT and folder == tagged[0] and name == "org/tiny"
    assert Path(folder) == cache_of(tmp_path / "home", "model", "org/tiny") / "snapshots" / COMMIT
    assert json.loads(again[0])[:3] == [folder, COMMIT, fingerprint]
    names = {path.name for path in Path(folder).iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors"}
    assert fingerprint == models.resolve(str(folder)).fingerprint
    assert SECRET not in "".join(printed) + errors


@pytest.mark.parametrize("token", [None, SECRET])
def test_what_the_hub_refuses_is_said_in_one_line(hub, tmp_path, token):
    with serve(hub) as (address, _):
        environment = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")} | (
            {"HF_TOKEN": token} if token else {}
        )
        names = [
            "org/gated-one",
            "org/nothing",
            "org/tiny@v9",
            "org/broken",
            "org/refused",
            "org/pickled",
            "org/empty",
        ]
        printed, _ = run(RESOLVE.format(names=names), **environment)
    has = "use a token that has access" if token else "set HF_TOKEN, since no token is set"
    expected = [
        "the model is gated, got 'org/gated-one'; accept its terms at https://huggingface.co/org/gated-one, then "
        + has,
        f"the Hub has no such model, or it is private, got 'org/nothing'; mend the name, or {has}",
        "no such revision, got 'v9' of 'org/tiny'; name a branch, a tag or a commit of https://huggingface.co/org/tiny",
        "the Hub answered with status 500, got 'org/broken'; try again later",
        f"the Hub refuses access (status 403), got 'org/refused'; {has}",
        "https://huggingface.co/org/pickled: no *.safetensors, got weights in .bin; save the model as safetensors",
        "https://huggingface.co/org/empty: no config.json; name a model in the Hugging Face layout",
    ]
    assert len(printed) == len(names)
    for line, part in zip(printed, expected, strict=True):
        assert part in line and SECRET not in line
    assert all(line.startswith("base_model: no folder org/") for line in printed[:5])


def test_a_hub_that_cannot_be_reached_is_said_and_the_cache_serves(hub, tmp_path):
    put_in_cache(tmp_path / "home", "model", "org/tiny", hub / "models" / "org" / "tiny")
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    names = ["org/tiny", f"org/tiny@{COMMIT}", "org/other"]
    for environment in (nobody, nobody | {"HF_HUB_OFFLINE": "1"}):
        printed, _ = run(RESOLVE.format(names=names), **environment)
        assert [json.loads(line)[1] for line in printed[:2]] == [COMMIT, COMMIT]
        reason = "HF_HUB_OFFLINE is set" if "HF_HUB_OFFLINE" in environment else "the Hub cannot be reached"
        assert f"not in the cache and {reason}, got 'org/other'" in printed[2]


def test_a_download_that_was_cut_off_is_not_taken_for_whole(offline, hub):
    snapshot = put_in_cache(offline, "model", "org/tiny", hub / "models" / "org" / "tiny")
    listed = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(listed))
    (snapshot / "model.safetensors").rename(snapshot / "model-00001-of-00002.safetensors")
    with pytest.raises(ModelError, match="model-00002-of-00002.safetensors is missing, got 1 of 2 files"):
        models.resolve("org/tiny")


def test_only_the_files_that_are_loaded_make_the_fingerprint(offline, hub):
    snapshot = put_in_cache(offline, "model", "org/tiny", hub / "models" / "org" / "tiny")
    with_more = models.resolve("org/tiny").fingerprint
    (snapshot / "consolidated.safetensors").unlink()
    assert models.resolve("org/tiny").fingerprint == with_more


def test_a_folder_goes_before_an_id_and_a_path_is_no_id(offline, hub, tmp_path):
    shutil.copytree(hub / "models" / "org" / "tiny", tmp_path / "org" / "tiny")
    found = models.resolve("org/tiny", tmp_path)
    assert found.folder == tmp_path / "org" / "tiny" and found.revision is None
    for path in ("./org/other", "/org/other", "~/other", "a/b/c", "org", "org/../x", "org/x@../../y", "org/x@"):
        with pytest.raises(
            ModelError, match="no such folder, got .*; name a local folder, a model of the Hub as org/name"
        ):
            models.resolve(path)
        assert Repository.parse(path, "model") is None
    with pytest.raises(ModelError, match="no folder org/other here; as a model of the Hub: not in the cache"):
        models.resolve("org/other", tmp_path)


def test_code_of_a_model_is_never_run(offline, hub, tmp_path):
    snapshot = put_in_cache(offline, "model", "org/tiny", hub / "models" / "org" / "tiny")
    kinds = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")
    config = json.loads((snapshot / "config.json").read_text()) | {"auto_map": {kind: "evil.Evil" for kind in kinds}}
    (snapshot / "config.json").write_text(json.dumps(config))
    (snapshot / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    folder = models.resolve("org/tiny").folder
    model = attention.load(folder, AutoModel, torch.float32, torch.device("cpu"))
    assert type(model).__module__.startswith("transformers.models.")
    assert not (tmp_path / "ran").exists()


# Data sets.

TOPICS = ("bread", "clock", "parcel", "invoice")
CARD = """---
configs:
- config_name: sst2
  data_files:
  - split: train
    path: sst2/train-*
  - split: validation
    path: sst2/validation-*
  - split: test
    path: sst2/test-*
- config_name: stsb
  data_files:
  - split: train
    path: stsb/train-*
  - split: dev
    path: stsb/dev-*
---
"""


def write_data_set(folder):
    """Parquet files as the Hub has them: class labels as numbers with names, hidden ones -1."""
    import datasets

    label = datasets.ClassLabel(names=["negative", "positive"])
    kinds = datasets.Features({"sentence": datasets.Value("string"), "label": label, "idx": datasets.Value("int32")})
    for split, count, hidden in (("train", 40, False), ("validation", 12, False), ("test", 10, True)):
        rows = {
            "sentence": [f"{split} {TOPICS[n % 4]} {n}" for n in range(count)],
            "label": [-1 if hidden else n % 2 for n in range(count)],
            "idx": list(range(count)),
        }
        (folder / "sst2").mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features=kinds).to_parquet(folder / "sst2" / f"{split}-00000-of-00001.parquet")
    for split, count in (("train", 30), ("dev", 10)):
        rows = {
            "sentence1": [f"{split} one {n}" for n in range(count)],
            "sentence2": [f"{split} two {n}" for n in range(count)],
            "label": [n / 6 for n in range(count)],
        }
        (folder / "stsb").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows).to_parquet(folder / "stsb" / f"{split}-00000-of-00001.parquet")
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def glue(offline, tmp_path, monkeypatch):
    """A data set of the Hub in the cache, and none reachable."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "home" / "datasets"))
    return put_in_cache(offline, "dataset", "nyu-mll/glue", write_data_set(tmp_path / "glue"))


def task(data, **more):
    settled = {"name": "mine", "kind": "classify", "metric": "accuracy", "margin": 0.02} | more
    return TaskSpec(data=data, **{"input": "{{ sentence }}", "target": "label"} | settled)


def test_all_splits_are_taken_and_labels_stand_as_names(glue):
    data = tasks.load(task("hub:nyu-mll/glue:sst2"), Path("/nowhere"))
    assert data.labels == ("negative", "positive")
    assert [len(data.splits["validation"]), len(data.splits["train"]) + len(data.splits["test"])] == [12, 40]
    first = data.splits["validation"][1]
    assert (first.prompt, first.target, first.id) == ("validation clock 1", "positive", "2")
    assert f"rows of hub:nyu-mll/glue:sst2 at commit {COMMIT}" in data.remarks
    assert "test: the split 'test' of hub:nyu-mll/glue:sst2 has no labels and is not used" in data.remarks
    assert any(remark.startswith("test: drawn from train") for remark in data.remarks)


def test_a_task_of_glue_is_known_by_its_id(glue):
    study = spec.parse("base_model: embedded\narms: [full, lora]\ntasks: [glue/sst2]\n")
    [chosen] = study.tasks
    assert (chosen.metric, chosen.margin, chosen.kind) == ("accuracy", 0.01, "classify")
    data = tasks.load(chosen, Path("/nowhere"))
    assert [example.prompt for example in data.splits["test"]] == [f"validation {TOPICS[n % 4]} {n}" for n in range(12)]
    assert len(data.splits["train"]) + len(data.splits["validation"]) == 40
    assert spec.parse(spec.write(study)).tasks == study.tasks


def test_every_task_of_glue_is_a_study_of_its_own():
    assert len(tasks.GLUE) == 9
    for name, known in tasks.GLUE.items():
        [chosen] = spec.parse(f"base_model: embedded\narms: [full, lora]\ntasks: [{name}]\n").tasks
        assert chosen == known.spec and known.margin_reason.endswith(".")
        assert all(f"{{{{ {field} }}}}" in chosen.input for field in known.fields)


def test_a_metric_of_ones_own_wants_a_margin_of_ones_own():
    text = "base_model: embedded\narms: [full, lora]\ntasks:\n- {name: glue/sst2, metric: macro_f1%s}\n"
    with pytest.raises(SpecError, match="margin: is missing; give the smallest difference in macro_f1"):
        spec.parse(text % "")
    assert spec.parse(text % ", margin: 0.03").tasks[0].margin == 0.03


@pytest.mark.parametrize("name, fields", [("sst2", "{{ text }}"), ("mrpc", None), ("stsb", None)])
def test_real_copies_of_glue_are_named_in_place_of_the_hub(outside_data, name, fields):
    folder = outside_data / f"glue_{name}"
    fields = fields or "{{ text_a }} {{ text_b }}"
    form = (
        f"{{name: glue/{name}, data: train.jsonl, validation: validation.jsonl, test: test.jsonl, input: '{fields}'}}"
    )
    [chosen] = spec.parse(f"base_model: embedded\narms: [full, lora]\ntasks:\n- {form}\n").tasks
    data = tasks.load(chosen, folder)
    assert len(data.splits["test"]) > 1300 and data.kind == tasks.GLUE[f"glue/{name}"].kind


def test_a_dev_split_is_validation_and_numbers_are_targets(glue):
    asked = task("hub:nyu-mll/glue:stsb", kind="regress", metric="pearson", input="{{ sentence1 }}")
    data = tasks.load(asked, Path("/nowhere"))
    assert len(data.splits["validation"]) == 10 and data.splits["validation"][3].target == 0.5


def test_rows_have_numbers_as_those_of_files_have(glue):
    import datasets

    path = glue / "sst2" / "train-00000-of-00001.parquet"
    table = datasets.Dataset.from_parquet(str(path))
    rows = table.to_list()
    rows[4]["sentence"] = None
    rows[6]["label"] = None
    datasets.Dataset.from_list(rows, features=table.features).to_parquet(path)
    with pytest.raises(
        DataError, match="^hub:nyu-mll/glue:sst2#train: 2 of 40 rows cannot be used: row 5: .*; row 7: label"
    ):
        tasks.load(task("hub:nyu-mll/glue:sst2"), Path("/nowhere"))


@pytest.mark.parametrize(
    "data, message",
    [
        ("hub:nyu-mll/glue", "choose a config, got none; write :config, one of sst2, stsb"),
        ("hub:nyu-mll/glue:cola", "choose a config, got 'cola'; write :config, one of sst2, stsb"),
        ("hub:nyu-mll/glue:sst2#dev", "no such split, got 'dev'; use one of train, validation, test"),
        ("hub:nyu-mll/glue:sst2@v9", "not in the cache and HF_HUB_OFFLINE is set, got 'nyu-mll/glue'"),
        ("hub:nyu-mll/none:sst2", "not in the cache and HF_HUB_OFFLINE is set, got 'nyu-mll/none'"),
        ("hub:glue", "not an id of the Hub; write hub:org/name"),
        ("hub:a/b/c", "not an id of the Hub"),
        ("hub:a/b@../c", "not an id of the Hub"),
    ],
)
def test_what_an_id_cannot_name_is_said_in_one_line(glue, data, message):
    with pytest.raises(DataError, match=message) as refused:
        tasks.load(task(data), Path("/nowhere"))
    assert str(refused.value).startswith(f"{data}: ") and "\n" not in str(refused.value)


def test_a_split_to_judge_by_needs_labels(glue):
    with pytest.raises(DataError, match="no split test with labels, got train, validation, test; add #split"):
        tasks.load(task("hub:nyu-mll/glue:sst2#train", test="hub:nyu-mll/glue:sst2"), Path("/nowhere"))


def test_code_of_a_data_set_is_never_run(offline, tmp_path):
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text("raise SystemExit('run')")
    put_in_cache(offline, "dataset", "org/scripted", folder)
    with pytest.raises(DataError, match="has no files of rows .*, and code is never run; use a data set that has"):
        tasks.load(task("hub:org/scripted"), Path("/nowhere"))


def test_a_data_set_is_fetched_without_the_files_of_other_configs(tmp_path):
    write_data_set(tmp_path / "hub" / "datasets" / "nyu-mll" / "glue")
    code = (
        "from pathlib import Path; from tunetrial import tasks\n"
        "data = tasks.load(tasks.GLUE['glue/sst2'].spec, Path('/nowhere'))\n"
        "print(len(data.splits['test']), *data.remarks, sep='|')\n"
    )
    with serve(tmp_path / "hub") as (address, seen):
        printed, _ = run(code, HF_ENDPOINT=address, HF_HOME=str(tmp_path / "home"))
    assert printed[-1].startswith(f"12|rows of hub:nyu-mll/glue:sst2 at commit {COMMIT}")
    assert any("/sst2/" in path for path, _ in seen) and not any("/stsb/" in path for path, _ in seen)
