"""What a model is made of, from whatever names it: ids known offline, configurations, folders, sizes written inline."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import bases
from hub_server import COMMIT, serve
from test_hub import offline, put_in_cache, run  # noqa: F401
from tunetrial import models
from tunetrial.core.errors import ModelError
from tunetrial.models.bounds import EXPERTS, NAMES
from tunetrial.models.families import FAMILIES
from tunetrial.models.named import KNOWN
from tunetrial.models.written import EXAMPLE

LISTED = json.loads(KNOWN.read_text())["models"]
SIZES = {"layers": 2, "hidden": 32, "heads": 4, "intermediate": 48, "vocabulary": 97, "context": 64}


def part(name):
    """The configuration of a listed model's language model."""
    config = LISTED[name]["config"]
    return config.get("text_config", config)


def written(family="llama", *flags, **sizes):
    return f"{family}:" + ",".join([*(f"{key}={value}" for key, value in (SIZES | sizes).items()), *flags])


def line_of(text, root=None):
    """The one line with which a name is refused."""
    with pytest.raises(ModelError) as refused:
        models.described(text, root)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600
    return str(refused.value)


def refused_config(config, folder):
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return line_of(str(folder))


# Ids known offline.


@pytest.mark.parametrize("name", LISTED)
def test_a_listed_model_has_the_weights_that_its_publisher_states(name):
    shape, stated = models.shape_of(part(name)), LISTED[name]["stated"]
    count = shape.parameters
    if LISTED[name]["by"].startswith("without embeddings"):
        count -= shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    if stated[-1].isdigit():
        assert count == int(stated.replace(",", ""))
    else:
        unit = {"M": 10**6, "B": 10**9}[stated[-1]]
        last_digit = unit / 10 ** len(stated[:-1].partition(".")[2])
        assert abs(count - float(stated[:-1].replace(",", "")) * unit) < last_digit


@pytest.mark.parametrize("name", LISTED)
def test_a_listed_model_is_counted_as_transformers_builds_it(name):
    """With one block and with two, from which the count of all of them follows."""
    config, shape = part(name), models.shape_of(part(name))
    layers = FAMILIES[config["model_type"]].keys.get("num_hidden_layers", "num_hidden_layers")
    made = []
    for count in (1, 2):
        settings = {key: value for key, value in config.items() if key != "model_type"} | {layers: count}
        whole = AutoConfig.for_model(config["model_type"], **settings)
        auto_class = AutoModelForCausalLM if shape.decoder else AutoModel
        bare = {"add_pooling_layer": False} if config["model_type"] == "roberta" else {}
        with torch.device("meta"):
            made.append(auto_class.from_config(whole, **bare).num_parameters())
    one, two = made
    assert shape.parameters == one + (shape.layers - 1) * (two - one)


def test_the_list_holds_no_id_twice_and_says_where_each_count_is_from():
    ids = [id_ for name, entry in LISTED.items() for id_ in (name, *entry["same"])]
    assert len(ids) == len(set(ids)) and all("/" in id_ for id_ in ids)
    assert all(entry["by"] and entry["stated"] for entry in LISTED.values())


# The Hub, its cache, and what is known offline.


def test_of_a_model_in_the_cache_its_own_configuration_is_read(offline, tmp_path):  # noqa: F811
    bases.configuration("llama").save_pretrained(tmp_path / "files")
    put_in_cache(offline, "model", "meta-llama/Llama-3.2-1B", tmp_path / "files")
    found = models.described("meta-llama/Llama-3.2-1B")
    assert found.source == f"config.json of the Hub at commit {COMMIT}" and found.shape.hidden == 32
    assert found.config == json.loads((tmp_path / "files" / "config.json").read_text())


def test_a_listed_model_is_described_without_a_network_and_says_so(offline):  # noqa: F811
    found = models.described("meta-llama/Llama-3.1-8B-Instruct")
    assert (found.name, found.shape.parameters) == ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248)
    known = "known offline since 2026-11: meta-llama/Llama-3.1-8B-Instruct; "
    assert found.source == known + "not in the cache and HF_HUB_OFFLINE is set"
    assert found.bound is None and found.limit is None


def test_what_a_hub_refuses_is_known_offline_or_refused_in_one_line(tmp_path):
    code = """
from tunetrial import models
from tunetrial.core.errors import ModelError
for name in ("meta-llama/Llama-2-7b-hf", "org/tiny", "org/empty", "org/gated-one", "org/nothing"):
    try:
        found = models.described(name)
        print(found.shape.parameters, found.source)
    except ModelError as error:
        print(error)
"""
    hub = tmp_path / "hub" / "models"
    bases.configuration("gpt2").save_pretrained(hub / "org" / "tiny")
    (hub / "org" / "tiny" / "model.safetensors").write_bytes(b"weights")
    for folder in ("org/empty", "org/gated-one", "meta-llama/Llama-2-7b-hf"):
        (hub / folder).mkdir(parents=True)
        (hub / folder / "README.md").write_text("nothing")
    with serve(tmp_path / "hub") as (address, seen):
        lines, _ = run(code, HF_ENDPOINT=address, HF_HOME=str(tmp_path / "home"))
    listed, tiny, empty, gated, nothing = lines
    assert listed == "6738415616 known offline since 2026-11: meta-llama/Llama-2-7b-hf; the model is gated"
    assert tiny.endswith(f"config.json of the Hub at commit {COMMIT}")
    assert empty == "https://huggingface.co/org/empty: no config.json; name a model in the Hugging Face layout"
    assert "the model is gated, got 'org/gated-one'; accept its terms" in gated
    assert "the Hub has no such model, or it is private, got 'org/nothing'" in nothing
    assert not [path for path, _ in seen if path.endswith((".safetensors", "README.md"))]


@pytest.mark.parametrize(
    "text, said",
    [
        ("meta-llama/Llama-3.2-1", "HF_HUB_OFFLINE is set, got 'meta-llama/Llama-3.2-1'; unset it"),
        ("meta-llama/Llama-3.2-1", "known offline: meta-llama/Llama-3.2-1B"),
        ("unsloth/llama-3.2-1b", "known offline: meta-llama/Llama-3.2-1B"),
        ("meta-llama/Llama-3.2-1B@v2", "or leave out the revision: meta-llama/Llama-3.2-1B itself is known offline"),
        ("gpt2", "no such folder or file, got 'gpt2'; known offline: openai-community/gpt2"),
        ("https://huggingface.co/Qwen/Qwen3-8B", "known offline: Qwen/Qwen3-8B"),
        ("", "no such folder or file, got ''; name a folder, a config.json, a model of the Hub as org/name, or sizes"),
        ("~nobody-here/x", "no such folder or file"),
        ("a\0b", "no such folder or file"),
        ("x" * 5000, "no such folder or file"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused_with_the_nearest(offline, text, said):  # noqa: F811
    assert said in line_of(text)


# Folders and files.


def test_a_folder_needs_no_weights_and_a_file_may_be_named_itself(tmp_path):
    (tmp_path / "mine").mkdir()
    bases.configuration("bert").save_pretrained(tmp_path / "mine")
    folder, file = models.described("mine", tmp_path), models.described("mine/config.json", tmp_path)
    assert folder.shape == file.shape == models.shape(tmp_path / "mine")
    assert (folder.source, file.source) == (
        f"folder {tmp_path / 'mine'}",
        f"file {tmp_path / 'mine' / 'config.json'}",
    )
    assert models.described("embedded").shape == models.shape(models.EMBEDDED)


@pytest.mark.parametrize(
    "config, said",
    [
        ("{", "not JSON, got Expecting property name enclosed in double quotes: line 1 column 2 (char 1); restore"),
        ("[" * 100_000, "not JSON, got RecursionError; restore the file"),
        (" " * 2**22 + "{}", "not a model configuration, got 4194306 bytes; name a config.json or the folder"),
        ([1], "not a JSON object, got list; restore the file"),
        ({}, "hidden_size is missing, got none of hidden_size, n_embd, d_model, dim, model_dim; name a config.json"),
        ({"model_type": "llama"}, "hidden_size is missing, got no such key; restore the file"),
        ({"model_type": ["llama"]}, "hidden_size is missing"),
        ({"model_type": "mamba", "hidden_size": 8, "n_layer": 2}, "num_attention_heads is missing"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoders are not supported, got 't5'"),
        ({"model_type": "new", "hidden_size": -1}, "hidden_size: must be a whole number from 1 to 131072, got -1"),
        ({"model_type": "new", "n_embd": 2**40}, "n_embd: must be a whole number from 1 to 131072, got 1099511627776"),
        ({"model_type": "new", "quantization_config": {"quant_method": "awq"}}, "quantised, got 'awq'"),
    ],
)
def test_a_configuration_that_says_no_sizes_is_refused_in_one_line(config, said, tmp_path):
    assert said in refused_config(config, tmp_path)


def test_a_folder_without_a_configuration_says_so(tmp_path):
    assert line_of(str(tmp_path)).endswith(
        "config.json: no config.json, got No such file or directory; name a model in the Hugging Face layout"
    )


def test_of_a_model_with_other_parts_the_language_model_alone_is_counted(offline):  # noqa: F811
    found = models.described("google/gemma-3-4b-it")
    assert found.config["model_type"] == "gemma3_text" and found.shape.parameters == 3_880_263_168
    assert found.limit.startswith("the language model of a gemma3 alone: its other parts are not counted")


# Sizes written inline.


def test_written_sizes_are_those_of_the_model_that_has_them():
    found, one = models.described(EXAMPLE), models.shape_of(part("meta-llama/Llama-3.2-1B"))
    assert found.shape == one and found.source == "as written"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_written_and_built(family):
    found = models.described(written(family))
    auto_class = AutoModelForCausalLM if found.shape.decoder else AutoModel
    settings = {key: value for key, value in found.config.items() if key != "model_type"} | {"pad_token_id": 1}
    with torch.device("meta"):
        bare = {"add_pooling_layer": False} if family == "roberta" else {}
        model = auto_class.from_config(AutoConfig.for_model(family, **settings), **bare)
    assert found.shape.parameters == model.num_parameters()


@pytest.mark.parametrize(
    "text, said",
    [
        ("lama:layers=2", "model: unknown family, got 'lama'; use llama"),
        ("zzz:layers=2", "model: unknown family, got 'zzz'; use one of llama, mistral"),
        (written(kvheads=2), "model: llama has no such size, got 'kvheads'; use kv_heads"),
        (written("gpt2", kv_heads=2), "model: gpt2 has no such size, got 'kv_heads'; use"),
        (written("bert", "tied"), "model: bert has no such size, got 'tied'"),
        ("llama:layers=2", "model: hidden, heads, intermediate, vocabulary, context missing, got layers; write as"),
        ("llama:", "model: an entry is empty, got 'llama:'; write as in llama:layers=16"),
        (written() + ",", "model: an entry is empty"),
        (written() + ",layers=3", "model: layers: written twice, got 2 and '3'; write it once"),
        (written(hidden="1k"), "model: hidden: must be digits alone, got '1k'; write as in hidden=2048"),
        (written(hidden="-32"), "model: hidden: must be digits alone, got '-32'"),
        (written(hidden="٣٢"), "model: hidden: must be digits alone"),
        (written(hidden=10**17), "model: hidden_size: must be a whole number from 1 to 131072, got 100000000000000000"),
        (written(layers=0), "model: num_hidden_layers: must be a whole number from 1 to 1024, got 0; mend it"),
        (
            written(heads=5),
            "model: head_dim: hidden is no multiple of heads, got hidden 32 and 5 heads; write head_dim",
        ),
        (written("llama", "tied=1"), "model: tied: has no value, got =; write tied alone"),
        (written("llama", "dtype"), "model: dtype: has a value, got none; write dtype=..."),
        (written("llama", "dtype=bf16"), "model: dtype: unknown, got 'bf16'; use"),
    ],
)
def test_what_is_written_wrong_is_named(text, said):
    assert said in line_of(text)


@given(
    st.sampled_from(sorted(FAMILIES)),
    st.permutations([*SIZES, "dtype=float32"]),
    st.integers(1, 40),
    st.integers(1, 20),
    st.integers(1, 16),
    st.integers(1, 3000),
)
def test_any_sizes_written_in_any_order_are_read_back(family, order, layers, heads, width, vocabulary):
    sizes = SIZES | {"layers": layers, "heads": heads, "hidden": heads * width, "vocabulary": vocabulary}
    entries = (entry if "=" in entry else f" {entry} = {sizes[entry]}" for entry in order)
    found = models.described(f"{family}:{','.join(entries)}").shape
    assert (found.layers, found.hidden, found.heads, found.vocabulary) == (layers, heads * width, heads, vocabulary)
    assert (found.model_type, found.kv_heads, found.head_dim) == (family, heads, width)
    assert (found.intermediate, found.context + found.first_position) == (SIZES["intermediate"], SIZES["context"])
    assert found.bytes_per_weight == 4 and found.parameters > vocabulary * found.hidden


@given(st.text(st.sampled_from("layershidnkv=,:_0123456789 \n\t-") | st.characters(), max_size=80))
@example("layers=2,,")
@example("=")
def test_any_text_after_a_family_is_sizes_or_refused_in_one_line(text):
    try:
        assert models.described(f"llama:{text}").shape.layers > 0
    except ModelError as error:
        assert len(str(error).splitlines()) == 1


# Families that are not known.


@pytest.mark.parametrize("name", LISTED)
def test_a_bound_holds_the_count_of_every_listed_model(name, tmp_path):
    """As if its family were not known: also where a size is left out that other families do not have."""
    config = part(name) | {"model_type": "unheard-of"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found, count = models.described(str(tmp_path)), models.shape_of(part(name)).parameters
    assert found.shape is None and found.bound.low <= count <= found.bound.high < 3 * count
    assert found.limit.startswith("unknown family, got 'unheard-of': its weights are bounded")


# Each with the count of its published weights, and with the sizes that its config.json states.
OF_OTHER_FAMILIES = {
    "mixtral": (
        {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
        | {"intermediate_size": 14336, "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2}
        | {"tie_word_embeddings": False, "rope_theta": 1e6, "architectures": ["MixtralForCausalLM"]},
        46_702_792_704,
    ),
    "qwen2_moe": (
        {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16}
        | {"intermediate_size": 5632, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632}
        | {"vocab_size": 151936, "num_experts": 60, "tie_word_embeddings": False, "rope_theta": 1e6},
        14_315_784_192,
    ),
    "deepseek_v3": (
        {"hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128}
        | {"intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1}
        | {"vocab_size": 129280, "tie_word_embeddings": False, "rope_theta": 10000},
        671_026_419_200,
    ),
    "opt": (
        {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32, "ffn_dim": 8192}
        | {"vocab_size": 50272, "max_position_embeddings": 2048},
        1_315_758_080,
    ),
    "albert": (
        {"hidden_size": 768, "embedding_size": 128, "num_hidden_layers": 12, "num_attention_heads": 12}
        | {"intermediate_size": 3072, "vocab_size": 30000, "max_position_embeddings": 512}
        | {"num_hidden_groups": 1, "inner_group_num": 1, "type_vocab_size": 2},
        11_683_584,
    ),
    "deberta-v2": (
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
        | {"vocab_size": 128100, "max_position_embeddings": 512, "type_vocab_size": 0, "position_buckets": 256}
        | {"relative_attention": True, "share_att_key": True, "position_biased_input": False},
        183_831_552,
    ),
    "modernbert": (
        {"hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12, "intermediate_size": 1152}
        | {"vocab_size": 50368, "max_position_embeddings": 8192},
        149_014_272,
    ),
}


@pytest.mark.parametrize("family", OF_OTHER_FAMILIES)
def test_a_bound_holds_counts_of_families_that_are_not_known(family, tmp_path):
    config, count = OF_OTHER_FAMILIES[family]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family} | config))
    bound = models.described(str(tmp_path)).bound
    assert bound.low <= count <= bound.high
    assert bound.why.startswith("if its blocks are made as in known families: leanest as in ")


@pytest.mark.parametrize("change", [{"num_local_experts": -1}, {"num_local_experts": 10**6}, {"num_experts": "x"}])
def test_experts_that_cannot_be_counted_are_refused(change, tmp_path):
    config = OF_OTHER_FAMILIES["mixtral"][0] | {"model_type": "mixtral", "num_local_experts": None} | change
    assert "must be a whole number from 0 to 65536, got " in refused_config(config, tmp_path)


# Each as transformers builds it, three blocks of it; dense and with experts, decoders, encoders and hybrids.
BUILT = (
    ("arcee", "bitnet", "bloom", "cohere2", "falcon", "glm4", "gptj", "granite", "mpt", "nanochat", "olmo2")
    + ("opt", "smollm3", "stablelm", "starcoder2", "codegen", "olmoe", "qwen3_moe", "gpt_oss", "deepseek_v2")
    + ("electra", "megatron-bert", "xlm-roberta", "bamba", "falcon_h1", "granitemoehybrid", "qwen3_next", "minimax")
)


@pytest.mark.parametrize("family", BUILT)
def test_a_bound_holds_what_transformers_builds(family, tmp_path):
    key = next(key for key in ("num_hidden_layers", "n_layer") if hasattr(AutoConfig.for_model(family), key))
    config = AutoConfig.for_model(family, **{key: 3})
    with torch.device("meta"):
        count = AutoModelForCausalLM.from_config(config).num_parameters()
    (tmp_path / "config.json").write_text(config.to_json_string(use_diff=False))
    bound = models.described(str(tmp_path)).bound
    assert bound.low <= count <= bound.high


def test_embeddings_a_layer_are_not_bounded(tmp_path):
    config = {"model_type": "gemma9_text", "hidden_size": 32, "hidden_size_per_layer_input": 8}
    said = "hidden_size_per_layer_input: no known family has it, got 8 in a gemma9_text; use a model without it"
    assert said in refused_config(config, tmp_path)


KEYS = sorted(
    {name for names in NAMES.values() for name in names}
    | {key for family in FAMILIES.values() for key in (*family.keys.values(), *family.defaults, *family.refused)}
    | {*EXPERTS, "model_type", "dtype", "quantization_config", "text_config", "architectures", "multi_query", "conv_l"}
)
ANYTHING = st.one_of(
    st.sampled_from([2, 4, 8, 64]),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(KEYS), st.integers(1, 9), max_size=3),
)


@given(st.sampled_from([*FAMILIES, "new"]), st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=4))
def test_any_configuration_is_counted_bounded_or_refused_in_one_line(family, changes):
    sizes = {"n_embd": 8, "dim": 8, "n_layer": 2, "n_layers": 2, "n_head": 4, "n_heads": 4, "hidden_dim": 16}
    sizes |= {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16}
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(
            json.dumps({"model_type": family, "vocab_size": 97} | sizes | changes)
        )
        try:
            found = models.described(folder)
        except ModelError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert (found.shape is None) == (found.bound is not None)
            assert found.bound is None or 0 < found.bound.low <= found.bound.high
