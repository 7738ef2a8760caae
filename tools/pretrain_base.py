"""Remake the embedded base model: tokenizer, weights and log, from a folder of plain text.

    python tools/pretrain_base.py --corpus CORPUS                       # remakes src/tunetrial/embedded/base
    python tools/pretrain_base.py --corpus CORPUS --evaluate src/tunetrial/embedded/base
    python tools/draw_pretraining.py                                    # the picture of the log

CORPUS holds train.txt.xz and validation.txt.xz, documents ended by a line `<|endoftext|>`. One GPU makes
the shipped recipe in about six minutes. `--recipes` trains other named recipes, whose logs show
what the shipped one was chosen over. Same seed, machine and versions give the same tokenizer and data order;
on a GPU the weights repeat to rounding, not to the byte.
"""

import argparse
import hashlib
import json
import lzma
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tunetrial.core.manifest import NAME, sha256, write_manifest

SHIPPED = Path("src/tunetrial/embedded/base")
CONTEXT = 512
VOCABULARY = 8192
END, PAD = "<|endoftext|>", "<|pad|>"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run; `width` and `mlp` in features, `batch` in sequences of 512."""

    layers: int
    width: int
    mlp: int
    optimiser: str = "muon"
    lr: float = 3e-3
    weight_decay: float = 0.1
    dropout: float = 0.0
    passes: float = 5.0
    batch: int = 256
    seed: int = 2026


RECIPES = {
    "adamw": Recipe(8, 320, 864, optimiser="adamw", lr=2e-3),
    "wide": Recipe(8, 320, 864),
    "deep": Recipe(12, 256, 768),
    "broad-mlp": Recipe(10, 256, 1024),
    "deep-hot": Recipe(12, 256, 768, lr=6e-3),
    "deep-hotter": Recipe(12, 256, 768, lr=1e-2),
    "wide-hotter": Recipe(8, 320, 864, lr=1e-2),
    "deep-10-passes": Recipe(12, 256, 768, lr=6e-3, dropout=0.1, passes=10.0),
    "deep-18-passes": Recipe(12, 256, 768, lr=1e-2, dropout=0.1, passes=18.0),
    "wide-18-passes": Recipe(8, 320, 864, lr=1e-2, dropout=0.1, passes=18.0),
    "base": Recipe(12, 256, 768, lr=1e-2, dropout=0.1, passes=28.0),
    "toy": Recipe(2, 64, 128, dropout=0.1, passes=2.0, batch=2),
}


# *Introduction to Business 2e* lies in the corpus under an open licence that its own preface and the README of its
# repository deny (CC BY-NC-SA). Its sections carry no book name; each of them, and of no other book, says one of these.
NON_COMMERCIAL = (
    "Summary of Learning Outcomes",
    "After reading this chapter, you should be able to answer these questions",
    "After reading this appendix",
    "Get Your Career Off on the Right Track",
    "Introduction to Business",
)


def documents(path: Path, characters: int | None) -> list[str]:
    """Read the documents of an xz-compressed text file (its start alone, if asked), without their end marks."""
    text = lzma.open(path, "rt", encoding="utf-8").read(-1 if characters is None else characters)
    return [doc for part in text.split(f"{END}\n") if (doc := part.strip("\n"))]


def is_free(document: str) -> bool:
    """Tell documents that may be trained on from those of the one book whose licence forbids commercial use."""
    return not any(mark in document for mark in NON_COMMERCIAL)


def is_held_out(document: str) -> bool:
    """Choose 1 % of documents by their content, so that the choice survives reordering."""
    return int(hashlib.sha256(document.encode()).hexdigest()[:8], 16) % 100 == 0


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Learn 8,192 byte-level BPE tokens; the pre-tokenizer is GPT-2's ByteLevel and there is no normaliser."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """Join documents into one token stream, an end mark before each; shape (tokens,), int16."""
    end = tokenizer.eos_token_id
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    stream = np.concatenate([np.array([end, *e.ids], dtype=np.int16) for e in encoded])
    return torch.from_numpy(stream)


class Text:
    """The tokenised corpus on one device: training stream, and two held-out streams with their byte counts."""

    def __init__(self, corpus: Path, *, device: str, characters: int | None, tokenizer: Path | None):
        train = [d for d in documents(corpus / "train.txt.xz", characters) if is_free(d)]
        splits = {
            "held_out": [d for d in train if is_held_out(d)] or train[-1:],
            "validation": documents(corpus / "validation.txt.xz", characters),
        }
        train = [d for d in train if not is_held_out(d)]
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer) if tokenizer else train_tokenizer(train)
        self.train = encode(self.tokenizer, train).to(device)
        self.held = {name: encode(self.tokenizer, docs).to(device) for name, docs in splits.items()}
        self.documents = {"training": len(train), **{name: len(docs) for name, docs in splits.items()}}
        self.held_bytes = {name: sum(len(d.encode()) for d in docs) for name, docs in splits.items()}
        self.end = self.tokenizer.eos_token_id

    def batches(self, recipe: Recipe) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (input, target), shape (batch, 512): each pass cuts at a new offset and shuffles the pieces."""
        rng = torch.Generator().manual_seed(recipe.seed)
        while True:
            offset = int(torch.randint(CONTEXT, (1,), generator=rng))
            pieces = (len(self.train) - offset - 1) // CONTEXT
            order = torch.randperm(pieces, generator=rng).to(self.train.device)
            window = torch.arange(CONTEXT + 1, device=self.train.device)
            for i in range(pieces // recipe.batch):
                starts = offset + CONTEXT * order[i * recipe.batch : (i + 1) * recipe.batch]
                tokens = self.train[starts[:, None] + window].long()
                yield tokens[:, :-1], tokens[:, 1:]

    def steps(self, recipe: Recipe) -> int:
        return max(1, int(recipe.passes * (len(self.train) // CONTEXT // recipe.batch)))


def build(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make the Llama of this shape, N(0, 0.02) with residual outputs scaled by 1/sqrt(2 layers)."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=recipe.width,
        intermediate_size=recipe.mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.width // 64,
        num_key_value_heads=recipe.width // 64,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            projection.weight.data.mul_((2 * recipe.layers) ** -0.5)
            projection.register_forward_hook(lambda m, _, y: F.dropout(y, recipe.dropout, m.training))
    return model


def hidden_states(model: LlamaForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    """Run the decoder with a bf16 residual stream; shape (batch, 512, width)."""
    return model.model(inputs_embeds=model.model.embed_tokens(tokens).bfloat16(), use_cache=False).last_hidden_state


def text_loss(hidden: torch.Tensor, embedding: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy a token, shape (batch * 512,), in nats."""
    return F.cross_entropy((hidden @ embedding.T).float().flatten(0, 1), target.flatten(), reduction="none")


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, text: Text, loss_fn) -> dict[str, dict[str, float]]:
    """Score the held-out streams in windows of 512 without overlap; end marks are context, never counted."""
    model.eval()
    result = {}
    for name, stream in text.held.items():
        pieces, nats, tokens = (len(stream) - 1) // CONTEXT, 0.0, 0
        window, rows_at_once = torch.arange(CONTEXT + 1, device=stream.device), min(64, pieces)
        for first in range(0, pieces, rows_at_once):
            # The last batch repeats the last piece, uncounted, so that one compiled shape serves all.
            piece = torch.arange(first, first + rows_at_once, device=stream.device)
            rows = stream[CONTEXT * piece.clamp(max=pieces - 1)[:, None] + window].long()
            loss = loss_fn(hidden_states(model, rows[:, :-1]), model.lm_head.weight, rows[:, 1:])
            counted = ((rows[:, 1:] != text.end) & (piece < pieces)[:, None]).flatten()
            nats, tokens = nats + float(loss[counted].double().sum()), tokens + int(counted.sum())
        share = tokens / int((stream != text.end).sum())  # the last partial window is left out of both sums
        result[name] = {
            "nats_per_token": round(nats / tokens, 5),
            "bits_per_byte": round(nats / math.log(2) / (text.held_bytes[name] * share), 5),
        }
    model.train()
    return result


class StackedMuon(torch.optim.Optimizer):
    """Muon (Jordan 2024) with rates matched to AdamW (Liu et al. 2025), one batched product a shape.

    Equals `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`, which launches every matrix on its own and so
    spends half of the step of a model this small.
    """

    def __init__(self, matrices: list[torch.nn.Parameter], *, lr: float, weight_decay: float):
        shapes = sorted({tuple(p.shape) for p in matrices})
        groups = [{"params": [p for p in matrices if tuple(p.shape) == shape]} for shape in shapes]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            params = group["params"]
            grads = torch.stack([p.grad for p in params])
            momentum = self.state[params[0]].setdefault("momentum", torch.zeros_like(grads))
            momentum.lerp_(grads, 0.05)
            update = orthogonalise(grads.lerp(momentum, 0.95)).to(grads.dtype)
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, list(update.unbind()), alpha=-group["lr"] * 0.2 * max(grads.shape[1:]) ** 0.5)


def orthogonalise(stack: torch.Tensor) -> torch.Tensor:
    """Move the singular values of each matrix of (n, rows, columns) near 1: quintic Newton-Schulz, five steps, bf16."""
    tall = stack.shape[1] > stack.shape[2]
    x = (stack.mT if tall else stack).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x


def optimisers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon for the layers' matrices and AdamW for the rest."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": [model.model.embed_tokens.weight], "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    fused = torch.cuda.is_available()
    if recipe.optimiser == "adamw":
        groups[0]["params"] += matrices
        return [torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95), fused=fused)]
    muon = StackedMuon(matrices, lr=recipe.lr, weight_decay=recipe.weight_decay)
    return [muon, torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95), fused=fused)]


def rate(step: int, steps: int) -> float:
    """Share of the peak rate: 2 % linear warm-up, then linear to 0."""
    warm_up = max(1, steps // 50)
    return min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))


def train(recipe: Recipe, text: Text) -> tuple[LlamaForCausalLM, dict]:
    """Train one recipe; return the model and its log (rows of losses, seconds, tokens a second)."""
    device = text.train.device.type
    model = build(recipe, text.tokenizer).to(device)
    loss_fn = text_loss
    if device == "cuda":
        for layer in model.model.layers:
            layer.compile(dynamic=False)
        loss_fn = torch.compile(text_loss, dynamic=False)
    steps, optims, rows = text.steps(recipe), optimisers(model, recipe), []
    batches, started, running = text.batches(recipe), time.perf_counter(), torch.zeros((), device=device)
    every, since = max(1, steps // 12), 0
    for step in range(steps):
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = recipe.lr * rate(step, steps)
        tokens, target = next(batches)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = loss_fn(hidden_states(model, tokens), model.lm_head.weight, target).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        running, since = running + loss.detach(), since + 1
        if (step + 1) % every == 0 or step + 1 == steps:
            with torch.autocast(device, dtype=torch.bfloat16):
                scores = evaluate(model, text, loss_fn)
            seconds = time.perf_counter() - started
            seen = (step + 1) * recipe.batch * CONTEXT
            rows.append({"step": step + 1, "tokens": seen, "train_nats": round(float(running) / since, 4), **scores})
            running, since = torch.zeros((), device=device), 0
            print(f"{step + 1}/{steps} {seconds:.0f}s {seen / seconds:.3g} tokens/s {rows[-1]}", flush=True)
    log = {
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "train_s": round(time.perf_counter() - started, 1),
        "rows": rows,
    }
    return model.eval(), log


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save the model in bf16 safetensors with its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = LlamaForCausalLM(model.config)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
    )
    plain.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # The saved class name and backend are of this transformers version alone; readers of other versions know this one.
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("backend", None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_manifest(
        folder, sorted(p.name for p in folder.iterdir() if p.suffix in (".json", ".safetensors") and p.name != NAME)
    )


def show_samples(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Print one sampled continuation of each of three fixed prompts, with the folder's own sampling settings."""
    torch.manual_seed(0)
    for prompt in (
        "The old baker opened the door of the oven and",
        "A market is",
        "She looked out of the window and saw",
    ):
        made = model.generate(**tokenizer(prompt, return_tensors="pt").to(model.device), max_new_tokens=60)
        print("---\n" + tokenizer.decode(made[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, help=f"folder of the last recipe's model; of `base`: {SHIPPED}")
    parser.add_argument("--log", type=Path, help="JSON log to add to; of `base`: tools/pretrain_base.json")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["base"])
    parser.add_argument("--characters", type=int, help="read the first N characters alone, to try the script")
    parser.add_argument("--evaluate", type=Path, help="score a saved model on the held-out texts and stop")
    args = parser.parse_args()
    if args.recipes == ["base"] and args.characters is None:
        args.out, args.log = args.out or SHIPPED, args.log or Path("tools/pretrain_base.json")
    elif not args.evaluate and (args.out is None or args.log is None):
        parser.error("--out, --log: name both; a trial would otherwise replace the shipped model and its log")
    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    text = Text(args.corpus, device=device, characters=args.characters, tokenizer=args.evaluate)
    print(f"{len(text.train):,} training tokens; documents {text.documents}; bytes {text.held_bytes}", flush=True)
    if args.evaluate:
        model = LlamaForCausalLM.from_pretrained(args.evaluate, dtype=torch.bfloat16).to(device)
        print(json.dumps(evaluate(model, text, text_loss)))
        return show_samples(model, text.tokenizer)
    logs = json.loads(args.log.read_text()) if args.log.exists() else {}
    for name in args.recipes:
        print(f"== {name}: {RECIPES[name]}", flush=True)
        model, log = train(RECIPES[name], text)
        log |= {
            "machine": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "corpus_sha256": sha256(args.corpus / "train.txt.xz"),
            "training_tokens": len(text.train),
            "documents": text.documents,
            "held_out_bytes": text.held_bytes,
        }
        logs[name] = log
        args.log.parent.mkdir(parents=True, exist_ok=True)
        args.log.write_text(json.dumps(logs, indent=1) + "\n")
    export(model, text.tokenizer, args.out)


if __name__ == "__main__":
    main()
