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
from tunetrial.core.engine import Description, Step
from tunetrial.core.errors import DoesNotFitError, IntegrityError, ModelError
from tunetrial.core.evidence import Example, Fact, Measurement, TaskData
from tunetrial.core.study import Precision, Readout, Trial
from tunetrial.engine import adapters, attention, blocks, probe, tensors, untuned
from tunetrial.engine.language import LabelReader, TextReader
from tunetrial.engine.loop import Loop, does_not_fit
from tunetrial.engine.readout import HeadReader
from tunetrial.engine.texts import Texts
from tunetrial.engine.trainables import Trainables, WarmStart
from tunetrial.engine.untuned import TfidfRun, UntunedRun
from tunetrial.methods.storage import Storage

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}

BASE = ("model.", "causal.")


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
        self.dirty = False
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

    def start(
        self, trial: Trial, data: TaskData, *, micro_batch: int | None = None
    ) -> "TorchRun | UntunedRun | TfidfRun":
        with does_not_fit(f"{trial.arm.name}: weights and optimiser states"):
            self.prepare(trial)
            if not methods.find(trial.arm).tuned:
                return untuned.start(self, trial, data)
            return TorchRun(self, trial, data, micro_batch)

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
        if self.dirty:
            self.model.load_state_dict(self.load(DTYPES[self.precision]).state_dict())
            self.dirty = False

    def probe(self, trial: Trial, data: TaskData, folder: Path) -> dict[str, Measurement]:
        if not methods.find(trial.arm).tuned:
            return untuned.measure(self, trial, data, folder)
        return probe.measure(self, trial, data, folder)

    def reader(self, trial: Trial, data: TaskData) -> HeadReader | TextReader:
        """What reads answers from the base as it now is."""
        controls, context = trial.controls, self.shape.context
        if controls.readout == "text":
            return TextReader(self.model, self.texts, data, longest=controls.max_new_tokens, context=context)
        if controls.readout == "labels":
            return LabelReader(self.model, self.texts, data, context=context)
        return HeadReader(self.model, self.shape, self.texts, data, seed=trial.seed)

    def facts(self) -> dict[str, Fact]:
        """How the base is executed."""
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else "cpu",
            "compute_dtype": self.precision,
            "base_dtype": self.precision,
            "attention": self.model.config._attn_implementation,
            "blocks": "tunetrial" if blocks.fits(self.model.base_model) else "transformers",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }


class TorchRun:
    """One trial in hand: the attached model, its loop, and what it made."""

    def __init__(self, session: TorchSession, trial: Trial, data: TaskData, micro_batch: int | None):
        self.session, self.trial = session, trial
        method = methods.find(trial.arm)
        self.adapter, self.peft = method.adapter(session.shape), None
        if isinstance(self.adapter, methods.PeftSpec):
            from tunetrial.engine.peft_arms import PeftArm  # seconds that other arms' workers need not wait for

            session.storage = None  # PEFT changes the modules of the base for good
            self.peft = PeftArm(session.model, self.adapter, seed=trial.seed)
        elif self.adapter is not None:
            adapters.attach(session.model, self.adapter, seed=trial.seed)
        else:
            session.dirty = True
        warm_start = self._warm_start(method) if self.adapter is None and method.warm_start else None
        self.reader = session.reader(trial, data)
        all_of_it = self.adapter is None and warm_start is None
        trainables = self._all_weights(self._exact()) if all_of_it else self._adapter_and_head()
        examples = data.splits["train"]
        objective = self.reader.objective(examples)
        empty = [e.id for e, row in zip(examples, objective.tokens, strict=True) if not row]
        if empty:
            raise ModelError(f"{trial.task}: row {empty[0]}: the tokenizer made no token of its prompt; remove the row")
        self.loop = Loop(
            objective,
            trainables,
            examples,
            trial=trial,
            micro_batch=micro_batch,
            checkpoint_every_s=session.checkpoint_every_s,
            warm_start=warm_start,
        )

    def _warm_start(self, method: methods.Full) -> WarmStart:
        """Attach the adapter that is trained first."""
        adapters.attach(self.session.model, method.first_adapter(self.session.shape), seed=self.trial.seed)
        return WarmStart(method.frozen_share, method.rate_factor(self.session.shape.parameters), self._merged)

    def _merged(self, masters: Mapping[str, torch.Tensor]) -> Trainables:
        """All weights, the trained adapter folded in; a head goes on from where it is."""
        exact = self._exact()
        adapters.merge(self.model, masters, exact)
        trainables = self._all_weights(exact)
        trainables.publish()
        return trainables

    def _all_weights(self, exact: Mapping[str, torch.Tensor] | None) -> Trainables:
        return Trainables(dict(self.model.named_parameters()), exact)

    def _exact(self) -> dict[str, torch.Tensor] | None:
        """The base's weights in fp32, for masters of a full model with more digits than the compute dtype holds."""
        if self.session.precision not in ("bf16", "fp16"):
            return None
        prefix = "model" if self.trial.controls.readout == "head" else "causal"
        return {f"{prefix}.{n}": weight for n, weight in self.session.load(torch.float32).named_parameters()}

    def _adapter_and_head(self) -> Trainables:
        """The adapter's weights and the head's, which are all that are not of the base's model."""
        parameters = dict(self.model.named_parameters())
        head = {name: p for name, p in parameters.items() if not name.startswith(BASE)}
        if self.peft is not None:
            return Trainables({**self.peft.trained, **head})
        return Trainables({**{name: p for name, p in parameters.items() if "lora_" in name}, **head})

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
    def token_digest(self) -> str:
        return self.loop.token_digest

    @property
    def examples_digest(self) -> str:
        return self.loop.examples_digest

    def steps(self, checkpoint: Path | None, *, most: int | None = None) -> Iterator[Step]:
        """Train; a full model is then rounded to the base's dtype, since that is what is saved and must be scored."""
        with does_not_fit(f"{self.trial.arm.name}: training"):
            yield from self.loop.steps(checkpoint, most=most)
        if self.adapter is None:
            self.trainables.publish(through=self._saved_dtype())

    def _saved_dtype(self) -> torch.dtype | None:
        """The base's own, if it is narrower than fp32."""
        config = json.loads((self.session.base / "config.json").read_text(encoding="utf-8"))
        stored = config.get("dtype") or config.get("torch_dtype")
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(stored)

    def predict(self, examples: Sequence[Example]) -> list[str] | list[float]:
        return self.reader.predict(examples)

    def likelihoods(self, examples: Sequence[Example]) -> list[tuple[float, int]]:
        return self.reader.likelihoods(examples)

    def save(self, folder: Path) -> None:
        """Write a PEFT adapter, or a full model in the base's dtype with tokenizer; a head stays fp32."""
        folder.mkdir(parents=True, exist_ok=True)
        self.reader.write(folder)
        peft = {} if self.peft is None else self.peft.trained
        exported = {n: n if n in peft else self.reader.exported(n) for n in self.trainables.masters}
        masters = {exported[n]: master.detach() for n, master in self.trainables.masters.items()}
        if self.adapter is not None:
            masters = {name: master.cpu() for name, master in masters.items()}
        of = {"base": str(self.session.base), "base_fingerprint": self.trial.controls.base_fingerprint}
        if self.peft is not None:
            head = {name: master for name, master in masters.items() if name not in self.peft.trained}
            self.peft.save({n: masters[n] for n in self.peft.trained}, head, folder, **of)
            return
        if self.adapter is not None:
            wide = {name: master.float() for name, master in masters.items()}
            told = {"settings": self.trial.arm.settings, "task_type": self.reader.task_type, **of}
            adapters.save_peft(wide, folder, spec=self.adapter, transposed=self.session.shape.transposed, **told)
            return
        dtype = self._saved_dtype() or torch.float32
        heads = {name for ours, name in exported.items() if ours.startswith("score.")}
        dtypes = {name: torch.float32 if name in heads else dtype for name in masters}
        tensors.write(folder / "model.safetensors", masters, dtypes=dtypes, metadata={"format": "pt"})
        config = json.loads((self.session.base / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(self.reader.config(config), indent=1) + "\n", encoding="utf-8")
        self.session.tokenizer.save_pretrained(folder)

    def verify(self, folder: Path) -> None:
        read: dict[torch.Size, list[torch.Tensor]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            for tensor in load_file(path).values():
                read.setdefault(tensor.shape, []).append(tensor)
        for name, master in self.trainables.masters.items():
            made = master.detach().cpu()
            if not any(torch.equal(tensor, made.to(tensor.dtype)) for tensor in read.get(made.shape, ())):
                raise IntegrityError(
                    f"{folder}: {name} is not what was trained; report this, and do not use the artifact"
                )

    def facts(self) -> dict[str, Fact]:
        return {
            **self.session.facts(),
            "master_dtype": "fp64" if self.session.precision == "fp64" else "fp32",
            "micro_batch": self.loop.micro_batch,
            "pack": 1,
            "compiled": False,
            **({} if self.loop.scaler is None else self.loop.scaler.facts()),
        }

    def measurements(self) -> dict[str, Measurement]:
        tokens = sum(len(self.loop.tokens[row]) for step in self.loop.order for row in step)
        return {
            "trainable_parameters": Measurement(value=self.trainables.count(), unit="weights"),
            "tokens": Measurement(value=tokens, unit="tokens"),
            "steps": Measurement(value=len(self.loop.order), unit="steps"),
        }
