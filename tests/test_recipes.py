"""Recipes of other tools: read into a study with nothing dropped in silence, written back as those tools read them."""

import json
from importlib import import_module, util
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from test_cli import tunetrial
from trial_study import write_study
from tunetrial import methods, spec
from tunetrial.core.errors import SpecError
from tunetrial.spec import recipes
from tunetrial.spec.recipes import Dataset, Recipe, axolotl, llamafactory, recipe, trl

KEYS = {
    tool: set(one["keys"]) for tool, one in json.loads((Path(__file__).parent / "recipe_keys.json").read_text()).items()
}
KEYS["peft"] |= KEYS["trl"] | {"lora_config", "quantization_config", "training_args", "load_in_8bit", "load_in_4bit"}
KEYS["peft"] |= {"bnb_4bit_quant_type", "bnb_4bit_use_double_quant"}

AXOLOTL = """
base_model: org/base
adapter: qlora
load_in_4bit: true
lora_r: 8
lora_alpha: 32
lora_dropout: 0.05
lora_target_modules: [v_proj, q_proj]
lora_model_dir:
datasets:
  - {path: org/talks, type: chat_template, field_messages: turns}
sequence_len: 1024
micro_batch_size: 2
gradient_accumulation_steps: 3
num_epochs: 2
learning_rate: 2e-4
lr_scheduler: cosine
optimizer: adamw_torch
warmup_ratio: 0.1
weight_decay: 0.01
bf16: true
hub_token: hf_abc
wandb_project: mine
"""
LLAMAFACTORY = """
model_name_or_path: org/base
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: q_proj,v_proj
dataset: talks
dataset_dir: data
template: llama3
cutoff_len: 2048
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
"""
TRL = {
    "model_name_or_path": "org/base",
    "dataset_name": "org/talks",
    "lora_config": {"r": 16, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear", "use_dora": True},
    "training_arguments": {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "fp16": True,
    },
}
COMMAND = r"""
# our usual run
WANDB_MODE=offline accelerate launch --num_processes 4 train.py \
  --model_name_or_path org/base --use_peft --lora_r=32 --lora_target_modules q_proj v_proj \
  --learning_rate 2e-4 --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --max_length 512 --packing false
"""


def read(tmp_path, content, name="recipe.yml", **more) -> Recipe:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return recipes.read(path, **more)


def left(made: Recipe) -> dict[str, str]:
    return {one.key: one.value for one in made.left}


def test_an_axolotl_recipe_is_read_and_what_is_not_carried_over_is_said(tmp_path):
    made = read(tmp_path, AXOLOTL)
    assert made.method == "qlora"
    assert made.settings == {"rank": 8, "alpha": 32.0, "targets": ("q_proj", "v_proj")}
    found = (made.learning_rate, made.epochs, made.batch_examples, made.max_tokens, made.weight_decay, made.precision)
    assert found == (2e-4, 2, 6, 1024, 0.01, "bf16")
    assert made.data == Dataset(path="org/talks", messages="turns")
    assert set(left(made)) == {"lora_dropout", "lr_scheduler", "hub_token", "wandb_project"}
    assert left(made)["hub_token"] == "(not shown)" and "hf_abc" not in made.model_dump_json()
    assert made.same == ("optimizer = 'adamw_torch'", "warmup_ratio = 0.1")


def test_a_llamafactory_recipe_is_read_with_the_tool_s_own_defaults(tmp_path):
    (tmp_path / "data").mkdir()
    info = {"talks": {"file_name": "talks.json", "formatting": "sharegpt", "columns": {"messages": "chat"}}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    made = read(tmp_path, LLAMAFACTORY)
    assert (made.tool, made.method) == ("llamafactory", "lora")
    assert made.settings == {"rank": 8, "alpha": 16.0, "targets": ("q_proj", "v_proj")}
    assert (made.batch_examples, made.max_tokens, made.learning_rate, made.epochs) == (8, 2048, 1e-4, 3)
    assert made.data == Dataset(path=str(tmp_path / "data" / "talks.json"), messages="chat")
    assert set(left(made)) == {"lr_scheduler_type", "template"}


def test_trl_arguments_are_read_in_sections_and_from_a_command_line(tmp_path):
    made = read(tmp_path, TRL, "args.json")
    assert made.settings == {"rank": 16, "alpha": 16.0, "targets": "all-linear", "dora": True}
    assert (made.batch_examples, made.epochs, made.precision, made.max_tokens) == (4, 1, "fp16", 1024)
    assert left(made) == {"warmup_steps": "0 (peft's default)"}
    made = read(tmp_path, COMMAND, "run.sh")
    assert made.settings == {"rank": 32, "alpha": 32.0, "targets": ("q_proj", "v_proj")}
    assert (made.batch_examples, made.learning_rate, made.max_tokens) == (4 * 2 * 2, 2e-4, 512)
    assert set(left(made)) == {"lora_dropout", "warmup_steps"}
    assert read(tmp_path, COMMAND, "run.sh", devices=8).batch_examples == 32


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("adapter: qlora", "adapter: ia3"), "adapter: unknown kind, got 'ia3'; use lora, qlora, or none"),
        (("adapter: qlora", "adapter:"), "adapter: missing beside a quantised base, got None; write lora or qlora"),
        (
            ("load_in_4bit: true", "load_in_8bit: true"),
            "adapter: qlora conflicts with the storage, got load_in_4bit fal",
        ),
        (("lora_r: 8", "lora_r: 0"), "lora_r: must be a whole number >= 1, got 0; write one"),
        (("lora_r: 8", "lora_r: big"), "lora_r: must be a number, got 'big'; write one"),
        (("lora_r: 8", ""), "lora_r: is missing; axolotl has no default of its own"),
        (("[v_proj, q_proj]", "'.*proj$'"), "lora_target_modules: a pattern or no list of names, got '.*proj$'; name"),
        (("learning_rate: 2e-4", ""), "learning_rate: is missing; an axolotl recipe has it"),
        (("num_epochs: 2", "num_epochs: 0"), "num_epochs: must be > 0, got 0; write the passes over the data"),
        (("num_epochs: 2", "rl: dpo"), "rl: no supervised fine-tuning, got 'dpo'; studies compare that alone"),
        (("type: chat_template", "type: completion"), "datasets[1].type: unknown kind, got 'completion'; use alpaca,"),
        (("bf16: true", "bf16: true\nbf16: false"), "cannot be read as YAML, JSON or a command line, got 'bf16' twice"),
        (("bf16: true", "a: &x 1\nb: *x"), "cannot be read as YAML, JSON or a command line, got an alias on line"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, change, said):
    assert change[0] in AXOLOTL
    with pytest.raises(SpecError) as error:
        read(tmp_path, AXOLOTL.replace(*change))
    assert str(error.value).startswith(f"{tmp_path / 'recipe.yml'}: {said}") and "\n" not in str(error.value)


def test_kinds_that_are_no_supervised_fine_tuning_are_refused(tmp_path):
    for content, said in (
        (LLAMAFACTORY.replace("sft", "dpo"), "stage: no supervised fine-tuning, got 'dpo'"),
        (LLAMAFACTORY.replace("type: lora", "type: freeze"), "finetuning_type: unknown kind, got 'freeze'"),
        ("trl dpo --model_name_or_path org/base", "no supervised fine-tuning, got dpo (preferences); use trl sft"),
        ({**TRL, "load_in_4bit": True, "load_in_8bit": True}, "load_in_8bit: conflicts with load_in_4bit"),
        ({**TRL, "r": 4}, "r: given twice, got 16 and 4; remove one"),
        ("[1]", "no recipe, got [1]"),
        ("lr: 3\n", "no recipe of a known tool, got keys ['lr']; it needs base_model (axolotl), finetuning_type"),
        (LLAMAFACTORY, "dataset_dir: has no dataset_info.json, got 'data'"),
    ):
        with pytest.raises(SpecError) as error:
            read(tmp_path, content)
        assert f": {said}" in str(error.value)


KINDS = st.one_of(st.booleans(), st.integers(-9, 9), st.text("abc", min_size=1), st.lists(st.integers(), max_size=2))


@settings(deadline=None, max_examples=60)
@given(more=st.dictionaries(st.from_regex(r"x_[a-z]{1,8}", fullmatch=True), KINDS, max_size=5))
@pytest.mark.parametrize("text", [AXOLOTL, LLAMAFACTORY.replace("dataset: talks", "")], ids=["axolotl", "llamafactory"])
def test_no_key_is_dropped_in_silence(tmp_path_factory, text, more):
    """What stands in a recipe is taken, the same in every arm, or said: also what no tool knows."""
    made = read(tmp_path_factory.getbasetemp(), text + yaml.safe_dump(more) if more else text)
    given_keys = {key for key, value in yaml.safe_load(text).items() if value is not None}
    said = set(left(made)) | {one.partition(" = ")[0] for one in made.same}
    assert set(more) <= set(left(made))
    taken = {
        *("base_model", "adapter", "load_in_4bit", "lora_r", "lora_alpha", "lora_target_modules", "datasets"),
        *("sequence_len", "micro_batch_size", "gradient_accumulation_steps", "num_epochs", "learning_rate"),
        *("weight_decay", "bf16", "model_name_or_path", "stage", "finetuning_type", "lora_rank", "lora_target"),
        *("dataset_dir", "cutoff_len", "per_device_train_batch_size", "num_train_epochs"),
    }
    assert given_keys - said <= taken and not taken & said


def test_a_recipe_becomes_a_study_in_which_yours_is_an_arm(tmp_path):
    made = read(tmp_path, AXOLOTL)
    text = recipes.study_file(made, tmp_path / "recipe.yml", tmp_path / "study.yaml")
    study = spec.parse(text)
    assert [arm.name for arm in study.arms] == ["full", "lora", "yours"] and study.reference == "full"
    assert study.arm("yours").settings["rank"] == 8 and study.arm("lora").settings["rank"] == 16
    assert study.tuning.centres == {"yours": 2e-4} and study.batch_examples == 6
    assert study.tasks[0].data == "hub:org/talks" and study.tasks[0].messages == "turns"
    assert "# not carried over: lora_dropout = 0.05: no arm has dropout\n" in text
    assert "margin 0.02 IS A CHOICE MADE FOR YOU" in text and all(len(line) < 110 for line in text.splitlines())
    assert "CHOICE" not in recipes.study_file(made, tmp_path / "recipe.yml", tmp_path / "study.yaml", margin=0.1)


def test_a_recipe_that_is_our_lora_is_that_arm(tmp_path):
    plain = AXOLOTL.replace("qlora", "lora").replace("load_in_4bit: true", "").replace("lora_r: 8", "lora_r: 16")
    made = read(tmp_path, plain.replace("lora_target_modules: [v_proj, q_proj]", "lora_target_linear: true"))
    text = recipes.study_file(made, tmp_path / "recipe.yml", tmp_path / "study.yaml", margin=0.1)
    assert [arm.name for arm in spec.parse(text).arms] == ["full", "lora"]
    assert spec.parse(text).tuning.centres == {"lora": 2e-4} and "# Your recipe is the arm lora:" in text


NAMES = st.sampled_from(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
LORA = st.fixed_dictionaries(
    {
        "rank": st.integers(1, 512),
        "alpha": st.integers(1, 1024).map(float),
        "targets": st.one_of(st.just("all-linear"), st.sets(NAMES, min_size=1).map(lambda s: tuple(sorted(s)))),
        "rslora": st.booleans(),
        "dora": st.booleans(),
        "optimizer_bits": st.sampled_from([32, 8]),
    }
)
ARMS = st.one_of(
    st.tuples(st.just("full"), st.fixed_dictionaries({"optimizer_bits": st.sampled_from([32, 8])})),
    st.tuples(st.just("lora"), LORA),
    st.tuples(st.just("lora"), LORA.map(lambda own: {**own, "base": "int8"})),
    st.tuples(st.just("qlora"), LORA),
)
RECIPES = st.builds(
    lambda arm, **more: Recipe(tool="trl", base_model="org/base", method=arm[0], settings=arm[1], **more),
    ARMS,
    learning_rate=st.floats(1e-7, 1e-1).map(lambda rate: float(f"{rate:.3g}")),
    epochs=st.integers(1, 50),
    batch_examples=st.integers(1, 512),
    max_tokens=st.integers(1, 100_000),
    weight_decay=st.floats(0, 1),
    precision=st.sampled_from(["auto", "bf16", "fp16", "fp32"]),
)
SAME = ("base_model", "method", "learning_rate", "epochs", "batch_examples", "max_tokens", "weight_decay", "precision")


@settings(deadline=None, max_examples=80)
@given(made=RECIPES, seed=st.integers(0, 999))
@pytest.mark.parametrize("tool", recipes.TOOLS)
def test_what_is_written_for_a_tool_reads_back_as_the_same_arm(tmp_path_factory, tool, made, seed):
    if tool == "peft" and made.method == "full":
        with pytest.raises(SpecError, match="peft writes adapters, got an arm of method full; use --for trl"):
            recipes.write(tool, made, seed=seed)
        return
    text = recipes.write(tool, made, seed=seed, remarks=["from a test"])
    again = read(tmp_path_factory.getbasetemp(), text)
    assert [getattr(again, name) for name in SAME] == [getattr(made, name) for name in SAME]
    assert methods.settle(again.method, again.settings) == methods.settle(made.method, made.settings)
    assert again.tool == tool
    assert not {"lr_scheduler", "lr_scheduler_type", "warmup_ratio", "warmup_steps", "lora_dropout"} & set(left(again))


@settings(deadline=None, max_examples=40)
@given(made=RECIPES)
@pytest.mark.parametrize("tool", recipes.TOOLS)
def test_every_key_that_is_written_is_one_of_the_tool_s_own(tool, made):
    """The lists were read from the tools' own classes by tools/recipe_keys.py."""
    if tool != "peft" or made.method != "full":
        keys = yaml.safe_load(recipes.write(tool, made, seed=1))
        inner = {name for value in keys.values() if isinstance(value, dict) for name in value}
        assert set(keys) | inner <= KEYS[tool]


def test_every_key_that_is_looked_for_is_one_of_the_tool_s_own():
    assert axolotl.MARKS | set(axolotl.DEFAULTS) <= KEYS["axolotl"]
    assert llamafactory.MARKS | set(llamafactory.DEFAULTS) <= KEYS["llamafactory"]
    assert trl.MARKS | set(trl.DEFAULTS) | set(trl.PLAIN) | set(trl.OWN) <= KEYS["peft"]


def test_every_key_of_the_tools_has_a_reason_that_is_its_own_for_the_usual_ones():
    general = recipe.reason("x_unknown")
    for key in ("lora_dropout", "lr_scheduler_type", "optim", "seed", "logging_steps", "deepspeed", "val_set_size"):
        assert recipe.reason(key) != general
    assert sum(recipe.reason(key) == general for key in KEYS["axolotl"]) < 0.65 * len(KEYS["axolotl"])


def an_arm(**settings) -> Recipe:
    own = {"rank": 8, "alpha": 16.0, "targets": "all-linear", **settings}
    controls = {"learning_rate": 2e-4, "epochs": 2, "batch_examples": 12, "max_tokens": 256}
    data = Dataset(path="rows.jsonl", messages="messages")
    return Recipe(tool="trl", base_model="org/base", method="qlora", settings=own, data=data, **controls)


def test_peft_reads_what_is_written_for_it():
    peft = pytest.importorskip("peft")
    keys = yaml.safe_load(recipes.write("peft", an_arm(rslora=True, dora=True), seed=1))
    made = peft.LoraConfig(**{name: value for name, value in keys["lora_config"].items() if name != "peft_type"})
    assert (made.r, made.lora_alpha, made.target_modules, made.use_rslora, made.use_dora) == (
        8,
        16,
        "all-linear",
        True,
        True,
    )
    assert made.peft_type == keys["lora_config"]["peft_type"]


@pytest.mark.skipif(util.find_spec("axolotl") is None, reason="axolotl is not installed")
@pytest.mark.parametrize(
    "made", [an_arm(), an_arm(dora=True), an_arm().model_copy(update={"method": "full", "settings": {}})]
)
def test_axolotl_s_own_schema_takes_what_is_written(made):
    schema = import_module("axolotl.utils.schemas.config").AxolotlInputConfig
    schema.model_validate(yaml.safe_load(recipes.write("axolotl", made, seed=1)))


@pytest.mark.skipif(util.find_spec("trl") is None, reason="trl is not installed")
def test_trl_s_own_classes_take_what_is_written():
    keys = yaml.safe_load(recipes.write("trl", an_arm(), seed=1))
    sft, model = (import_module(f"trl.trainer.{name}_config") for name in ("sft", "model"))
    for made in (sft.SFTConfig, model.ModelConfig):
        own = {name: value for name, value in keys.items() if name in made.__dataclass_fields__}
        made(**own, **({"use_cpu": True, "bf16": False} if made is sft.SFTConfig else {}))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    path = write_study(folder)
    ran = tunetrial("run", path, "--engine", "trial_engines:plain", home=folder / "home")
    assert ran.returncode == 0, ran.stderr
    return path


def test_a_finished_study_writes_its_arm_back_at_the_rate_that_was_found(done, tmp_path):
    out = tmp_path / "axolotl.yml"
    ran = tunetrial("recipe", done, "--arm", "lora", "--for", "axolotl", "-o", out, home=done.parent / "home")
    assert ran.returncode == 0, ran.stderr
    made = recipes.read(out)
    assert (made.method, made.settings["rank"], made.epochs, made.batch_examples) == ("lora", 2, 2, 4)
    assert 1e-4 < made.learning_rate < 1e-2
    comments = " ".join(line[1:].strip() for line in out.read_text().splitlines() if line.startswith("#"))
    assert "Seeds of its finals: 1, 2, 3, 4, 5" in comments and "The learning rate was found by" in comments
    assert "not expressed: the study trained a head for mail (classify)" in comments
    again = tunetrial("init", "--from", out, "-o", tmp_path / "study.yaml", "--margin", "0.1", home=tmp_path)
    assert again.returncode == 0, again.stderr
    study = spec.read(tmp_path / "study.yaml")
    assert study.arm("yours").settings == spec.read(done).arm("lora").settings


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--for", "unsloth"), "recipe: unknown tool, got 'unsloth'; use one of axolotl, llamafactory, trl, peft"),
        (("--for", "trl", "--arm", "lore"), "recipe: no such arm, got 'lore'; did you mean 'lora'?"),
        (("--for", "peft", "--arm", "full"), "recipe: peft writes adapters, got an arm of method full; use --for trl"),
    ],
)
def test_a_recipe_that_cannot_be_written_is_one_line(done, arguments, said):
    ran = tunetrial("recipe", done, *arguments, home=done.parent / "home")
    assert ran.returncode == 1 and ran.stderr.strip() == f"tunetrial: {said}"


def test_init_overwrites_nothing_and_says_what_it_left(tmp_path):
    (tmp_path / "axolotl.yml").write_text(AXOLOTL)
    out = tmp_path / "study.yaml"
    out.write_text("mine\n")
    ran = tunetrial("init", "--from", tmp_path / "axolotl.yml", "-o", out, home=tmp_path)
    assert ran.returncode == 1 and f"{out}: there is another file of this name" in ran.stderr
    out.unlink()
    ran = tunetrial("init", "--from", tmp_path / "axolotl.yml", "-o", out, home=tmp_path)
    assert ran.returncode == 0 and ran.stdout.strip() == str(out)
    assert "not carried over: lr_scheduler = 'cosine': in every arm the rate falls linearly" in ran.stderr
    assert "IS A CHOICE MADE FOR YOU" in ran.stderr and "hf_abc" not in ran.stderr + out.read_text()


def test_yaml_floats_are_numbers_to_every_reader():
    text = recipes.write("trl", an_arm().model_copy(update={"learning_rate": 2e-5}), seed=1)
    assert "learning_rate: 2.0e-05\n" in text and yaml.safe_load(text)["learning_rate"] == 2e-5
