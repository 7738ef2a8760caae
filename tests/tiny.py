"""A tiny random Llama with a byte-level tokenizer, made on the spot: for engine tests of seconds."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tunetrial import methods
from tunetrial.core.evidence import Example, TaskData
from tunetrial.core.study import Arm, Controls, Trial

WORDS = "bread oven late price refund parcel broken clock login invoice courier gold watch queue repair".split()


def make_model(
    folder: Path,
    *,
    layers: int = 2,
    hidden: int = 64,
    dtype: torch.dtype = torch.float32,
    merges: tuple[tuple[str, str], ...] = (),
    tied: bool = True,
) -> Path:
    """Write a random Llama (grouped-query attention, embeddings tied or not) in the Hugging Face layout.

    Its tokenizer makes a token a byte, and one of each two tokens that `merges` names.
    """
    torch.manual_seed(0)
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    vocabulary = {c: i for i, c in enumerate(["<e>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<e>", pad_token="<e>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(alphabet) + 1,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        pad_token_id=0,
        eos_token_id=0,
        bos_token_id=0,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    return folder


def make_data(kind: str, *, rows: int = 80, validation: int = 24) -> TaskData:
    """Rows of two to nine words; the target depends on the first words."""
    examples = []
    for n in range(rows + validation):
        words = [WORDS[(n * 7 + k * (n % 5 + 1)) % len(WORDS)] for k in range(2 + n % 8)]
        target = ("a", "b", "c")[WORDS.index(words[0]) % 3] if kind == "classify" else float(WORDS.index(words[0]))
        examples.append(Example(id=f"r{n}", cluster=f"r{n}", prompt=" ".join(words), target=target))
    labels = ("a", "b", "c") if kind == "classify" else ()
    splits = {"train": tuple(examples[:rows]), "validation": tuple(examples[rows:])}
    return TaskData(name="tiny", kind=kind, labels=labels, splits=splits)


def make_trial(
    method: str = "lora", *, rate: float = 1e-3, seed: int = 1, settings: dict | None = None, **controls
) -> Trial:
    arm = Arm(name=method, method=method, settings=methods.settle(method, settings or {}))
    defaults = {"base_fingerprint": "tiny", "precision": "fp32", "epochs": 10, **controls}
    return Trial(
        arm=arm,
        controls=Controls(**defaults),
        task="tiny",
        data_digest="tiny",
        learning_rate=rate,
        seed=seed,
        purpose="tune",
    )


def read_config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))
