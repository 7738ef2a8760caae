"""What is asked to be shipped, and what of it was found."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunetrial.core.errors import ConfigError
from tunetrial.core.evidence import TrialRecord
from tunetrial.core.records import Record
from tunetrial.core.study import Arm, Lock, TaskSpec
from tunetrial.models import PinnedModel

Format = Literal["adapter", "merged", "gguf", "ollama", "vllm", "hub"]
FORMATS: tuple[Format, ...] = ("adapter", "merged", "gguf", "ollama", "vllm", "hub")
Dtype = Literal["fp32", "bf16", "fp16", "q8_0", "q4_k_m", "q5_k_m", "q6_k"]
DTYPES: dict[str, tuple[Dtype, ...]] = {"merged": ("fp32", "bf16", "fp16"), "gguf": ("fp32", "bf16", "fp16", "q8_0")}
LLAMA_CPP_S = "written by llama.cpp's own quantiser, got no --llama-cpp; name a checkout that was built"
BY_LLAMA_CPP: tuple[Dtype, ...] = ("q4_k_m", "q5_k_m", "q6_k")


class Order(Record):
    """What is asked for. `task` and `seed` are the study's to choose where they are not named, `dtype` the format's.

    `dequantised`: merge into the base as training saw it in few bits. `llama_cpp` is a checkout of llama.cpp whose own
    programs write the GGUF. `retrain`: train the run once more, on training and validation rows, and ship that.
    `push_to` is a repository of the Hub.
    """

    arm: str
    format: Format
    task: str | None = None
    seed: int | None = None
    dtype: Dtype | None = None
    merge: bool = False
    retrain: bool = False
    dequantised: bool = False
    llama_cpp: Path | None = None
    push_to: str | None = None
    public: bool = False

    def check(self, arm: Arm, *, scored: bool) -> None:
        """Refuse what does not go together, before anything is read or written.

        Raises:
            ConfigError: What, and what to write instead.
        """
        full, quantised = arm.method == "full", arm.settings.get("base") not in (None, "plain")
        whole = self.merge or self.format == "merged" or full
        gguf, alone = self.format in ("gguf", "ollama"), self.format == "adapter"
        known = (*DTYPES["gguf"], *BY_LLAMA_CPP) if gguf else DTYPES["merged"]
        has_dtype = whole or gguf or self.format == "vllm"
        got = f"got --format {self.format}"
        refused = (
            (full and alone, f"{self.arm} is trained in full and has no adapter, {got}; use merged"),
            (full and self.merge, f"{self.arm} is trained in full, got --merge; leave it out"),
            (alone and self.merge, f"an adapter alone is not merged, {got} and --merge; use merged"),
            (
                self.dtype and not has_dtype,
                f"--dtype is of merged weights and GGUF, {got}; add --merge, or leave it out",
            ),
            (self.dtype and self.dtype not in known, f"--dtype: {got} and {self.dtype}; use one of {', '.join(known)}"),
            (self.dtype in BY_LLAMA_CPP and not self.llama_cpp, f"--dtype: {self.dtype} is {LLAMA_CPP_S}"),
            (self.llama_cpp and not gguf, f"--llama-cpp writes GGUF, {got}; leave it out"),
            (
                self.dequantised and not quantised,
                f"--onto: {self.arm} is on no base in few bits, got dequantised; use base",
            ),
            (self.dequantised and not whole, f"--onto says what to merge into, {got} without --merge; add it"),
            (scored and self.format != "merged", f"--score is of merged models, {got}; use --format merged"),
            (self.push_to and self.format != "hub", f"--push-to-hub goes with --format hub, {got}; use that"),
            (self.public and not self.push_to, "--public goes with --push-to-hub, got none; name a repository"),
        )
        for holds, what in refused:
            if holds:
                raise ConfigError(f"ship: {what}")


@dataclass(frozen=True)
class Source:
    """A run that ships: its record, the folder of its weights, its base, and the place that it goes to."""

    order: Order
    record: TrialRecord
    artifact: Path
    base: PinnedModel
    lock: Lock
    place: str

    @property
    def task(self) -> TaskSpec:
        return self.lock.study.task(self.record.trial.task)

    @property
    def full(self) -> bool:
        """Whether the run's weights are a whole model, and no adapter."""
        return self.record.trial.arm.method == "full"

    @property
    def whole(self) -> bool:
        """Whether what ships is a whole model."""
        return self.full or self.order.merge or self.order.format == "merged"

    @property
    def peft_type(self) -> str:
        return str(self.record.trial.arm.settings.get("peft_type", "LORA"))

    @property
    def has_head(self) -> bool:
        return self.record.trial.controls.readout == "head"

    @property
    def storage(self) -> str:
        """How the base was stored in training."""
        return str(self.record.trial.arm.settings.get("base", "plain"))

    @property
    def public_base(self) -> str:
        """The base's name as it may be published: an id of the Hub, or a folder's name without its place."""
        name = self.lock.study.base_of(self.record.trial.arm.name)
        return name.partition("@")[0] if self.base.revision else Path(name).name

    @property
    def loadable_base(self) -> str:
        """The base's name as other tools on this machine find it."""
        return self.public_base if self.base.revision else str(self.base.folder)
