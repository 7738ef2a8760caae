"""The fidelity chain of what a study ships: the very files that lie in the folder, held against the run they are of."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from tunetrial.analysis import metrics
from tunetrial.core import manifest
from tunetrial.core.errors import ConfigError
from tunetrial.core.evidence import Example
from tunetrial.core.fidelity import Chain
from tunetrial.ship.chain import Asked, prove
from tunetrial.ship.formats import GGUF_KINDS
from tunetrial.ship.order import Source
from tunetrial.ship.shipped import Fidelity

NAME = "chain.json"
PROVEN = (".gguf", ".safetensors")


def check(source: Source) -> None:
    """Refuse what no chain leads to, before anything is written.

    Raises:
        ConfigError: Answers are read by a head, which only torch has; or a base in fewer bits beside an adapter, or one
            that was dequantised, which are no forms of the chain.
    """
    order = source.order
    got = f"got --format {order.format}"
    if source.has_head:
        said = "compares what is written as text, got readout head"
        raise ConfigError(f"--prove: {said}; leave it out, or train another readout")
    if order.dequantised:
        raise ConfigError("--prove: merges into the plain base, got --onto dequantised; leave one of them out")
    if order.format in ("gguf", "ollama") and not source.whole and order.dtype not in (None, "fp32"):
        raise ConfigError(f"--prove: holds an adapter beside a base in fp32, {got} and {order.dtype}; add --merge")


def prove_shipped(source: Source, folder: Path, probes: Sequence[Example]) -> Chain:
    """Take the run through the forms that lead to what lies in `folder`, and leave what was measured there.

    Every file of weights in the folder must be, byte for byte, one of the forms that were measured; one that is not is
    a fault. No margin is held: a metric's interval over few probes would fail what computes the same.

    Raises:
        ConfigError: A part of llama.cpp is missing.
        ModelError: A form cannot be written.
    """
    out = folder.parent / "chain"
    try:
        found = prove(source.artifact, str(source.base.folder), probes, out, asked=_asked(source))
        measured = {manifest.sha256(path) for path in _weights(out)} | {
            manifest.sha256(path) for path in _weights(source.artifact)
        }
    finally:
        shutil.rmtree(out, ignore_errors=True)
    faults = [
        f"{path.name}: none of the forms that were measured, got other bytes; ship another --dtype"
        for path in _weights(folder)
        if manifest.sha256(path) not in measured
    ]
    if faults:
        first = found.first_break or faults[0]
        found = found.model_copy(update={"faults": (*found.faults, *faults), "passed": False, "first_break": first})
    found = found.model_copy(update={"files": {name: Path(path).name for name, path in found.files.items()}})
    (folder / NAME).write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return found


def fidelity(found: Chain | None) -> Fidelity:
    """What `tunetrial.json` says of a chain; of none, that it was not tried."""
    return Fidelity() if found is None else Fidelity(passed=found.passed, first_break=found.first_break)


def _asked(source: Source) -> Asked:
    order, task = source.order, source.task
    gguf = order.format in ("gguf", "ollama")
    metric = metrics.find(task.metric)
    counted = task.kind == "generate" and not metric.columns
    return Asked(
        longest=source.record.trial.controls.max_new_tokens or LABEL_TOKENS,
        kind=GGUF_KINDS.get(order.dtype or "fp32", order.dtype) if gguf else "f32",
        merged="fp32" if gguf else order.dtype,
        metric=task.metric if counted else None,
        llama_cpp=order.llama_cpp,
    )


LABEL_TOKENS = 16  # of an answer that is read by its likelihood, and so has no length of its own


def _weights(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in PROVEN and path.is_file())
