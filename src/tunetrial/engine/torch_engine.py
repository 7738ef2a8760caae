"""The engine that trains real weights: one resident base, a run at a time, on a CUDA device or the CPU."""

import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from tunetrial import methods, models
from tunetrial.core.engine import Alone, Description, Step, Together
from tunetrial.core.errors import DoesNotFitError, IntegrityError, ModelError
from tunetrial.core.evidence import Example, Fact, Measurement, Table, TaskData
from tunetrial.core.study import Arm, Controls, Kind, Observed, Precision, Readout, Trial
from tunetrial.core.work import Counted
from tunetrial.engine import adapters, attention, blocks, fusion, place, probe, tensors, untuned
from tunetrial.engine.language import LabelReader, TextReader
from tunetrial.engine.loop import Loop, does_not_fit
from tunetrial.engine.memo import Memo
from tunetrial.engine.readout import HeadReader
from tunetrial.engine.texts import Texts
from tunetrial.engine.trainables import Trainables, WarmStart
from tunetrial.methods.storage import Storage

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}

BASE = ("model.", "causal.")
PASS_TOKENS = {"cpu": 4096, "cuda": 65536}


class TorchEngine:
    """Opens sessions on the first CUDA device, or on the CPU where there is none."""

    synthetic = False

    def __init__(self, *, device: str | None = None, checkpoint_every_s: float = 60.0):
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.device_type = self.device.type
        self.checkpoint_every_s = checkpoint_every_s

    def free_bytes(self) -> int:
        if self.device_type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0]
        return psutil.virtual_memory().available

    def precision(self) -> Precision:
        """bf16 where its products are native (compute capability 8.0, AMX or AVX512-BF16); else fp16 on a GPU, fp32 on
        a CPU."""
        if self.device.type == "cuda":
            return "bf16" if torch.cuda.get_device_capability(self.device) >= (8, 0) else "fp16"
        return "bf16" if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported() else "fp32"

    def open(self, base: Path, precision: Precision) -> "TorchSession":
        gc.collect()  # of a session that this one replaces
        if self.device_type == "cuda":
            torch.cuda.empty_cache()
        return TorchSession(base, precision, self.device, self.checkpoint_every_s)


class TorchSession:
    """A base in memory in the compute dtype. Full fine-tuning writes into it; the next run restores it from disk.

    It is held as its backbone, or with its language-model head where a trial's readout asks for text.
    """

    def __init__(self, base: Path, precision: Precision, device: torch.device, checkpoint_every_s: float):
        logging.disable_progress_bar()
        self.base, self.precision, self.device = base, precision, device
        self.checkpoint_every_s = checkpoint_every_s
        self.shape = models.shape(base)
        self.tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
        self.texts = Texts(self.tokenizer)
        self.causal = False
        self.storage: Storage | None = "plain"
        self.attention: str | None = None
        self.model: torch.nn.Module | None = None
        self.dirty, self.memo = False, Memo()
        try:
            with does_not_fit("base"):
                self.model = self.load(DTYPES[precision], device)
                self.attention = self.model.config._attn_implementation
        except DoesNotFitError:
            self.storage = None  # as a trial wants it stored it may yet fit: its start will tell

    def load(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.nn.Module:
        """Read the model from disk; which attention is right is found out at first, on the session's device."""
        loader = AutoModelForCausalLM if self.causal else AutoModel
        return attention.load(self.base, loader, dtype, torch.device(device), attention=self.attention)

    @property
    def template_digest(self) -> str:
        return self.texts.template_digest

    def lengths(self, examples: Sequence[Example], *, readout: Readout = "head") -> list[int]:
        if readout == "head":
            return [len(tokens) for tokens in self.texts.prompts(examples)]
        return [len(row.tokens) for row in self.texts.rows(examples)]

    def describe(self, examples: Sequence[Example], *, readout: Readout = "head") -> Description:
        return self.texts.describe(examples, readout=readout)

    def count(
        self,
        arm: Arm,
        controls: Controls,
        lengths: Sequence[int],
        *,
        kind: Kind,
        outputs: int,
        seed: int,
        members: int = 1,
    ) -> Counted | None:
        from tunetrial.engine import trace

        config = json.loads((self.base / "config.json").read_text(encoding="utf-8"))
        how = {"kind": kind, "outputs": outputs, "seed": seed, "members": members}
        return trace.count(config, arm, controls, lengths, place=place.at_hand(self.device), **how)

    def start(self, trial: Trial, data: TaskData, *, micro_batch: int | None = None) -> Alone:
        return Alone(self.start_pack([trial], data, micro_batch=micro_batch))

    def start_pack(
        self, trials: Sequence[Trial], data: TaskData, *, micro_batch: int | None = None, at_once: int | None = None
    ) -> "TorchPack | Together":
        with does_not_fit(f"{trials[0].arm.name}: weights and optimiser states"):
            self.prepare(trials[0])
            if not methods.find(trials[0].arm).tuned:
                return Together([untuned.start(self, trial, data) for trial in trials])
            return TorchPack(self, trials, data, micro_batch=micro_batch, at_once=at_once)

    def prepare(self, trial: Trial) -> None:
        """Bring the base to what is on disk as the trial wants it: with or without its language-model head, its frozen
        layers as they are to be stored; without adapters."""
        causal, storage = trial.controls.readout != "head", methods.find(trial.arm).storage
        if (causal, storage) != (self.causal, self.storage):
            self.model, self.causal, self.storage = None, causal, None
            model = self.load(DTYPES[self.precision])
            adapters.quantise(model, storage, tuple(self.shape.projections), device=self.device)
            self.model, self.storage, self.dirty = model.to(self.device), storage, False
            self.attention = self.model.config._attn_implementation
            return
        adapters.detach(self.model)
        self.model.requires_grad_(False)
        self.model.zero_grad()
        if self.dirty:
            self.model.load_state_dict(self.load(DTYPES[self.precision]).state_dict())
            self.dirty = False

    def probe(self, trial: Trial, data: TaskData, folder: Path) -> dict[str, Measurement]:
        if not methods.find(trial.arm).tuned:
            return untuned.measure(self, trial, data, folder)
        return probe.measure(self, trial, data, folder)

    def reader(self, trials: Sequence[Trial], data: TaskData) -> HeadReader | TextReader:
        """What reads answers from the base as it now is, those of each trial."""
        controls, of = trials[0].controls, {"members": len(trials), "context": self.shape.context}
        if controls.readout == "text":
            return TextReader(self.model, self.texts, data, longest=controls.max_new_tokens, **of)
        if controls.readout == "labels":
            return LabelReader(self.model, self.texts, data, **of)
        return HeadReader(self.model, self.shape, self.texts, data, seeds=[trial.seed for trial in trials])

    def facts(self) -> dict[str, Fact]:
        """How the base is executed."""
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else "cpu",
            "compute_dtype": self.precision,
            "base_dtype": self.precision,
            "attention": attention.way(self.model),
            "blocks": "tunetrial" if blocks.fits(self.model.base_model) else "transformers",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }


class TorchPack:
    """Trials in hand: the attached model, their loop, and what they made."""

    def __init__(
        self,
        session: TorchSession,
        trials: Sequence[Trial],
        data: TaskData,
        *,
        micro_batch: int | None,
        at_once: int | None,
    ):
        self.session, self.trials, self.memo = session, trials, Memo()
        found = [methods.find(trial.arm) for trial in trials]
        self.specs, self.peft = [method.adapter(session.shape) for method in found], None
        self.adapter = self.specs[0]
        seeds = [trial.seed for trial in trials]
        if isinstance(self.adapter, methods.PeftSpec):
            from tunetrial.engine.peft_arms import PeftArm  # seconds that other arms' workers need not wait for

            session.storage = None  # PEFT changes the modules of the base for good
            self.peft = PeftArm(session.model, self.adapter, seed=seeds[0])
        elif self.adapter is not None:
            adapters.attach(session.model, self.specs, seeds=seeds)
        else:
            session.dirty = True
        warm_start = self._warm_start(found[0]) if self.adapter is None and found[0].warm_start else None
        self.reader = session.reader(trials, data)
        all_of_it = self.adapter is None and warm_start is None
        trainables = self._all_weights(self._exact()) if all_of_it else self._adapter_and_head()
        examples = data.splits["train"]
        objective = self.reader.objective(examples)
        empty = [e.id for e, row in zip(examples, objective.tokens, strict=True) if not row]
        if empty:
            what = f"{data.name}: row {empty[0]}: the tokenizer made no token of its prompt"
            raise ModelError(f"{what}; remove the row")
        self.loop = Loop(
            objective,
            trainables,
            examples,
            trials=trials,
            micro_batch=micro_batch,
            at_once=min(at_once or len(trials), self._room(objective.tokens)),
            checkpoint_every_s=session.checkpoint_every_s,
            warm_start=warm_start,
        )

    def _room(self, tokens: Sequence[Sequence[int]]) -> int:
        """How many members' steps make a pass of a good size: beyond it a pass costs memory and gains no time."""
        step = self.trials[0].controls.batch_examples * sum(map(len, tokens)) / len(tokens)
        return max(1, int(PASS_TOKENS[place.kind(self.session.device)] // step))

    def _warm_start(self, method: methods.Full) -> WarmStart:
        """Attach the adapter that is trained first."""
        adapters.attach(self.session.model, [method.first_adapter(self.session.shape)], seeds=[self.trials[0].seed])
        return WarmStart(method.frozen_share, method.rate_factor(self.session.shape.parameters), self._merged)

    def _merged(self, masters: Mapping[str, torch.Tensor]) -> Trainables:
        """All weights, the trained adapter folded in; a head goes on from where it is."""
        exact = self._exact()
        adapters.merge(self.model, masters, exact)
        trainables = self._all_weights(exact)
        trainables.publish()
        return trainables

    def _all_weights(self, exact: Mapping[str, torch.Tensor] | None) -> Trainables:
        parameters = dict(self.model.named_parameters())
        return Trainables(parameters, stacked=dict.fromkeys(_heads(parameters)), exact=exact)

    def _exact(self) -> dict[str, torch.Tensor] | None:
        """The base's weights in fp32, for masters of a full model with more digits than the compute dtype holds."""
        if self.session.precision not in ("bf16", "fp16"):
            return None
        prefix = "model" if self.trials[0].controls.readout == "head" else "causal"
        return {f"{prefix}.{n}": weight for n, weight in self.session.load(torch.float32).named_parameters()}

    def _adapter_and_head(self) -> Trainables:
        """The adapters' weights and the heads', which are all that are not of the base's model."""
        parameters = dict(self.model.named_parameters())
        heads = _heads(parameters)
        if self.peft is not None:
            return Trainables({**self.peft.trained, **heads}, stacked=dict.fromkeys(heads))
        low = {name: p for name, p in parameters.items() if "lora_" in name}
        ranks = adapters.ranks(self.model)
        stacked = {name: ranks[name.rpartition(".")[0]] for name in low if name.endswith(("lora_A", "lora_B"))}
        stacked |= dict.fromkeys((low | heads).keys() - stacked.keys())
        return Trainables({**low, **heads}, stacked=stacked, members=len(self.trials))

    @property
    def trainables(self) -> Trainables:
        """What is trained now; after the last step, what is saved."""
        return self.loop.trainables

    @property
    def model(self) -> torch.nn.Module:
        return self.reader.model

    @property
    def first_step(self) -> int:
        return self.loop.first_step

    @property
    def diverged(self) -> dict[int, str]:
        return self.loop.diverged

    def digests(self, member: int) -> tuple[str, str]:
        course = self.loop.courses[member]
        return course.token_digest, course.examples_digest

    def steps(self, checkpoints: Sequence[Path] | None, *, most: int | None = None) -> Iterator[list[Step]]:
        """Train; a full model is then rounded to the base's dtype, since that is what is saved and must be scored."""
        with does_not_fit(f"{self.trials[0].arm.name}: training"):
            for taken in self.loop.steps(checkpoints, most=most):
                self.memo.clear()
                yield taken
        if self.adapter is None:
            self.trainables.publish(through=self._saved_dtype())

    def _saved_dtype(self) -> torch.dtype | None:
        """The base's own, if it is narrower than fp32."""
        config = json.loads((self.session.base / "config.json").read_text(encoding="utf-8"))
        stored = config.get("dtype") or config.get("torch_dtype")
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(stored)

    def predict(self, examples: Sequence[Example]) -> list[list[str] | list[float]]:
        return self.reader.predict(examples)

    def likelihoods(self, examples: Sequence[Example]) -> list[list[tuple[float, int]]]:
        return self.reader.likelihoods(examples)

    def observe(self, member: int, data: TaskData, what: Observed) -> Table | None:
        from tunetrial.engine import observed  # not by workers of studies that ask for none

        return observed.observe(self, member, data, what)

    def save(self, member: int, folder: Path) -> None:
        """Write a PEFT adapter, or a full model in the base's dtype with tokenizer; a head stays fp32."""
        folder.mkdir(parents=True, exist_ok=True)
        self.reader.write(folder)
        peft, trial, made = (
            {} if self.peft is None else self.peft.trained,
            self.trials[member],
            self.trainables.member(member),
        )
        exported = {n: n if n in peft else self.reader.exported(n) for n in made}
        masters = {exported[n]: master.detach() for n, master in made.items()}
        if self.adapter is not None:
            masters = {name: master.cpu() for name, master in masters.items()}
        of = {"base": str(self.session.base), "base_fingerprint": trial.controls.base_fingerprint}
        if self.peft is not None:
            head = {name: master for name, master in masters.items() if name not in self.peft.trained}
            self.peft.save({n: masters[n] for n in self.peft.trained}, head, folder, **of)
            return
        if self.adapter is not None:
            wide = {name: master.float() for name, master in masters.items()}
            told = {"settings": trial.arm.settings, "task_type": self.reader.task_type, **of}
            transposed = self.session.shape.transposed
            adapters.save_peft(wide, folder, spec=self.specs[member], transposed=transposed, **told)
            return
        dtype = self._saved_dtype() or torch.float32
        heads = {name for ours, name in exported.items() if ours.startswith("score.")}
        dtypes = {name: torch.float32 if name in heads else dtype for name in masters}
        tensors.write(folder / "model.safetensors", masters, dtypes=dtypes, metadata={"format": "pt"})
        config = json.loads((self.session.base / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(self.reader.config(config), indent=1) + "\n", encoding="utf-8")
        self.session.tokenizer.save_pretrained(folder)

    def verify(self, member: int, folder: Path) -> None:
        read: dict[torch.Size, list[torch.Tensor]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            for tensor in load_file(path).values():
                read.setdefault(tensor.shape, []).append(tensor)
        for name, master in self.trainables.member(member).items():
            made = master.detach().cpu()
            if not any(torch.equal(tensor, made.to(tensor.dtype)) for tensor in read.get(made.shape, ())):
                raise IntegrityError(
                    f"{folder}: {name} is not what was trained; report this, and do not use the artifact"
                )

    def facts(self, member: int) -> dict[str, Fact]:
        scaler = self.loop.courses[member].scaler
        return {
            **self.session.facts(),
            "master_dtype": "fp64" if self.session.precision == "fp64" else "fp32",
            "micro_batch": self.loop.micro_batch,
            "pack": len(self.trials),
            "pack_at_once": self.loop.at_once,
            "recomputes": self.loop.recomputes,
            **self._speed(),
            **({} if scaler is None else scaler.facts()),
        }

    def _speed(self) -> dict[str, Fact]:
        """What was compiled and what was recorded on the device, or why not."""
        compiled = blocks.fits(self.session.model.base_model) and fusion.fuses(self.trainables.masters)
        found: dict[str, Fact] = {"compiled": compiled, "cuda_graphs": False}
        if self.session.device.type == "cuda" and fusion.why_not() is not None:
            found["not_compiled"] = fusion.why_not()
        if self.loop.replay is not None:
            found["cuda_graphs"] = self.loop.replay.replayed > 0
            found |= {} if self.loop.replay.why_not is None else {"not_recorded": self.loop.replay.why_not}
        return found

    def measurements(self, member: int) -> dict[str, Measurement]:
        order = self.loop.courses[member].order
        tokens = sum(len(self.loop.tokens[row]) for step in order for row in step)
        return {
            "trainable_parameters": Measurement(value=self.trainables.count(member), unit="weights"),
            "tokens": Measurement(value=tokens, unit="tokens"),
            "steps": Measurement(value=len(order), unit="steps"),
        }


def _heads(parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.nn.Parameter]:
    """The weights of heads, which have a first dimension for members."""
    return {name: p for name, p in parameters.items() if not name.startswith(BASE)}
