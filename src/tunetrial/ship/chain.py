"""The fidelity chain: whether every form of a tuned model, from memory to a quantised file, still computes the same.

    found = chain.prove(Path("artifact"), "embedded", rows, Path("out"), asked=Asked(longest=64, metric="exact_match"))
    found.passed, found.first_break

One set of probes goes through all forms: the trained model, its adapter as PEFT loads it, a GGUF of the adapter beside
that of its base, the merged folder, its GGUF, and the quantised one. Each hop is measured, and held against tolerances
that were stated before. It proves what these probes show, and nothing of the texts that a user will send.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from transformers.utils import logging

from tunetrial import models
from tunetrial.analysis import intervals, metrics
from tunetrial.core import files
from tunetrial.core.errors import ConfigError
from tunetrial.core.evidence import Example
from tunetrial.core.fidelity import Chain, Hop, Measures, Score, Tolerance
from tunetrial.core.records import Record, added
from tunetrial.engine.merge import merge
from tunetrial.models.adapters import CONFIG, read_adapter
from tunetrial.ship import converters, forms, gguf_files, llamacpp
from tunetrial.ship.forms import Probes
from tunetrial.ship.hops import Answers, compare

LEVEL = 0.95
LONGEST_LINE = 200

# The same weights in another program: fp32 sums in another order. A wrong scale moves log-probabilities by whole nats.
EXACT = Tolerance(different=0, largest_difference=0.01, kl_mean=1e-6)
# Weights in fewer bits: text may part where two tokens are near each other, the distribution may hardly move.
ROUNDED = Tolerance(kl_mean=0.01, same_next_token=0.95)


class Asked(Record):
    """How the chain is to be proven.

    `longest` is of an answer, in tokens; `kind` that of the last form (f32 for none); `merged` what merged weights are
    kept in, the base's own if not said; `metric` one that is counted from
    completions, and `margin` how much worse it may get, in its unit, at the most that its interval allows. `llama_cpp`
    is a checkout of llama.cpp that writes the files in our stead. `threads` are llama.cpp's.
    """

    longest: int
    kind: str = "q8_0"
    merged: Literal["fp32", "bf16", "fp16"] | None = None
    metric: str | None = None
    margin: float | None = None
    llama_cpp: Path | None = added()
    threads: int | None = added()


def prove(artifact: Path, base_model: str, examples: Sequence[Example], out: Path, *, asked: Asked) -> Chain:
    """Take a tuned model through all its forms, which are written below `out`, and measure every hop.

    Args:
        artifact: An adapter folder of a trial, or a model folder: its weights, settings and tokenizer.
        examples: The probes: rows with the right answers, none of which the model was trained on. That test rows were
            opened is for the caller to note.
        out: An empty folder, or one to be.
    Raises:
        ModelError: A form cannot be written of this model at all; what only some forms cannot hold is `left_out`.
        ConfigError: `gguf` or `xllamacpp` is missing, or the metric cannot be counted from completions.
        IntegrityError, EndpointError, StoreError: As the parts raise them.
    """
    made = _Forms(artifact, base_model, examples, out, asked)
    if (artifact / CONFIG).is_file():
        made.of_adapter()
    else:
        made.of_folder("trained", artifact)
    hops, broken = tuple(made.hops), [f"{h.before} → {h.after}" for h in made.hops if h.faults] + made.faults
    return Chain(
        hops=hops,
        faults=tuple(made.faults),
        left_out=tuple(made.left_out),
        files={name: str(path) for name, path in made.files.items()},
        passed=not broken,
        first_break=broken[0][:LONGEST_LINE] if broken else None,
    )


class _Forms:
    """The forms as they are made, one after the other, and what each answered."""

    def __init__(self, artifact: Path, base_model: str, examples: Sequence[Example], out: Path, asked: Asked):
        logging.disable_progress_bar()
        self.artifact, self.base_model, self.asked, self.out = artifact, base_model, asked, out
        self.base = models.resolve(base_model)
        self.metric = None if asked.metric is None else metrics.find(asked.metric)
        if self.metric is not None and (self.metric.columns or "regress" in self.metric.kinds):
            raise ConfigError(f"metric: not counted from completions, got {asked.metric!r}; name another, or none")
        tokenizer_of = self.base.folder if (artifact / CONFIG).is_file() else artifact
        self.probes = Probes.of(examples, tokenizer_of, longest=asked.longest)
        self.answers: dict[str, Answers] = {}
        self.hops: list[Hop] = []
        self.faults: list[str] = []
        self.left_out: list[str] = []
        self.files: dict[str, Path] = {}
        with files.writing(out):
            out.mkdir(parents=True, exist_ok=True)

    def of_adapter(self) -> None:
        """From the trained model by its adapter to llama.cpp, and by the merged folder."""
        read = read_adapter(self.artifact)
        self.answers["trained"] = forms.answers_of(forms.trained(self.base, read), self.probes)
        self.answers["adapter"] = forms.answers_of(forms.by_peft(self.base, read), self.probes)
        self._hop("trained", "adapter", EXACT)
        reason = gguf_files.refusal(self.artifact)
        if reason is None:
            base, adapter = self._base(self.base.folder, "base", "f32"), self.out / "adapter.gguf"
            if self.asked.llama_cpp is None:
                gguf_files.write_adapter(self.artifact, self.base.folder, adapter)
            else:
                converters.write_adapter(self.artifact, self.base.folder, adapter, llama_cpp=self.asked.llama_cpp)
            self.files["adapter.gguf"] = adapter
            self._serve("adapter.gguf", base, adapter)
            self._hop("adapter", "adapter.gguf", EXACT)
        else:
            self.left_out.append(reason)
        merged = self.out / "merged"
        merge(self.artifact, merged, base_model=self.base_model, dtype=self.asked.merged)
        self.of_folder("merged", merged, before="adapter")

    def of_folder(self, name: str, folder: Path, *, before: str | None = None) -> None:
        """From a model folder by its GGUF to the quantised one."""
        self.files[name] = folder
        self.answers[name] = forms.answers_of(forms.of_folder(folder), self.probes)
        if before is not None:
            self._hop(before, name, EXACT if self.asked.merged == "fp32" else ROUNDED)
        whole = f"{name}.f32.gguf"
        self._serve(whole, self._base(folder, name, "f32"))
        self._hop(name, whole, EXACT)
        if self.asked.kind != "f32":
            last = f"{name}.{self.asked.kind}.gguf"
            self._serve(last, self._base(folder, name, self.asked.kind))
            self._hop(whole, last, ROUNDED)

    def _base(self, folder: Path, name: str, kind: str) -> Path:
        """Write a model folder as a GGUF."""
        to = self.out / f"{name}.{kind}.gguf"
        if self.asked.llama_cpp is None:
            gguf_files.write_base(folder, to, kind=kind)
        else:
            converters.write_base(folder, to, kind=kind, llama_cpp=self.asked.llama_cpp)
        self.files[to.name] = to
        return to

    def _serve(self, name: str, model: Path, adapter: Path | None = None) -> None:
        how = {"context": self.probes.context, "threads": self.asked.threads}
        with llamacpp.server(model, adapter=adapter, **how) as running:
            self.answers[name] = forms.answers_from(running, self.probes)
            fault = forms.misread(running, self.probes)
            self.faults += [] if fault is None else [f"{name}: {fault}"]

    def _hop(self, before: str, after: str, tolerance: Tolerance) -> None:
        measures = compare(self.answers[before], self.answers[after])
        score = None if self.metric is None else self._score(before, after)
        faults = beyond(measures, tolerance) + worse(score, self.asked.margin)
        kept = {"measures": measures, "tolerance": tolerance, "score": score, "faults": tuple(faults)}
        self.hops.append(Hop(before=before, after=after, **kept))

    def _score(self, before: str, after: str) -> Score:
        scores = [forms.scores(self.answers[name], self.probes) for name in (before, after)]
        own_E, other_E = (metrics.contributions(self.metric, one) for one in scores)
        diff_E, cluster_E = other_E - own_E, scores[0].cluster_E
        low = high = None
        if np.ptp(diff_E) > 0:
            found = intervals.of_mean(diff_E[None], cluster_E, level=LEVEL)
            low, high = found.low, found.high
        values = [metrics.value(self.metric, one) for one in scores]
        ends = {"effect": float(diff_E.mean()), "low": low, "high": high, "level": LEVEL}
        return Score(metric=self.metric.name, before=values[0], after=values[1], **ends)


def beyond(measures: Measures, tolerance: Tolerance) -> list[str]:
    """What of a hop's measures lies beyond its tolerance, in words; not known where a limit is set is beyond it."""
    found = []
    for name, limit in tolerance.model_dump(exclude_none=True).items():
        value = getattr(measures, name)
        within = value is not None and (value >= limit if name == "same_next_token" else value <= limit)
        if not within:
            least = "at least" if name == "same_next_token" else "at most"
            found.append(f"{name}: {least} {limit:g} is allowed, got {'nothing' if value is None else f'{value:.3g}'}")
    return found


def worse(score: Score | None, margin: float | None) -> list[str]:
    """Whether the metric may have got worse by more than the margin, in words: where nothing changed, it has not."""
    if score is None or margin is None:
        return []
    lowest = score.effect if score.low is None else score.low
    if lowest >= -margin:
        return []
    return [f"{score.metric}: may be worse by more than {margin:g}, got {lowest:.3g} at the least; use more probes"]
