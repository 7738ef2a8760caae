"""Try every method of a study file on a tiny model, and write down what each can do: docs/methods.md.

python tools/capability_table.py              # the page; a few minutes on one core
python tools/capability_table.py dora IA3     # print these rows and write nothing

Each row is tried by the engine's own doors: a session trains it twice from one seed and once from another, its artifact
is loaded by PEFT or transformers, and merged. The model is a random Llama of two layers, so the page says what works,
not what is worth using. Which types of PEFT can be arms at all is found by `tools/peft_table.py`, which comes first.
"""

import json
import logging
import sys
import tempfile
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from peft_table import SETTINGS
from tunetrial import methods
from tunetrial.core.errors import TunetrialError
from tunetrial.core.evidence import Example, TaskData
from tunetrial.core.study import Arm, Controls, Setting, Trial
from tunetrial.engine.attention import lay_out, logits
from tunetrial.engine.blocks import states
from tunetrial.engine.merge import merge
from tunetrial.engine.quantised import QuantisedLinear, matrix
from tunetrial.engine.torch_engine import TorchEngine, TorchPack
from tunetrial.methods.peft import RATES, capabilities, fitting
from tunetrial.models import resolve

DOCS = Path(__file__).parent.parent / "docs" / "methods.md"
RATES_TRIED, FALLS, SAME = (1e-3, 1e-2, 1e-1), 0.98, 1e-4
WORDS = "bread oven late price refund parcel broken clock login invoice courier gold watch queue repair".split()
# Rows of the table: what they are called there, and the method and settings of a study file.
ARMS: dict[str, tuple[str, dict[str, Setting]]] = {
    "full": ("full", {}),
    "warm start": ("full", {"warm_start": 0.5}),
    "lora": ("lora", {}),
    "rslora": ("lora", {"rslora": True}),
    "dora": ("lora", {"dora": True}),
    "lora int8": ("lora", {"base": "int8"}),
    "qlora": ("qlora", {}),
    "qlora dora": ("qlora", {"dora": True}),
    **{name: ("peft", {"peft_type": name, **SETTINGS.get(name, {})}) for name in fitting()},
}


COLUMNS = ["trains", "same bytes", "packs", "exports", "merges"]
HEAD = """# What each method can do
Made by `tools/capability_table.py`, with {versions}. Each row was tried on a
random Llama of two layers, trained to write words in reverse. The tables say what works, not what is worth using: that
is what a study finds out.

- **trains**: its loss falls, by 2 % at least, while all other weights rest.
- **same bytes**: trained twice from one seed the saved weights are the same to the byte, from another seed others.
- **packs**: two seeds trained together, in one pass over one base, have the losses that each has alone; what does not
  pack trains by itself.
- **exports**: what is saved is an ordinary model or adapter: transformers or PEFT loads it and computes the same
  logits.
- **merges**: adapter and base become one model that computes the same logits, by `tunetrial merge` or by PEFT's own
  `merge_and_unload`. `full` and its warm start save a whole model.

Logits are the same within 1e-4, in fp32. Where the frozen base is stored in few bits (`lora int8`, `qlora`), an adapter
exports to the same logits on the base as it was stored; it is merged into the base as it is on disk, which computes
nearly what was scored, not exactly.
"""
PEFT = """
## Adapter types of PEFT
An arm is `{method: peft, peft_type: IA3, ...}`, the rest being settings of PEFT's own configuration. Which types can be
arms is found by `tools/peft_table.py`. *Rate* is the middle of the learning-rate search, over LoRA's.
"""


@dataclass(frozen=True)
class Found:
    """What the probe saw; `merges` is None for a whole model, and `merges_by` says whose merge was tried."""

    trains: bool
    same_bytes: bool
    packs: bool
    loads: bool
    merges: bool | None
    merges_by: str

    def cells(self) -> list[str]:
        """The row's cells, by `COLUMNS`."""
        merges = {None: "a whole model", True: f"by {self.merges_by}", False: "no"}[self.merges]
        return [*("yes" if holds else "no" for holds in (self.trains, self.same_bytes, self.packs, self.loads)), merges]


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    asked, found = sys.argv[1:], {}
    for name in asked or ARMS:
        found[name] = probe(name)
        print(name, found[name], flush=True)
    if not asked:
        DOCS.write_text(page(found), encoding="utf-8")


def probe(name: str) -> Found:
    """Try one row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder) / "base")
        pack, rate, losses = _trained(name, base)
        first, second, other = (Path(folder) / made for made in ("first", "second", "other"))
        pack.save(0, first)
        ours = our_logits(pack)
        train(name, base, rate, seeds=[1])[0].save(0, second)
        pack_of_other, losses_of_other = train(name, base, rate, seeds=[2])
        pack_of_other.save(0, other)
        same = _bytes(first) == _bytes(second) != _bytes(other)
        loads = bool((plain_logits(loaded(pack, base, first), pack) - ours).abs().max() < SAME)
        packed = packs(name, base, rate, [*losses, *losses_of_other])
        falls = _falls(losses[0])
        return Found(falls, same, packed, loads, *merges(pack, base, first))


def _trained(name: str, base: Path) -> tuple[TorchPack, float, list[list[float]]]:
    """The first of the rates tried at which the loss falls, or the last, with what was trained and its losses."""
    for rate in RATES_TRIED:
        pack, losses = train(name, base, rate, seeds=[1])
        if _falls(losses[0]):
            break
    return pack, rate, losses


def _falls(losses: list[float]) -> bool:
    """From the first to the last pass over the rows."""
    return sum(losses[-2:]) < FALLS * sum(losses[:2])


def packs(name: str, base: Path, rate: float, alone: list[list[float]]) -> bool:
    """Whether two members that share their passes have the losses that each has alone."""
    try:
        pack, losses = train(name, base, rate, seeds=[1, 2])
    except Exception:  # whatever goes wrong with methods that are not made for it
        return False
    together = pack.facts(0)["pack_at_once"] == 2
    return together and all(
        abs(ours - theirs) <= SAME * theirs
        for member, solo in zip(losses, alone, strict=True)
        for ours, theirs in zip(member, solo, strict=True)
    )


def train(name: str, base: Path, rate: float, *, seeds: list[int]) -> tuple[TorchPack, list[list[float]]]:
    """Train a row's arm in a session of its own, with a member a seed; the losses of each one's steps."""
    method, settings = ARMS[name]
    controls = Controls(
        base_fingerprint=resolve(str(base)).fingerprint,
        precision="fp32",
        epochs=10,
        batch_examples=8,
        readout="text",
        max_new_tokens=8,
    )
    arm = Arm(name="tried", method=method, settings=methods.settle(method, settings))
    asked = {"arm": arm, "controls": controls, "task": "tiny", "data_digest": "tiny", "learning_rate": rate}
    trials = [Trial(seed=seed, purpose="tune", **asked) for seed in seeds]
    pack = TorchEngine(device="cpu").open(base, "fp32").start_pack(trials, data())
    return pack, [[step.loss for step in steps] for steps in zip(*pack.steps(None), strict=True)]


def data() -> TaskData:
    """Two to five words, answered by themselves in reverse."""
    drawn = [[WORDS[(n * 7 + k * 3) % len(WORDS)] for k in range(2 + n % 4)] for n in range(16)]
    rows = (Example(f"r{n}", f"r{n}", " ".join(w) + " =", " ".join(w[::-1])) for n, w in enumerate(drawn))
    return TaskData("tiny", "generate", (), {"train": tuple(rows), "validation": ()})


def rows(pack: TorchPack) -> list[list[int]]:
    return [row.tokens for row in pack.session.texts.rows(data().splits["train"])]


@torch.no_grad()
def our_logits(pack: TorchPack) -> torch.Tensor:
    """What the trained model computes in the engine, at every token of the rows."""
    causal, tokens = pack.model.causal, rows(pack)
    layout = lay_out(tokens, causal.device)
    return logits(causal, states(causal, layout)[: len(layout.cells)])


@torch.no_grad()
def plain_logits(model: torch.nn.Module, pack: TorchPack) -> torch.Tensor:
    """The same by transformers or PEFT, each row alone."""
    return torch.cat([model(input_ids=torch.tensor([row])).logits[0] for row in rows(pack)])


def loaded(pack: TorchPack, base: Path, artifact: Path) -> torch.nn.Module:
    """The artifact as a user opens it: a whole model, or an adapter on the base as the run had it stored."""
    if not (artifact / "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(artifact).eval()
    plain = AutoModelForCausalLM.from_pretrained(base)
    for path, layer in pack.model.causal.named_modules():
        if isinstance(layer, QuantisedLinear):
            plain.get_submodule(path.removesuffix(".base")).weight.data = matrix(layer).clone()
    return PeftModel.from_pretrained(plain, artifact).eval()


def merges(pack: TorchPack, base: Path, artifact: Path) -> tuple[bool | None, str]:
    """Whether adapter and base become one model of the same logits, and whose merge it is: ours for LoRA and DoRA,
    PEFT's else. It is merged into the base as on disk, whatever the run had it stored as."""
    if not (artifact / "adapter_config.json").exists():
        return None, ""
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), artifact).eval()
    beside = plain_logits(plain, pack)
    if plain.peft_config["default"].peft_type == "LORA":
        try:
            merge(artifact, artifact.parent / "merged", base_model=str(base))
        except TunetrialError:
            return False, "tunetrial"
        merged, by = AutoModelForCausalLM.from_pretrained(artifact.parent / "merged").eval(), "tunetrial"
    else:
        try:
            merged, by = plain.merge_and_unload(safe_merge=True), "PEFT"
        except (AttributeError, NotImplementedError, ValueError, TypeError):
            return False, "PEFT"
    return bool((plain_logits(merged, pack) - beside).abs().max() < SAME), by


def page(found: dict[str, Found]) -> str:
    """docs/methods.md."""
    versions = f"transformers {version('transformers')} and PEFT {version('peft')}"
    lines = [HEAD.format(versions=versions), *_table(["arm", "in a study file", *COLUMNS])]
    types = {name: f for name, f in found.items() if ARMS[name][0] == "peft"}
    lines += [line(name, f) for name, f in found.items() if name not in types]
    lines += [PEFT, *_table(["type", *COLUMNS, "rate"])]
    lines += [line(name, f) for name, f in types.items()]
    refused = {name: row.refused for name, row in capabilities().items() if row.refused}
    lines += ["", "Refused, and why:", "", *_table(["type", "why"])]
    lines += [f"| {name} | {why.replace('|', '/')} |" for name, why in refused.items()]
    return "\n".join(lines) + "\n"


def line(name: str, found: Found) -> str:
    """One row of a table."""
    method, settings = ARMS[name]
    if method == "peft":
        return f"| {name} | {' | '.join(found.cells())} | {RATES.get(name, 1)} |"
    said = ", ".join(f"{key}: {json.dumps(value)}" for key, value in {"method": method, **settings}.items())
    return f"| {name} | `{{{said.replace(chr(34), '')}}}` | {' | '.join(found.cells())} |"


def _table(columns: list[str]) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def make_base(folder: Path) -> Path:
    """A random Llama with a tokenizer of bytes."""
    torch.manual_seed(0)
    alphabet = ["<e>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<e>", pad_token="<e>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(alphabet),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=0,
        bos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _bytes(artifact: Path) -> bytes:
    [weights] = artifact.glob("*.safetensors")
    return weights.read_bytes()


if __name__ == "__main__":
    main()
