"""What is looked at in a model that was just tuned, besides its answers, as tables beside the trial's scores.

"forgetting", a row a held-out text: its likelihood under base and tuned model and how far their distributions of the
next token lie apart (`heldout.Contrast`).
"states", a row a source, pooling and layer: how alike the states of base and tuned model are (`states.Compared`).
"floors", the same of the base and itself, one row at a time ("batch") and in another dtype ("dtype").
"grams", a column a source and layer ("test:3"), by pairs of rows: the products of rows' mean states under the tuned
model (`analysis.grams`), by which finals are held against each other; nan beyond the pairs of a source.
"weights", a row a matrix: its update's size and ranks, and intruder dimensions (`analysis.spectra`).

A source is the split that rows are of: "test", the task's test rows as the model is asked them, or a held-out text.
Which of its rows are taken follows from their number alone, so they are the same in all finals; rows without content
are left out, and a source of which fewer than 4 are left.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from transformers import AutoModelForCausalLM, PreTrainedModel

from tunetrial.analysis import spectra
from tunetrial.analysis.grams import products
from tunetrial.analysis.similarity import FEWEST_ROWS
from tunetrial.core.evidence import Example, Table, TaskData
from tunetrial.core.pins import OBSERVED_ROWS, OBSERVED_TEXT_TOKENS, TEXT
from tunetrial.core.records import canonical
from tunetrial.core.study import Observed
from tunetrial.engine import attention
from tunetrial.engine.heldout import contrast
from tunetrial.engine.loop import does_not_fit
from tunetrial.engine.states import (
    Compared,
    Passage,
    View,
    compare,
    content,
    floors,
    mean_states,
    plain,
    shared_ends,
    tuned,
)
from tunetrial.engine.streams import stream
from tunetrial.engine.updates import MatrixUpdate, updates

if TYPE_CHECKING:
    from tunetrial.engine.torch_engine import TorchPack, TorchSession

DRAWN = 0


def observe(pack: "TorchPack", member: int, data: TaskData, what: Observed) -> Table | None:
    """Look at one thing in a member of a pack, after its last step. None where there is nothing to look at: no source
    with rows enough, no matrix that was changed.

    Raises:
        DoesNotFitError: Memory runs out.
        ModelError: PEFT cannot fold an adapter of this type into a weight.
    """
    made = {"forgetting": _forgetting, "states": _states, "floors": _floors, "grams": _grams, "weights": _weights}
    with does_not_fit(f"{pack.trials[member].arm.name}: {what}"):
        return made[what](pack, member, data)


def _forgetting(pack: "TorchPack", member: int, data: TaskData) -> Table:
    splits = [split for split in data.splits if split.startswith(TEXT)]
    texts = [(split.removeprefix(TEXT), text) for split in splits for text in data.splits[split]]
    found = contrast(*language_models(pack, member), pack.session.tokenizer, [text.prompt for _, text in texts])
    return {
        **_named(texts),
        "tokens": found.base.tokens_E,
        "bytes": found.base.bytes_E,
        "base_nats": found.base.nats_E,
        "tuned_nats": found.tuned.nats_E,
        "kl": found.kl_E,
        "reverse_kl": found.reverse_kl_E,
        "agreed": found.agreed_E,
    }


def _named(texts: list[tuple[str, Example]]) -> dict[str, np.ndarray]:
    columns = {
        "text": [name for name, _ in texts],
        "id": [text.id for _, text in texts],
        "cluster": [text.cluster for _, text in texts],
    }
    return {name: np.array(column, dtype=object) for name, column in columns.items()}


def sources(pack: "TorchPack", data: TaskData) -> dict[str, list[Passage]]:
    """The rows of each source, drawn, in the order of the draw."""
    special, found = pack.session.tokenizer.all_special_ids, {}
    for split in ("test", *(split for split in data.splits if split.startswith(TEXT))):
        tokens = _tokens(pack, data.splits[split], split)
        template = shared_ends(tokens) if split == "test" else (0, 0)
        rows = [Passage(row, content(row, special=special, template=template)) for row in tokens]
        rows = [row for row in rows if len(row.content)]
        order = np.random.default_rng(stream(DRAWN, split)).permutation(len(rows))[:OBSERVED_ROWS]
        if len(order) >= FEWEST_ROWS:
            found[split] = [rows[at] for at in order]
    return found


def _tokens(pack: "TorchPack", examples: Sequence[Example], split: str) -> list[list[int]]:
    """What the model is asked of a task's rows; texts as the tokenizer has them, cut."""
    session = pack.session
    if split != "test":
        made = session.tokenizer([text.prompt for text in examples], truncation=True, max_length=OBSERVED_TEXT_TOKENS)
        return made.input_ids
    if pack.trials[0].controls.readout == "head":
        return session.texts.prompts(examples)
    return [row.tokens[: row.prompt] for row in session.texts.rows(examples)]


def _states(pack: "TorchPack", member: int, data: TaskData) -> Table | None:
    pair = _views(pack, member)
    found = {split: compare([pair], rows, seed=DRAWN)[0] for split, rows in sources(pack, data).items()}
    return _columns([(split, one) for split, made in found.items() for one in made])


def _floors(pack: "TorchPack", member: int, data: TaskData) -> Table | None:
    base = plain(pack)
    others = floors(pack, base)
    pairs = [(base, other) for other in others.values()]
    found = [
        (split, how, one)
        for split, rows in sources(pack, data).items()
        for how, made in zip(others, compare(pairs, rows, seed=DRAWN), strict=True)
        for one in made
    ]
    table = _columns([(split, one) for split, _, one in found])
    return table and {"pair": [how for _, how, _ in found], **table}


def _columns(found: list[tuple[str, Compared]]) -> Table | None:
    """A row a comparison; nan where a measure has no value."""
    if not found:
        return None
    chance = [(np.nan, np.nan) if one.shuffled is None else one.shuffled for _, one in found]
    measures = {
        name: [getattr(one.similarity, name) for _, one in found]
        for name in ("cka", "cka_biased", "cosine", "change", "angle")
    }
    measures |= {"rsa": [one.rsa for _, one in found]}
    measures |= {"shuffled_mean": [mean for mean, _ in chance], "shuffled_sd": [sd for _, sd in chance]}
    return {
        "source": [split for split, _ in found],
        "pooling": [one.pooling for _, one in found],
        "layer": [one.layer for _, one in found],
        "rows": [one.similarity.rows for _, one in found],
        **{name: np.array(values, dtype=np.float64) for name, values in measures.items()},
    }


def _grams(pack: "TorchPack", member: int, data: TaskData) -> Table | None:
    found = {}
    for split, rows in sources(pack, data).items():
        made = mean_states(_views(pack, member)[1], rows)
        found |= {f"{split}:{layer}": products(states) for layer, states in made.items()}
    longest = max(map(len, found.values()), default=0)
    filled = {name: np.full(longest, np.nan, dtype=np.float32) for name in found}
    for name, product_P in found.items():
        filled[name][: len(product_P)] = product_P
    return filled or None


def _weights(pack: "TorchPack", member: int, data: TaskData) -> Table | None:
    rows = [_of_matrix(found) for found in updates(pack, member=member)]
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else None


def _of_matrix(found: MatrixUpdate) -> dict[str, str | float]:
    """One matrix; nan for ranks of an update that is 0, rounding of a base that is stored as it is, and intruders among
    more vectors than the matrix has. `chance` is how alike a vector drawn at random is to some vector of the base."""
    size, spectral = spectra.relative_size(found.update_K, found.base_K)
    ranks = spectra.ranks(found.update_K)
    row = {
        "matrix": found.name,
        "size": size,
        "spectral": spectral,
        **{n: np.nan if ranks is None else getattr(ranks, n) for n in ("stable", "effective", "participation")},
        "rounding": np.nan if found.rounding is None else found.rounding,
    }
    for side, similarity_K, dimensions in zip(
        ("left", "right"), (found.left_K, found.right_K), found.shape, strict=True
    ):
        row[f"{side}_chance"] = spectra.drawn_similarity(dimensions, vectors=len(found.base_K))
        for top in spectra.TOPS:
            counts = np.full(len(spectra.EPSILONS), np.nan)
            if top <= len(similarity_K):
                counts = spectra.intruders(similarity_K, tops=[top])[0].astype(float)
            row |= {f"{side}_{top}_{e}": count for e, count in zip(spectra.EPSILONS, counts, strict=True)}
    return row


def _views(pack: "TorchPack", member: int) -> tuple[View, View]:
    """What a pack was trained from and what a member became. The base says the same after every trial of an arm: its
    states are kept for them all, in their session; those of a tuned model until it is trained on."""
    base, own = plain(pack), tuned(pack, member)
    arm = canonical(pack.trials[member].arm.model_dump(mode="json"))
    recalls = partial(pack.session.memo.recall, arm), partial(pack.memo.recall, member)
    return tuple(replace(view, recall=recall) for view, recall in zip((base, own), recalls, strict=True))


def language_models(pack: "TorchPack", member: int) -> tuple[View, View]:
    """What a pack was trained from and what a member became, as language models.

    Where a head was trained on the backbone, the backbone is asked through the base's output layer, or through its own
    embeddings where the two share weights.
    """
    views = _views(pack, member)
    if pack.session.causal:
        return views
    whole = {id(view.model): view.model for view in views}
    whole = {key: _with_output(pack.session, backbone) for key, backbone in whole.items()}
    base, own = (replace(view, model=whole[id(view.model)]) for view in views)
    return base, own


def _with_output(session: "TorchSession", backbone: PreTrainedModel) -> PreTrainedModel:
    whole = attention.load(
        session.base, AutoModelForCausalLM, backbone.dtype, session.device, attention=session.attention
    )
    setattr(whole, whole.base_model_prefix, backbone)
    whole.tie_weights()
    return whole
