"""A tiny random model of every family, made on the spot, with every weight drawn: norms and biases too."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

COMMON = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2}
GEMMA = GROUPED | {"head_dim": 16, "attention_bias": True}
WINDOW = {"sliding_window": 5}
ENCODERS = {"bert": {}, "roberta": {"pad_token_id": 1}, "distilbert": {}}
DECODERS = {
    "llama": GROUPED,
    "llama-biased": GROUPED | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": GROUPED | WINDOW | {"head_dim": 16},
    "qwen2": GROUPED | WINDOW | {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3": GROUPED | {"head_dim": 16},
    "gemma": GEMMA,
    "gemma2": GEMMA
    | WINDOW
    | {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 7},
    "gemma3_text": GEMMA | WINDOW | {"num_hidden_layers": 6, "query_pre_attn_scalar": 7},
    "phi": GROUPED,
    "phi3": GROUPED | WINDOW,
    "gpt2": {},
    "gpt_neox": {},
    "gpt_neox-unbiased": {"attention_bias": False, "use_parallel_residual": False},
}
FAMILIES = DECODERS | ENCODERS


def configuration(name: str, **more: object):
    return AutoConfig.for_model(name.partition("-")[0], **COMMON | FAMILIES[name] | more)


def draw(model: torch.nn.Module, sd: float = 0.3) -> None:
    """Draw every weight: initial zeros and ones would hide what is left out."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.5 if weight.ndim == 1 else 0.0, sd, generator=generator)


def make(name: str, folder: Path, **more: object) -> PreTrainedModel:
    """Write a random model as its own pretraining would: decoders with their language-model head."""
    auto_class = AutoModel if name in ENCODERS else AutoModelForCausalLM
    model = auto_class.from_config(configuration(name, **more))
    draw(model)
    model.save_pretrained(folder)
    return model.eval()
