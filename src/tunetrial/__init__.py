"""tunetrial: find out by trial whether to fine-tune fully, with LoRA or with QLoRA.

from tunetrial import Study
study = Study.load("study.yaml")
study.plan()                  # what it will take, before anything is spent
decision = study.run().decide()
study.report()                # report.html, report.md
study.frames()["trials"]      # pandas
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from tunetrial.core.combination import Combination, Recipe
    from tunetrial.core.evidence import Decision, Evidence
    from tunetrial.core.owning import Ownership
    from tunetrial.core.weighed import Weighed
    from tunetrial.plan import Plan
    from tunetrial.plan.forecast import Forecast
    from tunetrial.ship.export import Shipment
    from tunetrial.ship.gate import Asked, Gated
    from tunetrial.ship.order import Order
    from tunetrial.trial.doctor import Diagnosis
    from tunetrial.trial.progress import Progress
    from tunetrial.trial.waves import Outcome

__version__ = "0.1.0"
__all__ = ["Study", "__version__"]


@dataclass(frozen=True)
class Page:
    """A page of HTML that a notebook draws in a frame of its own, so that neither's styles reach the other."""

    html: str = field(repr=False)

    def _repr_html_(self) -> str:
        from html import escape

        return f'<iframe srcdoc="{escape(self.html)}" style="width:100%;height:50em;border:0" sandbox></iframe>'


class Study:
    """A study file and the folder of its results.

    Everything heavy is imported by the method that needs it. Errors in files, data or machine are
    `tunetrial.core.errors.TunetrialError`, one line that says where, what and what to do.
    """

    def __init__(
        self, path: str | Path, *, folder: str | Path | None = None, engine: str = "torch", exhaustive: bool = False
    ) -> None:
        from tunetrial import spec

        self.path = Path(path)
        self.folder = Path(folder) if folder else self.path.with_name(f"{self.path.stem}-results")
        self.engine = engine
        asked = spec.read(self.path)
        self.asked = asked.exhaustively() if exhaustive else asked
        self.outcome: Outcome | None = None
        self._concluded: tuple[Evidence, Decision] | None = None

    @classmethod
    def load(
        cls, path: str | Path, *, folder: str | Path | None = None, engine: str = "torch", exhaustive: bool = False
    ) -> Study:
        """Read a study file.

        Args:
            folder: Where the results are; if not said `<name>-results` beside `<name>.yaml`.
            engine: "torch", "sim", or "package.module:attribute".
            exhaustive: Search for rates by whole runs and run every arm, whatever the file says. The lock then says so;
                give it again to go on with such a study.
        """
        return cls(path, folder=folder, engine=engine, exhaustive=exhaustive)

    def plan(self) -> Plan:
        """Say what it will take, before anything is spent: trials, memory, time, and the smallest effect shown."""
        from tunetrial.trial import waves

        return waves.preview(self.asked, self.path.parent, self.folder, engine=self.engine)

    def forecast(self, gpus: Sequence[str]) -> Forecast:
        """Say whether its arms fit GPUs that need not be here, with its own rows, and what its runs take there."""
        from tunetrial.trial.devices import on_devices

        return on_devices(self.asked, self.path.parent, gpus, engine=self.engine)

    def doctor(self) -> Diagnosis:
        """Look at base, machine and rows as they will be read, without training."""
        from tunetrial.trial import doctor

        return doctor.diagnose(self.asked, self.path.parent, engine=self.engine)

    def run(self, *, wait_s: float = 0.0, tell: Callable[[Progress], None] | None = None) -> Study:
        """Carry it out, or go on where an earlier run was stopped. `outcome` says how it went.

        Args:
            wait_s: How long to wait while another process holds the folder.
            tell: Called as it moves on.
        Raises:
            KeyboardInterrupt: It was asked to stop; what was done is kept, and `run` goes on from there.
        """
        from tunetrial.trial import waves

        self._concluded = None
        self.outcome = waves.run(
            self.asked,
            self.path.parent,
            self.folder,
            engine=self.engine,
            source=self.path.read_text(encoding="utf-8"),
            wait_s=wait_s,
            tell=tell or (lambda progress: None),
        )
        if self.outcome.status == "interrupted":
            raise KeyboardInterrupt
        return self

    def decide(self) -> Decision:
        """Decide from the records there are; margins or weights changed since they were made are named post hoc."""
        self._concluded = None
        return self._conclude()[1]

    def weigh(self, *scenarios: str | Path) -> tuple[Weighed, ...]:
        """Decide for other uses of the same results, without training: built-in scenarios by name (`saas`), or files.

        They are kept in the folder's `scenarios.json`, and the report shows them side by side. Weights chosen after
        results are what-ifs: the study's own decision stays what it is.
        """
        from tunetrial.spec import scenario
        from tunetrial.trial.conclusion import conclude

        asked = tuple(scenario.find(str(one)) for one in scenarios)
        self._concluded = conclude(self.asked, self.folder, asked)
        found = {one.asked.name: one for one in self._concluded[1].weighed}
        return tuple(found[one.name] for one in asked)

    def report(self) -> Path:
        """Write report.html and report.md of the decision last made, and return the path of the page."""
        from tunetrial import report
        from tunetrial.store import StudyFolder

        evidence, decision = self._conclude()
        store = StudyFolder(self.folder)
        store.write_report("report.md", report.markdown(evidence, decision))
        store.write_report("report.html", self._page(evidence, decision))
        return self.folder / "report.html"

    def show(self) -> Page:
        """The report as a notebook draws it, in a frame below the cell; nothing is written."""
        return Page(self._page(*self._conclude()))

    def _page(self, evidence: Evidence, decision: Decision) -> str:
        from tunetrial import report
        from tunetrial.store import StudyFolder
        from tunetrial.trial import scenarios

        return report.html(evidence, decision, scenarios.kept(StudyFolder(self.folder)))

    def summary(self) -> str:
        """Say the outcome in at most 12 lines."""
        from tunetrial import report

        return report.summary(*self._conclude())

    def to_json(self) -> str:
        """The decision and what it rests on, as JSON."""
        from tunetrial import report

        return report.to_json(*self._conclude())

    def recipe(self, tool: str, *, arm: str | None = None) -> str:
        """An arm at the learning rate found for it, as a recipe for axolotl, llamafactory, trl or peft.

        Args:
            arm: Its name; the recommended one if not said.
        """
        from tunetrial.trial.recipe import recipe

        return recipe(*self._conclude(), tool, arm=arm)

    def ship(
        self,
        order: Order,
        to: str | Path,
        *,
        score: bool = False,
        prove: bool = False,
        tell: Callable[[str], None] | None = None,
    ) -> Shipment:
        """Write an arm's run as a new folder that other tools read, with a model card: whole, or not at all.

        Args:
            order: `tunetrial.ship.order.Order(arm=..., format=...)`; which run, if it names none, is the median one.
            score: Score a merged model on the test rows, which the test ledger counts.
            prove: Hold every hop from the trained model to the shipped files against it, on validation rows.
            tell: Called as a run is trained once more, where the order says so.
        """
        from functools import partial

        from tunetrial.ship.export import ship
        from tunetrial.trial.rescoring import probes, rescore
        from tunetrial.trial.retraining import retrain

        evidence, decision = self._conclude()
        root = self.path.parent
        again = partial(rescore, evidence, root) if score else None
        task = order.task or evidence.lock.study.rule.primary
        rows = probes(evidence, task, order.arm, root) if prove else None
        anew = partial(retrain, evidence, root=root, folder=self.folder, tell=tell or (lambda said: None))
        places = {"study": self.folder, "root": root, "to": Path(to)}
        made = ship(evidence, decision, order, **places, rescore=again, retrain=anew, probes=rows)
        if prove:
            self._concluded = None  # the proof joins the report
        return made

    def costs(
        self,
        *,
        requests_per_month: float | None = None,
        variants: int | None = None,
        usd_per_engineer_hour: float | None = None,
        gpu: str | None = None,
    ) -> Ownership:
        """What every arm costs to own: once, a month and in the first year, for 1, 4 and so many variants.

        What is not said here is as the study file says under `costs` and `hardware`; what nobody says, measured or
        priced is left out and named.

        Args:
            requests_per_month: Of all variants together.
            gpu: Whose price an hour has; seconds stay those of the machine that measured.
        """
        from tunetrial.trial.owning import Volumes, ownership
        from tunetrial.trial.spending import earlier_s

        asked = Volumes(requests_per_month, variants, usd_per_engineer_hour, gpu)
        evidence, decision = self._conclude()
        return ownership(evidence, deployed=decision.deployed, run_s=earlier_s(self.folder), asked=asked)

    def gate(self, asked: Asked | None = None) -> Gated:
        """Whether what the study chose may be used: floors, limits, and what is `asked` of a shipped folder and of the
        version that serves now; each PASS, FAIL or CAN'T TELL.

        Args:
            asked: `tunetrial.ship.gate.Asked(arm=..., shipped=..., against="mail@champion")`.
        """
        from tunetrial.ship import gate

        return gate.judge(*self._conclude(), asked or gate.Asked(), study=self.folder)

    def combine(
        self, arm: str, recipes: Sequence[Recipe], to: str | Path, *, tell: Callable[[str], None] | None = None
    ) -> Combination:
        """Make one adapter for all tasks of an arm's adapters in each of these ways, by settings chosen on validation
        rows; score all on the test rows, which the test ledger counts; write the best on validation as a new folder.

        Args:
            recipes: `tunetrial.core.combination.Recipe(how=...)`.
        """
        from tunetrial.core import files
        from tunetrial.ship import combination
        from tunetrial.trial.combining import combine

        files.check_new(Path(to))
        evidence, _ = self._conclude()
        about = {"arm": arm, "recipes": recipes, "tell": tell or (lambda said: None)}
        found = combine(evidence, self.path.parent, self.folder, **about)
        of = {"lock": evidence.lock, "base": found.base, "like": found.like}
        combination.write(found.combination, found.adapter, to=Path(to), **of)
        return found.combination

    def frames(self) -> dict[str, pd.DataFrame]:
        """Trials, learning curves and per-example scores as pandas frames."""
        from tunetrial.store import StudyFolder, frames

        return frames(StudyFolder(self.folder).evidence())

    def _conclude(self) -> tuple[Evidence, Decision]:
        from tunetrial.trial.conclusion import conclude

        if self._concluded is None:
            self._concluded = conclude(self.asked, self.folder)
        return self._concluded

    def _done(self) -> int:
        return len(list(self.folder.glob("trials/*/record.json")))

    def __repr__(self) -> str:
        arms = " × ".join(arm.name for arm in self.asked.arms)
        tasks = ", ".join(task.name for task in self.asked.tasks)
        return f"<Study {self.path.name}: {arms} on {tasks}; {self._done()} trials done, in {self.folder}>"

    def _repr_html_(self) -> str:
        from html import escape

        rows = {
            "question": self.asked.question,
            "base model": self.asked.base_model,
            "arms": ", ".join(
                f"{a.name} (reference)" if a.name == self.asked.reference else a.name for a in self.asked.arms
            ),
            "tasks": ", ".join(f"{t.name}: {t.metric}, margin {t.margin}" for t in self.asked.tasks),
            "trials done": self._done(),
            "results in": self.folder,
        }
        cells = "".join(
            f"<tr><th style='text-align:left'>{k}</th><td>{escape(str(v))}</td></tr>" for k, v in rows.items()
        )
        return f"<table>{cells}</table>"
