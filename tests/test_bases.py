"""Every family of models: weights counted, attention without padding equal to padded rows, heads as Hugging Face's."""

import json
import math
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import bases
import tiny
from tunetrial import methods, models
from tunetrial.core.errors import ModelError
from tunetrial.engine import attention, heads
from tunetrial.engine.torch_engine import TorchEngine
from tunetrial.models.families import FAMILIES

CPU = torch.device("cpu")
BLOCKS = {
    "gpt2": "h",
    "bert": "encoder.layer",
    "roberta": "encoder.layer",
    "distilbert": "transformer.layer",
}
every_family = pytest.mark.parametrize("name", bases.FAMILIES)
decoders = pytest.mark.parametrize("name", bases.DECODERS)
encoders = pytest.mark.parametrize("name", bases.ENCODERS)


def auto_class(name):
    return AutoModel if name in bases.ENCODERS else AutoModelForCausalLM


def load(name, folder, **more):
    bases.make(name, folder, **more)
    return attention.load(folder, auto_class(name), torch.float32, CPU)


def drawn_rows(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 97, (length,), generator=generator).tolist() for length in lengths]


def padded(model, rows):
    """Last hidden states of each row from a padded batch, as a user of transformers makes it."""
    pad, longest = model.config.pad_token_id, max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    made = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    return [made[number, : len(row)] for number, row in enumerate(rows)]


def by_rows(model, rows):
    layout = attention.lay_out(rows, CPU)
    return list(attention.states(model, layout)[: len(layout.cells)].split([len(row) for row in rows]))


def reference(model, folder):
    """The same weights in a model that transformers runs by itself."""
    other = type(model).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return other.eval()


# Sizes.


@every_family
def test_weights_are_counted_as_the_modules_have_them(name, tmp_path):
    bases.configuration(name).save_pretrained(tmp_path)
    shape = models.shape(tmp_path)
    without_pooler = {"add_pooling_layer": False} if name == "roberta" else {}
    with torch.device("meta"):
        if shape.decoder:
            model = AutoModelForCausalLM.from_config(bases.configuration(name))
        else:
            model = AutoModel.from_config(bases.configuration(name), **without_pooler)
    block = model.base_model.get_submodule(BLOCKS.get(shape.model_type, "layers"))[0]
    assert shape.parameters == model.num_parameters()
    assert shape.backbone_parameters == model.base_model.num_parameters()
    assert shape.block_parameters == sum(weight.numel() for weight in block.parameters())
    assert shape.layers == model.config.num_hidden_layers and shape.decoder == (name in bases.DECODERS)


@every_family
def test_projections_are_all_linear_layers_of_the_blocks(name, tmp_path):
    bases.configuration(name).save_pretrained(tmp_path)
    shape = models.shape(tmp_path)
    with torch.device("meta"):
        backbone = AutoModel.from_config(bases.configuration(name))
    layers = {
        path: module
        for path, module in backbone.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and not path.startswith("pooler")
    }
    found = {}
    for path, module in layers.items():
        rows, columns = module.weight.shape
        sizes = (rows, columns) if type(module).__name__ == "Conv1D" else (columns, rows)
        found.setdefault(shape.projection(path), []).append((sizes, module.bias is not None))
    assert set(found) == set(shape.projections)
    for projection, seen in found.items():
        assert seen == [(shape.projections[projection], projection in shape.biased)] * shape.layers
    assert shape.projection("embed_tokens") is None
    assert name in bases.DECODERS or shape.projection("pooler.dense") is None


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_transformers(family):
    config = AutoConfig.for_model(family)
    for key, value in FAMILIES[family].defaults.items():
        assert getattr(config, key) == value, key


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_of_a_classifier_are_counted(family):
    config = bases.configuration(family, num_labels=3)
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(config)
    shape_ = models.shape_of(json.loads(config.to_json_string(use_diff=False)))
    assert classifier.num_parameters() == shape_.backbone_parameters + shape_.readout_parameters(3)
    assert classifier.base_model_prefix == shape_.prefix


def test_golden_counts():
    """Counts that the makers publish, from the configurations that they publish."""
    known = {
        "gpt2": ({"n_embd": 768, "n_head": 12, "n_layer": 12, "vocab_size": 50257}, 124_439_808),
        "bert": (
            {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 3072}
            | {"vocab_size": 30522},
            109_482_240,
        ),
        "qwen2": (
            {"hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2, "num_hidden_layers": 24}
            | {"intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True},
            494_032_768,
        ),
        "mistral": (
            {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32}
            | {"intermediate_size": 14336, "vocab_size": 32000},
            7_241_732_096,
        ),
    }
    for family, (config, count) in known.items():
        assert models.shape_of({"model_type": family} | config).parameters == count, family


@pytest.mark.parametrize(
    "family, change, message",
    [
        (
            "llama",
            {"model_type": "mamba"},
            r"family not supported, got 'mamba'; use one of llama, mistral, .*distilbert",
        ),
        (
            "llama",
            {"model_type": "evil", "auto_map": {"AutoModel": "evil.Model"}},
            r"not supported \(its repository's own code is never run\), got 'evil'",
        ),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "the weights are quantised, got 'gptq'; name"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention: not supported, got True"),
        ("bert", {"position_embedding_type": "relative_key"}, "not supported, got 'relative_key' in a bert"),
        ("bert", {"is_decoder": True}, "is_decoder: not supported"),
        ("llama", {"hidden_size": "many"}, "hidden_size: must be a whole number from 1 to 131072, got 'many'; mend it"),
        ("llama", {"hidden_size": None}, "hidden_size: must be a whole number from 1 to 131072, got None"),
        ("llama", {"hidden_size": -32}, "hidden_size: must be a whole number from 1 to 131072, got -32"),
        ("llama", {"hidden_size": 10**30}, "hidden_size: must be a whole number from 1 to 131072, got 1000"),
        ("gpt2", {"n_layer": True}, "n_layer: must be a whole number from 1 to 1024, got True"),
        ("llama", {"vocab_size": 97.0}, "vocab_size: must be a whole number from 1 to 8388608, got 97.0"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads: must divide the number of heads, got 3 and 4"),
        ("bert", {"hidden_size": 33}, "hidden_size: must be a multiple of the number of heads, got 33 and 4; mend it"),
        ("roberta", {"max_position_embeddings": 2}, "max_position_embeddings: must be above 2, got 2; mend it"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(family, change, message, tmp_path):
    bases.configuration(family).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message) as refused:
        models.shape(tmp_path)
    assert "\n" not in str(refused.value)


# Attention.


@every_family
def test_states_without_padding_are_those_of_padded_rows(name, tmp_path):
    model = load(name, tmp_path)
    assert model.config._attn_implementation == attention.UNPADDED
    rows = drawn_rows((9, 1, 23, 14))
    with torch.no_grad():
        expected, found = padded(reference(model, tmp_path), rows), by_rows(model, rows)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@every_family
def test_rows_do_not_see_each_other(name, tmp_path):
    model = load(name, tmp_path)
    first, second = drawn_rows((9, 12, 30)), drawn_rows((9, 12, 30))
    second[1] = [(token * 7 + 5) % 90 + 3 for token in second[1]]
    with torch.no_grad():
        before, after = by_rows(model, first), by_rows(model, second)
    assert torch.equal(before[0], after[0]) and torch.equal(before[2], after[2])
    assert not torch.allclose(before[1], after[1])


@every_family
def test_gradients_are_those_of_padded_rows(name, tmp_path):
    model = load(name, tmp_path)
    other = reference(model, tmp_path)
    rows = drawn_rows((9, 1, 23, 14))
    direction = torch.randn(sum(map(len, rows)), 32, generator=torch.Generator().manual_seed(1))
    for one in (model, other):
        one.requires_grad_(True)
    (torch.cat(by_rows(model, rows)) * direction).sum().backward()
    (torch.cat(padded(other, rows)) * direction).sum().backward()
    theirs = dict(other.base_model.named_parameters())
    largest = max(weight.grad.abs().max() for weight in theirs.values() if weight.grad is not None)
    for path, weight in model.base_model.named_parameters():
        if weight.grad is None:
            assert theirs[path].grad is None or not theirs[path].grad.any(), path
            continue
        scale = max(theirs[path].grad.abs().max(), 1e-3 * largest)
        torch.testing.assert_close(weight.grad / scale, theirs[path].grad / scale, rtol=1e-4, atol=1e-4)


@decoders
def test_logits_are_those_of_the_language_model(name, tmp_path):
    model = load(name, tmp_path)
    rows = drawn_rows((9, 9))
    with torch.no_grad():
        expected = reference(model, tmp_path)(torch.tensor(rows)).logits.flatten(0, 1)
        found = attention.logits(model, torch.cat(by_rows(model, rows)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral", "gpt2", "roberta"])
def test_what_cannot_be_computed_without_padding_is_padded(name, tmp_path, monkeypatch):
    """As for a family with attention sinks: the same numbers, and the record says how."""
    bases.make(name, tmp_path)

    def refuse(module, *_, **__):
        raise ModelError(f"{type(module).__name__}: not supported, got s_aux; use another")

    monkeypatch.setitem(attention.AttentionInterface._global_mapping, attention.UNPADDED, refuse)
    model = attention.load(tmp_path, auto_class(name), torch.float32, CPU)
    assert model.config._attn_implementation == ("eager" if name == "gemma2" else "sdpa")
    rows = drawn_rows((9, 1, 23, 14))
    with torch.no_grad():
        for ours, theirs in zip(by_rows(model, rows), padded(reference(model, tmp_path), rows), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_wrong_attention_is_found_out(tmp_path, monkeypatch):
    bases.make("mistral", tmp_path)
    right = attention.attend
    monkeypatch.setitem(
        attention.AttentionInterface._global_mapping,
        attention.UNPADDED,
        lambda *args, **kwargs: right(*args, **kwargs | {"sliding_window": None}),
    )
    model = attention.load(tmp_path, AutoModelForCausalLM, torch.float32, CPU)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("causal, window", [(True, None), (True, 5), (False, None)])
def test_the_fused_kernel_computes_the_same(causal, window):
    layout = attention.lay_out(drawn_rows((9, 1, 23)), CPU)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, heads, 23, 8, generator=generator) for heads in (4, 2, 2))
    hidden = layout.hidden(causal=causal, window=window)
    seen = None if causal and window is None else hidden
    plain = attention._plain(q, k, v, 0.3, hidden=hidden, softcap=None)
    torch.testing.assert_close(attention._fused(q, k, v, 0.3, hidden=seen), plain, rtol=1e-5, atol=1e-5)


class Module(torch.nn.Module):
    is_causal = True


@pytest.mark.parametrize(
    "more, got",
    [
        ({"s_aux": torch.zeros(2)}, "s_aux"),
        ({"dropout": 0.1}, "dropout"),
        ({"layout": None}, "a call without layout"),
        ({"chunk": 3, "dropout": 0.2}, "chunk, dropout"),
    ],
)
def test_attention_refuses_what_it_would_not_honour(more, got):
    layout = attention.lay_out([[1, 2], [3]], CPU)
    q = torch.zeros(1, 2, 64, 8)
    with pytest.raises(ModelError, match=f"Module: attention without padding: not supported, got {got}"):
        attention.attend(Module(), q, q, q, None, **{"layout": layout, "scaling": 1.0} | more)


def test_missing_weights_are_never_drawn_at_random(tmp_path):
    model = bases.make("bert", tmp_path)
    weights = {name: weight for name, weight in model.state_dict().items() if not name.startswith("pooler")}
    shutil.rmtree(tmp_path)
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ModelError, match="got 2 are missing, such as pooler.dense.bias; use a complete model"):
        attention.load(tmp_path, AutoModel, torch.float32, CPU)


# Heads.


@pytest.mark.parametrize("name", [name for name in bases.FAMILIES if "-" not in name])
def test_a_row_is_read_as_the_classifier_of_hugging_face_reads_it(name, tmp_path):
    """Our weights under their names in a classifier of transformers give the same logits, and none is left over."""
    backbone = load(name, tmp_path / "base").base_model
    shape = models.shape(tmp_path / "base")
    head = heads.make_head(shape, 3, generators=[torch.Generator().manual_seed(1)], dtype=torch.float32, device=CPU)
    assert sum(weight.numel() for weight in head.parameters()) == shape.readout_parameters(3)
    bases.draw(head)
    theirs = AutoModelForSequenceClassification.from_config(bases.configuration(name, num_labels=3)).eval()
    ours = {f"model.{path}": weight for path, weight in backbone.state_dict().items()}
    ours |= {f"score.{path}": weight[0] for path, weight in head.state_dict().items()}
    theirs.load_state_dict({heads.classifier_name(path, shape): weight for path, weight in ours.items()})
    rows = drawn_rows((9, 1, 23, 14))
    pad, longest = theirs.config.pad_token_id, max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=(ids != pad).long()).logits
        found = head(heads.summaries(backbone, attention.lay_out(rows, CPU), shape)[None])[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_heads_follow_their_seed(tmp_path):
    bases.configuration("roberta").save_pretrained(tmp_path)
    shape = models.shape(tmp_path)

    def make(*seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return heads.make_head(shape, 3, generators=generators, dtype=torch.float32, device=CPU).output.weight

    assert torch.equal(make(1), make(1)) and not torch.equal(make(1), make(2))
    assert torch.equal(make(1, 2), torch.cat([make(1), make(2)]))


@every_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_proof_holds_in_other_precisions(name, dtype, tmp_path):
    bases.make(name, tmp_path)
    model = attention.load(tmp_path, auto_class(name), dtype, CPU)
    assert model.config._attn_implementation == attention.UNPADDED and model.dtype == dtype


# The whole way.


@pytest.mark.parametrize("name", [name for name in bases.FAMILIES if "-" not in name])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_family_is_trained_saved_and_read_back_by_transformers_and_peft(name, method, tmp_path):
    """What is scored is what the artifact computes, in the libraries that a user will load it with."""
    base = tiny.make_model(tmp_path / "base")
    bases.make(name, base, vocab_size=257, max_position_embeddings=128)
    data = tiny.make_data("classify", rows=24, validation=8)
    session = TorchEngine(device="cpu").open(base, "fp32")
    run = session.start(tiny.make_trial(method, epochs=1), data)
    assert all(math.isfinite(step.loss) for step in run.steps(None))
    shape, made = models.shape(base), run.measurements()["trainable_parameters"].value
    assert made == methods.find(run.trials[0].arm).trainable_parameters(shape, 3)
    rows = data.splits["validation"]
    layout = attention.lay_out(session.texts.prompts(rows), CPU)
    with torch.no_grad():
        expected = run.model(layout)[0]
    run.save(tmp_path / "artifact")
    theirs = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "artifact" if method == "full" else base, num_labels=3, dtype=torch.float32
    )
    if method == "lora":
        theirs = PeftModel.from_pretrained(theirs, tmp_path / "artifact")
    for number, prompt in enumerate(session.texts.prompts(rows)):
        with torch.no_grad():
            logits = theirs.eval()(input_ids=torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(expected[number], logits, rtol=1e-4, atol=1e-4)
