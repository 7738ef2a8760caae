"""How likely a model finds the targets: ratios of sums over examples, lower is better. Axis E: example."""

import numpy as np

from tunetrial.analysis.columns import Values, both_texts, measured
from tunetrial.analysis.stats import Floats


def nll(target_E: Values, prediction_E: Values, nll_E: Values, tokens_E: Values) -> float:
    """Negative log-likelihood of the targets in nats a token, end of text included: long targets weigh more.

    It is of the target as given, not of what the model writes, and between bases with other tokenizers it is of other
    tokens: `bits_per_byte` can be compared there.
    """
    nll_E, tokens_E = measured(target_E, nll_E, tokens_E)
    return float(nll_E.sum() / tokens_E.sum())


def nll_parts(target_E: Values, prediction_E: Values, nll_E: Values, tokens_E: Values) -> Floats:
    return -_ratio_parts(*measured(target_E, nll_E, tokens_E))


def bits_per_byte(target_E: Values, prediction_E: Values, nll_E: Values) -> float:
    """Bits of the targets' negative log-likelihood for each byte of their UTF-8, whatever the tokenizer."""
    bits_E, bytes_E = _bits_and_bytes(target_E, nll_E)
    return float(bits_E.sum() / bytes_E.sum())


def bits_per_byte_parts(target_E: Values, prediction_E: Values, nll_E: Values) -> Floats:
    return -_ratio_parts(*_bits_and_bytes(target_E, nll_E))


def _bits_and_bytes(target_E: Values, nll_E: Values) -> tuple[Floats, Floats]:
    texts_E = both_texts(target_E, target_E)[0]
    return measured(target_E, nll_E)[0] / np.log(2), np.array([float(len(t.encode())) for t in texts_E])


def _ratio_parts(over_E: Floats, under_E: Floats) -> Floats:
    """A ratio of two sums linearised about itself (Cochran 1977, section 6.3): the mean is the ratio."""
    ratio = over_E.sum() / under_E.sum()
    return ratio + (over_E - ratio * under_E) / under_E.mean()
