"""Memory and work of a trial, counted by running the engine's own code on tensors without storage.

No weights and no device are needed: a model is built from its configuration on the meta device, adapters are attached,
and an optimiser step is taken through the code that takes it on the device; `meter` counts what is made and let go.
The device's own ways (rows attended as they lie, compiled chains, grouped products) are taken as there.

Not counted: what the device's context, its libraries and its allocator's reserve take; what a kernel keeps beside its
results, but for attention's backward pass and cuBLAS's workspaces; the keys and values of completions; and on a GPU
what a base takes that is read once as it is stored, before it is quantised. Counts are of one process that trains one
pack.

    traced = trace(config, arm, controls, lengths=[512] * 16, answered=[64] * 16)
    traced.phases["step"].peak_bytes
"""

import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from tunetrial import methods
from tunetrial.core.errors import ModelError, SpecError
from tunetrial.core.study import Arm, Controls, Kind
from tunetrial.core.work import Counted, Part, Phase, Traced
from tunetrial.engine.attention import lay_out
from tunetrial.engine.batches import order
from tunetrial.engine.depth import FEW, Reached, deeper
from tunetrial.engine.loop import Loop, forward_and_backward
from tunetrial.engine.meter import Meter, cuda_block, matmul_workspace
from tunetrial.engine.optimisers import moments
from tunetrial.engine.place import Place, assumed
from tunetrial.engine.readout import EVALUATION_TOKENS, HeadReader, batches_of
from tunetrial.engine.torch_engine import TorchPack
from tunetrial.engine.unread import Asked, Rows, Session, configured
from tunetrial.models.sizes import shape_of

META = torch.device("meta")


def trace(
    config: Mapping[str, object],
    arm: Arm,
    controls: Controls,
    *,
    lengths: Sequence[int],
    device: str = "cuda",
    kind: Kind = "generate",
    outputs: int = 1,
    members: int = 1,
    micro_batch: int | None = None,
    at_once: int | None = None,
    recomputes: bool = False,
    answered: Sequence[int] | None = None,
    capability: tuple[int, int] = (9, 0),
    processors: int = 132,
    training_alone: bool = False,
    evaluated: int | None = None,
) -> Traced:
    """Count a trial of an arm, or a pack of `members` of them that train together.

    Phases: "load" the base as the method stores it, with what is trained; "prepare" the first step on a GPU, while
    kernels are prepared on examples; "step" any later one; "evaluate" a batch; "save" the
    artifact's making; "resume" what is there once a checkpoint is read, which takes no more on the way.

    Args:
        config: A Hugging Face `config.json`.
        lengths: Tokens of the rows of one optimiser step, of each member alike.
        outputs: Labels of a head that classifies; 1 for a number.
        micro_batch, at_once: Rows and members that are computed at once; as the engine begins if None.
        answered: How many of each row's tokens are answers, the last ones, where the readout is text; all but the
            first if None.
        capability, processors: Of a CUDA device: compute capability, streaming multiprocessors.
        training_alone: Leave "evaluate", "save" and "resume" out.
        evaluated: Tokens of each row of the evaluation batch; as many as the longest of the step's if None.
    Raises:
        ModelError: The configuration is of no model that the engine trains, or the arm needs the numbers in weights.
        SpecError: The arm's settings do not suit the base.
    """
    if not methods.find(arm).tuned:
        raise ModelError(f"{arm.name}: nothing is trained, got method {arm.method}; trace an arm that takes steps")
    asked = Asked.of(
        config,
        arm,
        controls,
        lengths=lengths,
        kind=kind,
        outputs=outputs,
        members=members,
        micro_batch=micro_batch,
        at_once=at_once,
        recomputes=recomputes,
        answered=answered,
    )
    place = Place(device, capability, processors)
    batch = None if training_alone else _batch(place, evaluated or max(lengths), members)
    with _understood(arm):
        found = _phases(asked, place, batch)
    phases = {name: one.phase for name, one in found.items()}
    return Traced(phases=phases, tokens=members * sum(lengths), evaluated=None if batch is None else len(batch))


def elsewhere(traced: Traced, was: tuple[int, int], now: tuple[int, int]) -> Traced:
    """A count for a CUDA device, on another of as many processors that attends alike: cuBLAS's workspaces differ, which
    are there from the first product on."""
    more = _workspaces(now) - _workspaces(was)

    def moved(phase: Phase) -> Phase:
        parts = phase.parts and phase.parts | {"workspace": phase.parts.get("workspace", 0) + more}
        passing = None if phase.passing_bytes is None else phase.passing_bytes + more
        return phase.model_copy(
            update={"peak_bytes": phase.peak_bytes + more, "parts": parts, "passing_bytes": passing}
        )

    phases = {name: phase if name == "load" else moved(phase) for name, phase in traced.phases.items()}
    return traced.model_copy(update={"phases": phases})


def _workspaces(capability: tuple[int, int]) -> int:
    """Of the thread that goes forward on two streams, and of the one that goes backward on one."""
    return 3 * matmul_workspace(capability)


def _batch(place: Place, longest: int, members: int) -> list[list[int]]:
    """Rows of so many tokens that are evaluated together."""
    rows = [[0] * longest] * (EVALUATION_TOKENS[place.kind] // longest + 1)
    with assumed(place):
        return [rows[row] for row in batches_of(rows, members, META)[0]]


def _phases(asked: Asked, place: Place, batch: list[list[int]] | None) -> dict[str, Reached]:
    """All phases, through all layers: counted where they are few or differ, else drawn on. Without a batch to evaluate
    training alone."""
    layers = shape_of(asked.config).layers
    if layers <= FEW + 1 or _uneven(asked.config, max(asked.rows.lengths)):
        return _count(asked, place, layers, batch)
    few, more = (_count(asked, place, some, batch) for some in (FEW, FEW + 1))
    return {name: deeper(few[name], more[name], layers) for name in few}


def _count(asked: Asked, place: Place, layers: int, batch: list[list[int]] | None) -> dict[str, Reached]:
    """The phases of a base of so many layers."""
    cuda = place.kind == "cuda"
    with assumed(place), Meter("meta", block=cuda_block if cuda else int) as meter:
        pack = asked.pack(Session(asked, META, layers=layers, meter=meter))
        pack.loop.recomputes = asked.recomputes
        _name_parts(pack, meter)
        found = {"load": meter.reached()}
        if cuda:
            meter.hold(_workspaces(place.capability), "workspace")
        if pack.loop.warm_start is not None:
            pack.loop.merge()
            _name_parts(pack, meter)
        kept = _moments(pack.loop)
        meter.give(kept, "moments", block=int)
        step, prepare = _step(pack, meter, asked.step)
        found |= {"prepare": prepare} if cuda else {}
        found["step"] = step
        if batch is not None:
            found |= {"evaluate": _evaluate(pack, meter, batch), "save": _save(pack, meter, asked.config)}
            meter.reset()  # a checkpoint is read into what is there, and its moments are those that are
            found["resume"] = meter.reached()
    return found


def _uneven(config: Mapping[str, object], longest: int) -> bool:
    """Whether layers differ in what they compute: some have a window that rows are longer than."""
    kinds = config.get("layer_types") or ()
    own = configured(config) if not kinds else None
    kinds = kinds or getattr(own, "layer_types", None) or ()
    return len(set(kinds)) > 1 and longest > (config.get("sliding_window") or getattr(own, "sliding_window", None) or 0)


def _name_parts(pack: TorchPack, meter: Meter) -> None:
    trained, base = pack.trainables, pack.session.model
    layers = next(m for m in base.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == pack.session.layers)
    meter.walk(layers, pack.model)
    meter.give(trained.parameters.values(), "trained")
    meter.give([trained.masters], "trained", block=int)  # blocks are not linear in the number of layers
    meter.give([trained.gradients], "gradients", block=int)
    for name in trained.copies:
        parameter = trained.parameters[name]
        parameter.register_post_accumulate_grad_hook(lambda weights: meter.give([weights.grad], "gradients"))


def _moments(loop: Loop) -> list[torch.Tensor]:
    """Those of all members."""
    pieces = (piece for member in range(len(loop.courses)) for piece in loop.pieces(member))
    return moments((weights for weights, _, _ in pieces), bits=loop.optimizer_bits)


def _step(pack: TorchPack, meter: Meter, rows: list[list[int]]) -> tuple[Reached, Reached]:
    """A step, and the first one, in which kernels are compiled by examples."""
    loop = pack.loop
    meter.reset()
    with meter.making("activations"):
        _passes(loop, meter, rows)
        pack.trainables.norms()
        pack.trainables.publish()
    _note_optimiser(loop, meter)
    step = meter.reached()
    first = {moment: (size, _beside(step.peaks[moment], size)) for moment, size in step.prepared.items()}
    return step, Reached(first, step.prepared, {})


def _beside(reached: tuple[int, Mapping[Part, int]], size: int) -> dict[Part, int]:
    """Parts of so many bytes, of which those are other that kernels are compiled by."""
    total, parts = reached
    return {**parts, "other": parts.get("other", 0) + size - total}


def _passes(loop: Loop, meter: Meter, rows: list[list[int]]) -> None:
    """All passes of a step; of each shape one is computed, and its work counted as often as there are such. Later ones
    take no other memory than the first: they add gradients where that writes them."""
    parts = list(loop.parts(rows))
    key = lambda part: tuple(tuple(len(loop.tokens[row]) for row in own) for own in part[0])  # noqa: E731
    seen, shapes = Counter(map(key, parts)), {}
    for part in parts:
        shapes.setdefault(key(part), part)
    for shape, part in shapes.items():
        before = meter.kernels.copy()
        chosen, members = part
        meter.pairs = _pairs(length for own in shape for length in own)
        factors = torch.ones(len(members), dtype=torch.float32, device=META)
        batch = loop.objective.batch(chosen, members)
        first = part is parts[0]
        forward_and_backward(loop.objective, loop.trainables, loop.recomputes, batch, factors, first)
        again = meter.kernels - before
        if first and seen[shape] > 1:
            writing, adding = (_collecting(loop, meter, first=each) for each in (True, False))
            again = again - writing + adding
        for kernel, count in again.items():
            meter.kernels[kernel] += (seen[shape] - 1) * count


def _collecting(loop: Loop, meter: Meter, *, first: bool) -> Counter:
    """The kernels by which the gradients of a pass reach the masters'."""
    with meter.silent():
        for name in loop.trainables.copies:
            parameter = loop.trainables.parameters[name]
            parameter.grad = torch.empty_like(parameter)
    before = meter.kernels.copy()
    loop.trainables.collect(first=first)
    made, meter.kernels = meter.kernels - before, before
    return made


def _pairs(lengths: Iterable[int]) -> float:
    """Queries and the keys that they see, themselves among them."""
    return float(sum(n * (n + 1) // 2 for n in lengths))


@torch.no_grad()
def _evaluate(pack: TorchPack, meter: Meter, rows: list[list[int]]) -> Reached:
    """A batch of rows."""
    members, model, asked = pack.reader.members, pack.reader.model, pack.session.texts
    longest = len(rows[0])
    meter.reset()
    meter.pairs = _pairs(len(row) for row in rows * len(members))
    with meter.making("activations"):
        if isinstance(pack.reader, HeadReader):
            model(lay_out(rows * len(members), META, members=members))
        else:
            texts = [Rows.row(longest, min(longest - 1, max(asked.answered))) for _ in rows]
            model.losses(model.batch([texts] * len(members), members, last_alone=True))
    return meter.reached()


def _save(pack: TorchPack, meter: Meter, config: Mapping[str, object]) -> Reached:
    """All weights are rounded to the base's dtype where that is narrower, and written one by one."""
    meter.reset()
    if pack.adapter is None:
        named = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
        through = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(named)
        with meter.making("other"):
            pack.trainables.publish(through=through)
    return meter.reached()


def _note_optimiser(loop: Loop, meter: Meter) -> None:
    """AdamW reads a weight, its gradient and two moments, and writes all but the gradient."""
    weights = loop.trainables.masters.shape[1]
    wide = loop.trainables.masters.element_size()
    moment = 1 + 4 / 256 if loop.optimizer_bits == 8 else wide
    dtype = str(loop.trainables.masters.dtype).removeprefix("torch.")
    key = "optimiser", dtype, (), float(weights), weights * (3 * wide + 4 * moment)
    meter.kernels[key] += len(loop.courses)


@contextmanager
def _understood(arm: Arm) -> Iterator[None]:
    """Say in one line what cannot be counted, and why; any other fault is one of ours, and passes as it is.

    torch raises NotImplementedError where what comes of an operation depends on numbers. PEFT is not written for
    tensors without storage: whatever it, or what it made, stumbles over is said with its place.
    """
    try:
        yield
    except (SpecError, NotImplementedError, RuntimeError, TypeError, ValueError, LookupError, AttributeError) as raised:
        error = raised.__context__ if isinstance(raised, SpecError) else raised
        if isinstance(error, NotImplementedError):
            why = "it depends on the numbers in weights, which are not there"
        elif arm.method == "peft" and error is raised:
            why = f"PEFT's {arm.settings['peft_type']} is not made for weights without numbers"
        else:
            raise
        at = traceback.extract_tb(error.__traceback__)[-1]
        got = f"{type(error).__name__} in {Path(at.filename).name}:{at.lineno}: {' '.join(str(error).split())[:120]}"
        raise ModelError(f"trace: {arm.name}: {why}, got {got}; measure it with a short study instead") from error


def count(
    config: Mapping[str, object],
    arm: Arm,
    controls: Controls,
    lengths: Sequence[int],
    *,
    place: Place,
    kind: Kind,
    outputs: int,
    seed: int,
    members: int = 1,
) -> Counted | None:
    """Count a trial of an arm on a task, and a pack of `members` of them if there are several, whose steps are all
    taken to be the fullest at once. None for an arm or a base that cannot be counted; a fault of ours is raised.

    Args:
        lengths: Tokens of each training row.
        seed: Whose order of rows is taken.
    """
    steps = order(len(lengths), epochs=1, batch_examples=controls.batch_examples, seed=seed)
    by_tokens = sorted(([lengths[row] for row in rows] for rows in steps), key=sum)
    how = {"kind": kind, "outputs": outputs, "device": place.kind}
    how |= {"capability": place.capability, "processors": place.processors}
    mean = max(1, round(sum(lengths) / len(lengths)))
    try:
        fullest = trace(config, arm, controls, lengths=by_tokens[-1], **how)
        least = trace(config, arm, controls, lengths=by_tokens[0], evaluated=mean, **how)
        packed = None
        if members > 1:
            packed = trace(config, arm, controls, lengths=by_tokens[-1], members=members, **how)
    except (ModelError, SpecError):
        return None
    step_tokens = sum(lengths) / len(steps)
    return Counted(fullest=fullest, least=least, step_tokens=step_tokens, members=members, packed=packed)
