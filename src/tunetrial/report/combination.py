"""What was found of combined adapters, in tables of Markdown that read as they are on a terminal."""

from collections.abc import Iterable, Iterator, Sequence

from tunetrial.core.combination import Combination, Made, called
from tunetrial.report import words

ABSENT = "not measured"


def text(found: Combination) -> str:
    """Scores by task, what was decided of each combination, how it was chosen, and what each way takes."""
    parts = [
        f"Test scores, means over {len(found.seeds)} seeds; of other arms over those of their last look:",
        "\n".join(_scores(found)),
        "Combinations against others on the same seeds and test rows, positive is better; intervals are of all these "
        "together (Holm), and allow nothing for the choice of settings or for asking again:",
        "\n".join(_comparisons(found)),
        "Chosen on validation rows; kept is the share of each task's gain over the untuned base, mean over tasks:",
        "\n".join(_choices(found)),
        "To serve all tasks, the base apart unless it is in the artifacts; training is of one seed:",
        "\n".join(_stored(found)),
        _openings(found),
    ]
    return "\n\n".join(parts) + "\n"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table with its columns aligned."""
    lines = [list(heads), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return (f"| {' | '.join(line)} |" for line in padded)


def _scores(found: Combination) -> Iterator[str]:
    tasks = list(found.metrics)
    models = dict.fromkeys(model for task in tasks for model in found.scores[task])
    heads = ["model", *(f"{words.name(task)}: {words.metric(found.metrics[task])}" for task in tasks)]
    cell = lambda value: "not defined" if value is None else words.number(value, 3)  # noqa: E731
    return _table(heads, ([words.name(m), *(cell(found.scores[task].get(m)) for task in tasks)] for m in models))


def _comparisons(found: Combination) -> Iterator[str]:
    rows = []
    for one in found.comparisons:
        digits = words.decimals_for(one.margin) + 1
        said = words.clean(one.reason or "", 160)
        if one.effect is not None:
            said = words.signed(one.effect, digits)
            ends = f"{words.signed(one.low, digits)} to {words.signed(one.high, digits)}"
            said += f" ({words.percent(one.level)}: {ends})"
        about = (one.task, one.candidate, one.reference, one.words)
        rows.append([*(words.clean(part) for part in about), f"{one.margin:g}", said])
    return _table(["task", "combination", "against", "verdict", "margin", "difference"], rows)


def _choices(found: Combination) -> Iterator[str]:
    rows = []
    for made in found.made:
        written = " (written)" if made.recipe.how == found.written else ""
        kept = words.percent(round(made.chosen.mean, 3))
        name = words.name(called(found.arm, made.recipe.how))
        rows.append([f"{name}{written}", _setting(made), kept, str(len(made.tried)), str(made.rank)])
        rows[-1] += [words.percent(round(made.left_out, 3)), f"{made.made_s:.1f} s", f"{made.chosen_s:.1f} s"]
    return _table(["combination", "setting", "kept", "tried", "rank", "cut off", "made in", "chosen in"], rows)


def _setting(made: Made) -> str:
    setting = made.chosen.setting
    if setting.rates:
        rates = set(setting.rates.values())
        if len(rates) == 1:
            return f"rate {words.rate(rates.pop())}"
        return ", ".join(f"{words.name(task)} at rate {words.rate(rate)}" for task, rate in setting.rates.items())
    shares = ", ".join(f"{words.name(task)} {share:.2f}" for task, share in setting.shares.items())
    density = "" if made.recipe.how == "weighted" else f", density {made.recipe.density:g}"
    return f"{shares}, times {setting.scale:g}{density}"


def _stored(found: Combination) -> Iterator[str]:
    rows = []
    for one in found.stored:
        train = ABSENT if one.train_s is None else f"{one.train_s:.1f} s"
        rows.append([words.name(one.name), str(one.artifacts), words.size(one.artifact_bytes), train])
    return _table(["model", "artifacts", "size", "training"], rows)


def _openings(found: Combination) -> str:
    times = ", ".join(f"{words.name(task)} {count}" for task, count in found.openings.items())
    written = f"{words.name(called(found.arm, found.written))}, seed {found.seed}"
    return f"Test rows opened so far, by all studies: {times}. Written: {written}."
