"""How likely a language model finds texts that it was never asked about, and how far it went from its base there.

Every token of a text is foretold once, from the tokens before it: a text begins after the tokenizer's begin-of-text
token or, where it has none, its end-of-text token, as after another text. Rows are laid end to end without padding, so
no pad is ever scored and an end-of-text token that stands in a text is. Targets are the next tokens. Sums are in nats
for each text; nothing is averaged here.

    base, own = plain(pack), tuned(pack)                     # of a pack in hand, or `pairs.open_pair`
    found = contrast(base, own, tokenizer, ["One text.", "Another."])
    found.tuned.nats_E - found.base.nats_E                   # what each text lost, in nats

What it does not claim: that texts are held out (the model may have been trained on them), or that a text's likelihood
says how well the model writes. Axis E: text.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from tunetrial.core.errors import DataError, ModelError
from tunetrial.engine.attention import logits
from tunetrial.engine.blocks import states
from tunetrial.engine.language import AnswerBatch, LanguageModel
from tunetrial.engine.loss import tokens_at_once
from tunetrial.engine.readout import batches_of, in_parts
from tunetrial.engine.states import View
from tunetrial.engine.texts import Row

WINDOW = 1024
SIDE_BY_SIDE = 8  # tensors of a chunk's logits that are held while two distributions are compared


@dataclass(frozen=True)
class Likelihoods:
    """Of each text the negative log-likelihood in nats, its tokens, all of them scored, and its bytes in UTF-8."""

    nats_E: np.ndarray
    tokens_E: np.ndarray
    bytes_E: np.ndarray

    @property
    def nats_per_token(self) -> float:
        """Of all texts together: long ones weigh more. Only for models of one tokenizer."""
        return float(self.nats_E.sum() / self.tokens_E.sum())

    @property
    def bits_per_byte(self) -> float:
        """Of all texts together; whatever the tokenizer."""
        return float(self.nats_E.sum() / np.log(2) / self.bytes_E.sum())


@dataclass(frozen=True)
class Contrast:
    """A tuned model beside its base on the same tokens of the same texts.

    `kl_E` is the sum over a text's tokens of KL(base || tuned) = sum_v p0 log(p0 / p) between the distributions of the
    next token, in nats; `reverse_kl_E` that of KL(tuned || base); `agreed_E` counts the tokens at which both find the
    same one likeliest. Whether that is good or bad it does not say.
    """

    base: Likelihoods
    tuned: Likelihoods
    kl_E: np.ndarray
    reverse_kl_E: np.ndarray
    agreed_E: np.ndarray


@dataclass(frozen=True)
class Windows:
    """Texts as rows of the model's length, each token marked in one row alone; `text_W` says whose a row is."""

    rows: list[Row]
    text_W: np.ndarray
    tokens_E: np.ndarray
    bytes_E: np.ndarray


def likelihoods(
    view: View,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    window: int = WINDOW,
    stride: int | None = None,
) -> Likelihoods:
    """Score every token of every text once.

    Args:
        view: A causal language model.
        window: How many tokens a row has at most; never more than the model takes. A token of a longer text is
            foretold from at least `window - stride` tokens before it, and at most `window - 1`.
        stride: By how many tokens the next row of a longer text begins later; by default half a window.
    Raises:
        DataError: A text has no token, or there is none.
        ModelError: It is no language model, its tokenizer has neither a begin- nor an end-of-text token, or window and
            stride make no rows.
        DoesNotFitError: Not even one row fits.
    """
    cut = cut_texts(tokenizer, texts, window=_fitting(window, view), stride=stride)
    reader = LanguageModel(view.model)

    def read(batch: AnswerBatch) -> torch.Tensor:
        with view.within():
            return reader.losses(batch)[None]

    return Likelihoods(_summed(view, cut, read, columns=1)[0], cut.tokens_E, cut.bytes_E)


def contrast(
    base: View,
    tuned: View,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    window: int = WINDOW,
    stride: int | None = None,
) -> Contrast:
    """Score texts under both models, batch by batch, and compare their distributions of every next token.

    Where the tuned model is the base with an adapter, both are one model in memory, and the adapter is off for the
    base: it is scored as it was before training, whatever the adapter began as. Other arguments and errors are those of
    `likelihoods`. Distributions are in fp32 or wider, a chunk of tokens at a time.
    """
    cut = cut_texts(tokenizer, texts, window=min(_fitting(window, view) for view in (base, tuned)), stride=stride)
    sums = _summed(tuned, cut, lambda batch: _compared(base, tuned, batch), columns=5)
    before, after = (Likelihoods(nats_E, cut.tokens_E, cut.bytes_E) for nats_E in sums[:2])
    return Contrast(before, after, kl_E=sums[2], reverse_kl_E=sums[3], agreed_E=np.rint(sums[4]).astype(np.int64))


def cut_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, window: int, stride: int | None) -> Windows:
    """Tokenise texts, each after a token that begins it, and cut the longer ones into rows that overlap."""
    stride = window // 2 if stride is None else stride
    if not 1 <= stride < window:
        got = f"got window {window} and stride {stride}"
        raise ModelError(f"held-out text: the stride must lie between 1 and window - 1, {got}; leave both out")
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if first is None:
        what = "the tokenizer has neither begin- nor end-of-text token, so a text's first token follows nothing"
        raise ModelError(f"held-out text: {what}, got None; add eos_token to its config")
    if not texts:
        raise DataError("held-out text: no texts, got 0; name a file that has some")
    tokens = tokenizer(list(texts), add_special_tokens=False).input_ids
    empty = next((number for number, own in enumerate(tokens) if not own), None)
    if empty is not None:
        raise DataError(f"held-out text {empty + 1}: has no token, got {texts[empty]!r}; remove it")
    rows, text_W = [], []
    for text, own in enumerate(tokens):
        made = list(_rows([first, *own], window, stride))
        rows += made
        text_W += [text] * len(made)
    sizes = np.array([len(own) for own in tokens]), np.array([len(text.encode()) for text in texts])
    return Windows(rows, np.array(text_W), *sizes)


def _rows(tokens: list[int], window: int, stride: int) -> Iterator[Row]:
    """Rows of at most `window` tokens, each scored from where the one before it ended."""
    start, scored = 0, 1
    while scored < len(tokens):
        end = min(start + window, len(tokens))
        row = tokens[start:end]
        yield Row(row, [start + place >= scored for place in range(len(row))], prompt=scored - start)
        start, scored = start + stride, end


def _fitting(window: int, view: View) -> int:
    if view.model.get_output_embeddings() is None:
        got = f"got a {type(view.model).__name__}"
        raise ModelError(f"held-out text: needs a language model, {got}; open what was saved (engine.pairs)")
    return min(window, getattr(view.model.config, "max_position_embeddings", None) or window)


@torch.no_grad()
def _summed(view: View, cut: Windows, read: Callable[[AnswerBatch], torch.Tensor], *, columns: int) -> np.ndarray:
    """What `read` gives of each scored token (columns, tokens), summed in fp64 over each text: (columns, E)."""
    reader, member = LanguageModel(view.model), range(view.member, view.member + 1)
    sums, texts = np.zeros((columns, len(cut.tokens_E))), len(cut.tokens_E)

    def compute(chosen: list[int]) -> tuple[np.ndarray, np.ndarray]:
        batch = reader.batch([[cut.rows[row] for row in chosen]], member)
        return read(batch).double().cpu().numpy(), batch.owners.cpu().numpy()

    for rows in batches_of([row.tokens for row in cut.rows], 1, reader.device):
        for chosen, (values, owners) in in_parts(rows, compute):
            text = cut.text_W[np.array(chosen)][owners]
            for column, value in zip(sums, values, strict=True):
                column += np.bincount(text, weights=value, minlength=texts)
    return sums


def _compared(base: View, tuned: View, batch: AnswerBatch) -> torch.Tensor:
    """Of each scored token nats under base and tuned model, both divergences, and 1 where both would say the same."""
    hidden = [_hidden(view, batch) for view in (base, tuned)]
    size = tokens_at_once(base.model.get_output_embeddings().weight, side_by_side=SIDE_BY_SIDE)
    parts = []
    for first in range(0, len(batch.at), size):
        at = slice(first, first + size)
        sides = [_distribution(view, own[at]) for view, own in zip((base, tuned), hidden, strict=True)]
        parts.append(divergences(*sides, batch.targets[at]))
    return torch.cat(parts, dim=1)


def _hidden(view: View, batch: AnswerBatch) -> torch.Tensor:
    """The last states before each scored token."""

    def read() -> torch.Tensor:
        with view.within():
            return states(view.model, batch.layout)[batch.at].cpu()

    parts = batch.layout.ids[0], batch.layout.bounds, batch.at
    key = "hidden", hashlib.sha256(b"".join(part.long().cpu().numpy().tobytes() for part in parts)).hexdigest()
    return view.recall(key, read).to(batch.at.device)


def _distribution(view: View, hidden: torch.Tensor) -> torch.Tensor:
    with view.within():
        raw = logits(view.model, hidden)
    return raw.to(torch.promote_types(raw.dtype, torch.float32)).log_softmax(-1)


def divergences(base: torch.Tensor, tuned: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Two log-distributions (tokens, vocabulary) compared: (5, tokens), in the order of `_compared`.

    A token that one of them holds for impossible counts where the other does not: the divergence is infinite there.
    """
    nats = [-side.gather(1, targets[:, None])[:, 0] for side in (base, tuned)]
    forward, reverse = (_divergence(p, q) for p, q in ((base, tuned), (tuned, base)))
    return torch.stack([*nats, forward, reverse, (base.argmax(1) == tuned.argmax(1)).to(forward)])


def _divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """sum p log(p / q) over the last dimension, from logarithms; what is impossible under p adds nothing."""
    apart = p - q
    return torch.linalg.vecdot(p.exp(), apart.masked_fill(p == -torch.inf, 0) if p.min() == -torch.inf else apart)
