"""From what is on disk to a decision: no training, and what was changed after results is named."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from tunetrial import analysis, plan
from tunetrial.analysis import arms, breakeven, latency, rounds
from tunetrial.analysis.rounds import Round
from tunetrial.core.deployment import Deployment
from tunetrial.core.errors import IntegrityError, StoreError
from tunetrial.core.evidence import Decision, Evidence, Held, Scored
from tunetrial.core.fidelity import Proof
from tunetrial.core.money import GB_BYTES
from tunetrial.core.owning import Ownership
from tunetrial.core.prices import Costs
from tunetrial.core.rated import Concord, Graded, Rated
from tunetrial.core.scenario import Scenario
from tunetrial.core.study import Lock, Study, TaskSpec
from tunetrial.plan import catalogue
from tunetrial.plan.upkeep import stated
from tunetrial.store import StudyFolder
from tunetrial.trial import raters
from tunetrial.trial import scenarios as kept_scenarios
from tunetrial.trial.openings import count_openings
from tunetrial.trial.owning import ownership
from tunetrial.trial.spending import earlier_s, spent

# What may be changed once trials have run without running any again; a change of the first group is post hoc.
CHOICES = ("reference", "rule", "limits", "require", "criteria", "opinions")
LADDER_CHOICES = ("ladder.margin_usd",)
WORDS = ("question", "hardware", "costs", "keep", "budget", "ladder.label_usd")
TASK_CHOICES = ("metric", "margin", "criterion")


def conclude(study: Study, folder: Path, scenarios: Sequence[Scenario] = ()) -> tuple[Evidence, Decision]:
    """Decide from the records there are, by the rule, margins and weights that the study states now.

    Args:
        scenarios: To be weighed beside those that were asked for before, in place of any of the same name.
    Raises:
        StoreError: There are no results yet, another process holds them, or the study asks for other trials than
            those that ran.
        IntegrityError, EvidenceError: A record is missing parts, altered, or does not belong.
    """
    store = StudyFolder(folder)
    current = store.read_lock()
    study = _as_switched(study, current.study)
    with store.hold():
        store.write_lock(_relock(current, plan.reduced(study, current.reductions), folder))
        evidence = store.evidence()
        held = _held(evidence, folder)
        primary = evidence.lock.study.rule.primary
        preferred = rounds.preferred(held, primary, arms.reference(evidence, primary))
        decision = analysis.decide(
            evidence,
            test_openings=count_openings(evidence.lock),
            post_hoc=post_hoc(store.read_locks()),
            preferred=preferred,
        ).model_copy(
            update={"spent": spent(study, folder), **_planned(store, evidence), **_rated(evidence, held)}
            | _used(store, evidence)
            | {"proven": _proven(store, evidence)}
        )
        asked = kept_scenarios.asked(store, scenarios)
        if asked:
            owned = ownership(evidence, deployed=decision.deployed, run_s=earlier_s(folder))
            weighed = kept_scenarios.weigh(store, evidence, owned, asked, preferred)
            decision = decision.model_copy(update={"weighed": weighed})
        store.write_decision(decision)
    return evidence, decision


def _as_switched(study: Study, ran: Study) -> Study:
    """Whole runs and all arms, where the trials had them: whatever the file says, a switch may have overridden it."""
    everything = study.exhaustively()
    tuning = everything.tuning if ran.tuning.exhaustive else study.tuning
    strategy = everything.strategy if ran.strategy is None else study.strategy
    return study.model_copy(update={"tuning": tuning, "strategy": strategy})


def _planned(store: StudyFolder, evidence: Evidence) -> dict[str, tuple[Scored, ...] | tuple[Held, ...]]:
    """The plan's estimates beside what was measured; none where no plan was kept."""
    kept = store.plan()
    if kept is None:
        return {}
    try:
        made = plan.Plan.model_validate(kept)
    except ValidationError as error:
        got = error.errors()[0]
        where = ".".join(map(str, got["loc"]))
        raise IntegrityError(f"{store.path / 'plan.json'}: {where}: {got['msg']}; restore it, or remove it") from None
    return {"predictions": plan.scored(made, evidence), "memory": plan.beside(made.memory, evidence)}


def _held(evidence: Evidence, folder: Path) -> tuple[Round, ...]:
    """What raters said of the answers that the study has."""
    records = {record.trial.id: record.digest for record in evidence.records}
    return rounds.belonging(raters.rounds(folder), records)


def _rated(
    evidence: Evidence, held: Sequence[Round]
) -> dict[str, tuple[Rated, ...] | tuple[Concord, ...] | tuple[Graded, ...]]:
    """What raters found; none where nobody was asked."""
    references = {task.name: arms.reference(evidence, task.name) for task in evidence.lock.study.tasks}
    found = tuple(rounds.rated(one, references[one.task]) for one in held if one.votes)
    return {"rated": found, "concord": rounds.concord(held, references), "graded": rounds.graded(held, references)}


def _used(store: StudyFolder, evidence: Evidence) -> dict[str, Deployment | Ownership | None]:
    """How finals are as they are deployed, and, where the study says how they are used, what arms cost to own."""
    deployed, owned = _deployed(store, evidence), None
    if evidence.lock.study.costs != Costs():
        owned = ownership(evidence, deployed=deployed, run_s=earlier_s(store.path))
    return {"deployed": deployed, "owned": owned}


def _deployed(store: StudyFolder, evidence: Evidence) -> Deployment | None:
    """What was timed of finals that the study still has; None where nothing was."""
    bench, known = store.bench(), {record.trial.id for record in evidence.records}
    timed = {trial for trials in bench.trials.values() for trial in trials} if bench else set()
    if not (timed and timed <= known):
        return None
    costs, usd_per_hour = evidence.lock.study.costs, evidence.lock.study.hardware.usd_per_hour
    storage = stated(costs.usd_per_gb_month, "GB-month", "usd_per_gb_month") or catalogue.storage_rate()
    hour = None if usd_per_hour is None else f"{usd_per_hour:.4g} USD an hour of the machine (hardware.usd_per_hour)"
    volumes = breakeven.volumes(
        bench,
        variants=costs.variants,
        requests=None if costs.requests_per_month is None else costs.requests_per_month / costs.variants,
        usd_per_byte_month=None if storage is None else storage.usd / (storage.gb_bytes or GB_BYTES),
        usd_per_s=None if usd_per_hour is None else usd_per_hour / 3600,
        prices=tuple(said for said in (hour, storage and f"{storage}") if said),
    )
    return latency.summarise(bench).model_copy(update={"volumes": volumes})


def _proven(store: StudyFolder, evidence: Evidence) -> tuple[Proof, ...]:
    """Chains of runs that the study still has."""
    known = {record.trial.id for record in evidence.records}
    return tuple(proof for proof in store.proofs() if proof.trial in known)


def post_hoc(locks: Sequence[Lock]) -> tuple[str, ...]:
    """Name each choice of the current, last lock that differs from the first under which a trial was completed.

    A price is no choice and may be corrected; arms may be added, which the test ledger counts.
    """
    now = locks[-1].study
    changes = list(_changes(locks[0].study, now, (*CHOICES, "looks", "strategy"), TASK_CHOICES))
    climbed = [lock.study for lock in locks if lock.study.ladder] if now.ladder else []
    changes += _changes(climbed[0], now, LADDER_CHOICES, ()) if climbed else []
    return tuple(f"{what}: was {before}, is now {now}" for what, before, now in changes)


def _relock(lock: Lock, study: Study, folder: Path) -> Lock:
    """Put the study's choices into the lock that its trials ran under."""
    asked = {*_fields(lock.study), *_fields(study)} - {*CHOICES, *LADDER_CHOICES, *WORDS, "tasks"}
    task_asked = {name for task in study.tasks for name in type(task).model_fields} - set(TASK_CHOICES)
    changed = list(_changes(lock.study, study, sorted(asked), sorted(task_asked)))
    if {task.name for task in lock.study.tasks} != {task.name for task in study.tasks}:
        changed.append(("tasks", [t.name for t in lock.study.tasks], [t.name for t in study.tasks]))
    if changed:
        what, before, now = changed[0]
        raise StoreError(
            f"{folder}: {what}: was {before} when trials ran, got {now}; run the study again or restore it"
        )
    return lock.model_copy(update={"study": study})


def _changes(
    before: Study, now: Study, names: Sequence[str], task_names: Sequence[str]
) -> Iterator[tuple[str, object, object]]:
    old, new = _fields(before), _fields(now)
    for name in names:
        if old.get(name) != new.get(name):
            yield name, old.get(name), new.get(name)
    tasks = {task["name"]: task for task in old["tasks"]}
    for task in new["tasks"]:
        for name in task_names if task["name"] in tasks else ():
            was, now_is = (one.get(name, TaskSpec.model_fields[name].default) for one in (tasks[task["name"]], task))
            if was != now_is:
                yield f"tasks.{task['name']}.{name}", was, now_is


def _fields(study: Study) -> dict[str, object]:
    """A study's fields as JSON, those of its ladder by names of their own; one at its default has that."""
    fields = {name: getattr(study, name) for name in Study.model_fields if name != "ladder"}
    fields |= study.model_dump(mode="json", exclude={"ladder"})
    ladder = study.ladder.model_dump(mode="json") if study.ladder else {}
    return fields | {f"ladder.{name}": value for name, value in ladder.items()}
