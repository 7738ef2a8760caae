"""Which trials train together: packs over one resident base, the unit of execution and of resuming.

A trial computes the same in a pack as alone, up to rounding, so a pack must be the same whenever it is taken up again.
It follows from the wave alone, and is kept before it is begun (`store`): what was formed stays together.
"""

from collections.abc import Iterable, Mapping, Sequence

from tunetrial import methods
from tunetrial.core.records import canonical
from tunetrial.core.study import Study, Trial

MOST = {"cpu": 1, "cuda": 16}


def most_members(study: Study, device: str) -> int:
    """How many trials train together at most: as the study says, else 16 on a GPU.

    On a CPU one: a pass over the rows of one trial nearly fills a core unless they are short (docs/packs.md), and a
    pack would keep the other cores from its members.
    """
    return MOST[device] if study.pack == "auto" else study.pack


def packs(
    trials: Sequence[Trial],
    *,
    most: int,
    formed: Iterable[Sequence[str]] = (),
    known: Mapping[str, Trial] | None = None,
) -> tuple[tuple[Trial, ...], ...]:
    """Put the trials of a wave into packs of `most` at most, as even as can be, in order of each one's first trial.

    Trials may train together whose method packs, on the same task, for the same purpose, under the same controls, with
    the base stored alike and moments in fp32 (8 bits are shared by blocks of weights, which would reach over the zeros
    that ranks are filled up with); with DoRA, on the same targets.

    Args:
        formed: Packs of earlier runs, by trials' ids: those of which a trial is still due are taken up as they were,
            with members that `known` has, although these have ended.
    """
    due, known = {trial.id: trial for trial in trials}, dict(known or {})
    made: list[tuple[Trial, ...]] = []
    left = set(due)
    for pack in formed:
        if (wanted := due.keys() & set(pack)) and wanted <= left and set(pack) <= due.keys() | known.keys():
            made.append(tuple({**known, **due}[name] for name in pack))
            left -= wanted
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.id in left:
            groups.setdefault(_kind(trial), []).append(trial)
    for group in groups.values():
        count = -(-len(group) // most)
        cuts = [len(group) * number // count for number in range(count + 1)]
        made += [tuple(group[start:stop]) for start, stop in zip(cuts, cuts[1:], strict=False)]
    place = {trial.id: number for number, trial in enumerate(trials)}
    return tuple(sorted(made, key=lambda pack: min(place[trial.id] for trial in pack if trial.id in place)))


def _kind(trial: Trial) -> str:
    """Trials of one kind may train together."""
    method = methods.find(trial.arm)
    if not method.packs or method.optimizer_bits != 32 or trial.purpose in ("probe", "anchor"):
        return trial.id
    targets = method.targets if method.dora else None
    return canonical(
        [
            trial.task,
            trial.purpose,
            trial.data_digest,
            trial.controls.model_dump(mode="json"),
            method.storage,
            targets,
        ]
    )
