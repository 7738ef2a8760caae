"""The comparators, at the settings that their documentation recommends for speed where memory allows.

They are given the rows that tunetrial would train on, as token ids in its order, and the same adapter, optimiser,
schedule shape, clipping and precision: a frozen base in bf16 with PEFT's fp32 adapters, or all weights in fp32, both
under bf16 autocast. Gradient checkpointing is off, since all of this work fits; attention is PyTorch's.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import SequentialSampler
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from contest import Measured
from laps import Laps
from shapes import mfu
from tunetrial.core.evidence import TaskData
from tunetrial.engine.batches import order
from tunetrial.engine.texts import Texts

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PADDING = 1


def token_rows(folder, data: TaskData, *, batch: int, seed: int = 1, split: str = "train") -> list[dict]:
    """Rows as tunetrial's loop takes them: ids and labels (-100 before the answer), or a label for a head."""
    texts = Texts(AutoTokenizer.from_pretrained(folder))
    chosen = data.splits[split]
    if data.kind == "generate":
        rows = texts.rows(chosen)
        answers = [[t if a else -100 for t, a in zip(r.tokens, r.answers_T, strict=True)] for r in rows]
        made = [{"input_ids": row.tokens, "labels": labels} for row, labels in zip(rows, answers, strict=True)]
    else:
        number = data.labels.index if data.labels else float
        targets = [number(e.target) for e in chosen]
        made = [{"input_ids": ids, "labels": t} for ids, t in zip(texts.prompts(chosen), targets, strict=True)]
    if split != "train":
        return made
    return [made[row] for step in order(len(made), epochs=1, batch_examples=batch, seed=seed) for row in step]


def collate(rows: Sequence[dict]) -> dict[str, torch.Tensor]:
    """Pad on the right to the longest row, in eights."""
    width = -(-max(len(row["input_ids"]) for row in rows) // 8) * 8
    pad = lambda ids, value: list(ids) + [value] * (width - len(ids))  # noqa: E731
    texts = isinstance(rows[0]["labels"], list)
    return {
        "input_ids": torch.tensor([pad(row["input_ids"], PADDING) for row in rows]),
        "attention_mask": torch.tensor([pad([1] * len(row["input_ids"]), 0) for row in rows]),
        "labels": torch.tensor([pad(row["labels"], -100) if texts else row["labels"] for row in rows]),
    }


def model(folder, method: str, data: TaskData, device: str) -> torch.nn.Module:
    """Load a base as the method wants it; four-bit layers as bitsandbytes stores them, with double quantisation."""
    extra = {"dtype": torch.float32 if method == "full" else torch.bfloat16, "attn_implementation": "sdpa"}
    if device == "cuda":
        extra["device_map"] = {"": 0}
    if method == "qlora":
        from transformers import BitsAndBytesConfig

        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    if data.kind == "generate":
        return AutoModelForCausalLM.from_pretrained(folder, **extra)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(data.labels) or 1, **extra)


def lora_config(data: TaskData, *, rank: int, targets: Sequence[str]):
    from peft import LoraConfig

    kind = "CAUSAL_LM" if data.kind == "generate" else "SEQ_CLS"
    return LoraConfig(task_type=kind, r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=list(targets))


def adapted(loaded: torch.nn.Module, method: str, config) -> torch.nn.Module:
    """With a PEFT adapter, as PEFT makes it by default: fp32."""
    from peft import get_peft_model, prepare_model_for_kbit_training

    if method == "full":
        return loaded
    if method == "qlora":
        loaded = prepare_model_for_kbit_training(loaded, use_gradient_checkpointing=False)
    return get_peft_model(loaded, config)


def trainer_settings(device: str, batch: int) -> dict[str, object]:
    return {
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": 4 * batch,
        "gradient_accumulation_steps": 1,  # Unsloth's own default is another
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.1,
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "optim": "adamw_torch_fused",
        "bf16": True,
        "use_cpu": device == "cpu",
        "gradient_checkpointing": False,
        "dataloader_pin_memory": device == "cuda",
        "save_strategy": "no",
        "logging_strategy": "no",
        "logging_first_step": True,
        "report_to": "none",
        "disable_tqdm": True,
    }


def lap_taker(laps: Laps, tokens: Sequence[int]):
    """A callback that marks every step of a trainer."""
    from transformers import TrainerCallback

    class LapTaker(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            laps.start()

        def on_step_end(self, args, state, control, **kwargs):
            laps.lap(tokens[state.global_step - 1])

        def on_log(self, args, state, control, logs=None, **kwargs):
            if state.global_step == 1 and "loss" in logs:
                laps.first_loss = float(logs["loss"])

    return LapTaker()


def in_order(trainer: type) -> type:
    """A trainer that takes rows as they come, so that its steps hold the examples that tunetrial's hold."""

    class InOrder(trainer):
        def _get_train_sampler(self, train_dataset=None):
            return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    return InOrder


def real_tokens(rows: Sequence[dict], batch: int) -> list[int]:
    sizes = [len(row["input_ids"]) for row in rows]
    return [sum(sizes[first : first + batch]) for first in range(0, len(sizes), batch)]


def hf_trainer(loaded, rows: list[dict], laps: Laps, *, batch: int, device: str, epochs: int = 1):
    """Hugging Face's Trainer over a model that is ready to be trained; it is returned when it has trained."""
    from transformers import Trainer, TrainingArguments

    settings = trainer_settings(device, batch) | {"num_train_epochs": epochs}
    made = in_order(Trainer)(
        model=loaded,
        args=TrainingArguments(output_dir=tempfile.mkdtemp(), **settings),
        train_dataset=rows,
        data_collator=collate,
        callbacks=[lap_taker(laps, epochs * real_tokens(rows, batch))],
    )
    made.train()
    return made


def trl_trainer(loaded, rows: list[dict], laps: Laps, *, batch: int, device: str, config, liger: bool, tokenizer=None):
    """TRL's SFTTrainer; it attaches the adapter of `config` itself, if there is one."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        **trainer_settings(device, batch),
        max_length=None,
        packing=False,
        pad_to_multiple_of=8,
        dataset_kwargs={"skip_prepare_dataset": True},
        use_liger_kernel=liger,
    )
    made = in_order(SFTTrainer)(
        model=loaded,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=config,
        callbacks=[lap_taker(laps, real_tokens(rows, batch))],
    )
    made.train()
    return made


def unsloth_model(folder, method: str, *, rank: int, longest: int, device: str):
    """A model as Unsloth loads and adapts it, all linear layers of the blocks, and its tokenizer.

    All weights are trained in fp32 under bf16 autocast where Unsloth can: on a CPU it trains them in bf16.
    """
    from unsloth import FastLanguageModel

    loaded, tokenizer = FastLanguageModel.from_pretrained(
        str(folder),
        max_seq_length=longest,
        dtype=torch.bfloat16,
        load_in_4bit=method == "qlora",
        full_finetuning=method == "full",
        **({"float32_mixed_precision": True} if (method, device) == ("full", "cuda") else {}),
    )
    if method != "full":
        loaded = FastLanguageModel.get_peft_model(
            loaded,
            r=rank,
            lora_alpha=2 * rank,
            lora_dropout=0,
            bias="none",
            target_modules=list(ALL_LINEAR),
            use_gradient_checkpointing=False,
        )
    return loaded, tokenizer


def batches(rows: list[dict], batch: int, device: str) -> Iterator[dict[str, torch.Tensor]]:
    for first in range(0, len(rows), batch):
        yield {name: t.to(device) for name, t in collate(rows[first : first + batch]).items()}


def bare_loop(loaded, rows: list[dict], laps: Laps, *, batch: int, device: str, adapters: str) -> None:
    """The shortest training loop around a model: what remains of a trainer when nothing is asked of it.

    `adapters` "fp32" keeps them as PEFT makes them, under autocast; "bf16" casts them, and needs no autocast.
    """
    if adapters == "bf16":
        loaded.to(torch.bfloat16)
    trained = [weight for weight in loaded.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.1, total_iters=laps.steps)
    loaded.train()
    tokens = real_tokens(rows, batch)
    laps.start()
    for number, inputs in enumerate(batches(rows, batch, device)):
        with torch.autocast(device, torch.bfloat16, enabled=adapters == "fp32"):
            loss = loaded(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        laps.lap(tokens[number])


def timed(call, device: str) -> float:
    """Seconds of a call, the device's queue empty before and after."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - began


def measured(laps: Laps, settings: dict[str, object], *, work: dict, method: str, device: str) -> Measured:
    found = laps.measured()
    return {**found, "mfu": mfu(work, method, found["tokens_per_s"], device), "settings": settings}


def described(loaded: torch.nn.Module) -> dict[str, object]:
    """What a model was in fact trained as."""
    trained = {str(p.dtype).removeprefix("torch.") for p in loaded.parameters() if p.requires_grad}
    frozen = {str(p.dtype).removeprefix("torch.") for p in loaded.parameters() if not p.requires_grad}
    attention = getattr(loaded.config, "_attn_implementation", None)
    threads = torch.get_num_threads()
    return {"trained": sorted(trained), "frozen": sorted(frozen), "attention": attention, "threads": threads}


def prompt_rows(folder, data: TaskData) -> list[dict]:
    """The prompts of the validation rows, as tunetrial gives them to a model that is to answer."""
    texts = Texts(AutoTokenizer.from_pretrained(folder))
    rows = data.splits["validation"]
    if data.kind != "generate":
        return [{"input_ids": ids} for ids in texts.prompts(rows)]
    return [{"input_ids": row.tokens[: row.prompt]} for row in texts.rows(rows)]
