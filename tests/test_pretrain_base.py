"""The tool that remakes the base, at toy size on the CPU."""

import lzma
import math
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import pretrain_base as tool


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    corpus = tmp_path_factory.mktemp("corpus")
    words = [f"{a}{b}" for a in ("ba", "lo", "mi", "ter", "sun") for b in ("n", "ka", "ring", "st")]
    rng = random.Random(0)
    documents = [" ".join(rng.choices(words, k=700)) + ".\n" for _ in range(8)]
    for name, part in (("train", documents[:7]), ("validation", documents[7:])):
        with lzma.open(corpus / f"{name}.txt.xz", "wt") as file:
            file.write("".join(f"{doc}{tool.END}\n" for doc in part))
    return tool.Text(corpus, device="cpu", characters=None, tokenizer=None)


def digest(model) -> bytes:
    return b"".join(p.detach().numpy().tobytes() for p in model.parameters())


def test_same_seed_same_bytes_and_other_seed_differs(text):
    recipe = tool.Recipe(1, 64, 64, dropout=0.1, passes=1.0, batch=2)
    first, log = tool.train(recipe, text)
    again, _ = tool.train(recipe, text)
    other, _ = tool.train(tool.Recipe(**{**vars(recipe), "seed": 1}), text)
    assert digest(first) == digest(again) != digest(other)
    assert log["rows"][-1]["step"] == log["steps"] == text.steps(recipe) > 1


def test_losses_equal_an_independent_count(text):
    model = tool.build(tool.Recipe(1, 64, 64), text.tokenizer).eval()
    scored = tool.evaluate(model, text, tool.text_loss)
    stream = text.held["validation"].long()
    sums, tokens, size_bytes = 0.0, 0, 0
    for start in range(0, len(stream) - 512, 512):
        ids = stream[None, start : start + 513]
        with torch.no_grad():
            embedded = model.model.embed_tokens(ids[:, :-1]).bfloat16()
            log_p = model(inputs_embeds=embedded).logits.float().log_softmax(-1)[0]
        for position, target in enumerate(ids[0, 1:].tolist()):
            if target != text.end:
                sums, tokens = sums - float(log_p[position, target]), tokens + 1
                size_bytes += len(text.tokenizer.decode([target]).encode())
    assert scored["validation"]["bits_per_byte"] == pytest.approx(sums / math.log(2) / size_bytes, rel=0.02)
    assert scored["validation"]["nats_per_token"] == pytest.approx(sums / tokens, rel=1e-4)


def test_stacked_muon_equals_torch(text):
    torch.manual_seed(0)
    shapes = [(64, 64), (96, 64), (64, 96), (64, 64)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    steps = (
        tool.StackedMuon(ours, lr=0.01, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimiser in steps:
            optimiser.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_export_is_an_ordinary_folder_with_a_manifest(text, tmp_path):
    from tunetrial import models

    model = tool.build(tool.Recipe(1, 64, 64), text.tokenizer).eval()
    tool.export(model, text.tokenizer, tmp_path)
    assert models.resolve(str(tmp_path)).folder == tmp_path
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = AutoTokenizer.from_pretrained(tmp_path)("baring sun", return_tensors="pt").input_ids
    assert loaded.dtype == torch.bfloat16
    torch.testing.assert_close(loaded(ids).logits.float(), model(ids).logits, rtol=0.05, atol=0.02)


def test_documents_of_the_non_commercial_book_are_left_out():
    assert tool.is_free("The old baker opened the door of the oven.")
    assert not tool.is_free("Trends in Accounting\n\nText.\n\nSummary of Learning Outcomes\n\n- What trends?")
    assert not tool.is_free("Preface\n\nIntroduction to Business 2e is licensed under …")
