"""Tasks of lm-eval (github.com/EleutherAI/lm-evaluation-harness, MIT) on a base and a tuned model, example by example.

It is an extra: `pip install 'tunetrial[lm-eval]'`. lm-eval renders prompts, computes and scores by its own code; here
both models answer the same examples, and scores come back side by side, for `analysis.forgetting.retention`: flips tell
more than two accuracies, and pairing tells apart smaller differences than lm-eval's own comparison.

    base, own = open_pair(resolve("org/base"), adapter_folder, torch.float32, torch.device("cpu"))
    for one in answer(base, own, tokenizer, ["hellaswag"], limit=500):
        flips(one.base_E, one.tuned_E)
"""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from tunetrial.core.errors import ConfigError, EvidenceError
from tunetrial.engine.states import View


@dataclass(frozen=True)
class Answered:
    """Scores of both models on a task by one metric, axis E: example, in the task's own units.

    `task`, `version` and `filtered` (how an answer was taken from what was generated) are lm-eval's; scores compare
    within one version alone.
    """

    task: str
    version: str
    metric: str
    filtered: str
    example_E: tuple[str, ...]
    base_E: np.ndarray
    tuned_E: np.ndarray


def answer(
    base: View,
    tuned: View,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    folder: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> list[Answered]:
    """Put lm-eval's tasks to both models.

    A task that executes code is refused by lm-eval. Metrics that are no number an example (perplexities) are left out.

    Args:
        tasks: Names of lm-eval's tasks or groups, or of those in `folder`.
        folder: One's own tasks, as lm-eval's YAML files, in place of those that come with it.
        limit: The first so many examples of each task alone.
    Raises:
        ConfigError: lm-eval is not installed, or knows no such task.
        EvidenceError: The models were not put the same examples.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        what = f"got no module {error.name}"
        raise ConfigError(f"lm-eval: is not installed, {what}; pip install 'tunetrial[lm-eval]'") from None
    manager = TaskManager(include_path=None if folder is None else str(folder), include_defaults=folder is None)
    unknown = sorted(set(tasks) - set(manager.all_tasks))
    if unknown:
        raise ConfigError(f"lm-eval: knows no such task, got {unknown[0]!r}; `lm-eval ls tasks` lists them")
    of = {"tasks": list(tasks), "task_manager": manager, "limit": limit}
    found = [_evaluated(view, tokenizer, batch_size, of) for view in (base, tuned)]
    versions = found[0]["versions"]
    made = []
    for task in found[0]["samples"]:
        made += pair_up(task, str(versions.get(task)), *(one["samples"][task] for one in found))
    return made


def pair_up(task: str, version: str, base: Sequence[Mapping], tuned: Sequence[Mapping]) -> list[Answered]:
    """Lay lm-eval's per-sample results of two models side by side, for each metric and filter.

    Raises:
        EvidenceError: Examples are not the same ones.
    """
    sides = [{(one["filter"], one["doc_id"]): one for one in side} for side in (base, tuned)]
    if [(key, one["doc_hash"]) for key, one in sorted(sides[0].items())] != [
        (key, one["doc_hash"]) for key, one in sorted(sides[1].items())
    ]:
        got = f"got {len(base)} and {len(tuned)} results"
        raise EvidenceError(f"lm-eval: {task}: the models were not put the same examples, {got}; run it again")
    made = []
    for filtered in sorted({key[0] for key in sides[0]}):
        keys = sorted(key for key in sides[0] if key[0] == filtered)
        for metric in sides[0][keys[0]]["metrics"]:
            scores = [[side[key][metric] for key in keys] for side in sides]
            if all(isinstance(score, Real | np.generic) for own in scores for score in own):
                columns = (np.array(own, dtype=np.float64) for own in scores)
                made.append(Answered(task, version, metric, filtered, tuple(str(key[1]) for key in keys), *columns))
    return made


def _evaluated(view: View, tokenizer: PreTrainedTokenizerBase, batch_size: int, of: Mapping) -> Mapping:
    """lm-eval's results of one model, its samples among them."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    with view.within(), _padded(view):
        model = HFLM(pretrained=view.model, tokenizer=tokenizer, batch_size=batch_size)
        return simple_evaluate(model=model, log_samples=True, bootstrap_iters=0, **of)


@contextmanager
def _padded(view: View):
    """Attention of transformers' own for a while: lm-eval hands over padded batches."""
    ours = view.model.config._attn_implementation
    view.model.set_attn_implementation("sdpa" if view.model._supports_sdpa else "eager")
    try:
        yield
    finally:
        view.model.set_attn_implementation(ours)
