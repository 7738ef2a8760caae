"""Metrics of text: a target and a completion in, a number in [0, 1] out, higher is better.

Nothing is repaired: text around a JSON object makes it invalid, and only white space at the ends is passed over.
`fault` says what a metric asks of targets; a completion may be any text. chrF and BLEU are sacrebleu's, ROUGE-L
rouge-score's; both are imported at first use.
"""

import importlib.util
import json
import re
import string
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from functools import cache, lru_cache
from typing import Any

from tunetrial.core.errors import EvidenceError

NUMBER = re.compile(
    r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))(?:\.\d+)?(?:[eE][-+]?\d{1,3})?", re.ASCII
)
LIBRARIES = {"rouge_l": ("rouge_score", "rouge-score")}
SHAPES = {
    "numeric_match": ("no number", lambda target: last_number(target) is not None),
    "valid_json": ("not one JSON value", lambda target: read_json(target) is not NOT_JSON),
    "field_accuracy": ("no JSON object with fields", lambda target: bool(_fields(target))),
}
NOT_JSON = object()


def fault(metric: str, target: str) -> str | None:
    """What is wrong with a target for the metric of this name, such as "no number"; None if nothing is."""
    said, fits = SHAPES.get(metric, (None, None))
    return None if fits is None or fits(target) else said


def missing_library(metric: str) -> str | None:
    """The package that a metric needs and that is not installed."""
    module, package = LIBRARIES.get(metric, (None, None))
    return package if module and importlib.util.find_spec(module) is None else None


def exact_match(target: str, completion: str) -> float:
    """Whether both are the same text, white space at the ends apart. Case and accents count."""
    return float(target.strip() == completion.strip())


def canonical(metric: str, completion: str) -> str:
    """The completion in the one form that all have which the metric of this name takes for the same answer.

    Of `numeric_match` the last number, of `token_f1` the words, of `field_accuracy`, `valid_json` and `schema_valid`
    the JSON value, of every other the text without white space at its ends. A completion without such content stays as
    it is, so that two of these are the same answer only if they are the same text.
    """
    plain = completion.strip()
    if metric == "numeric_match":
        number = last_number(completion)
        return plain if number is None else f"{number.normalize() + 0:f}"
    if metric == "token_f1":
        return " ".join(sorted(_words(completion)))
    if metric in ("field_accuracy", "valid_json", "schema_valid"):
        value = read_json(completion)
        return plain if value is NOT_JSON else json.dumps(_whole(value), sort_keys=True)
    return plain


def _whole(value: Any) -> Any:
    """A JSON value with 1.0 written 1, since the two are equal."""
    if isinstance(value, dict):
        return {name: _whole(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_whole(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def numeric_match(target: str, completion: str) -> float:
    """Whether the last number of the completion equals the last number of the target.

    The rule: a number has digits, with or without a sign, commas between thousands, a decimal point and an exponent;
    signs of currency, percent and units are passed over; numbers are equal as decimals, so 1,000.0 is 1000, and
    neither 0.5 is 50 % nor 1/3 is 0.333.
    """
    number = last_number(completion)
    return float(number is not None and number == last_number(target))


def last_number(text: str) -> Decimal | None:
    """The last number in a text, None if there is none."""
    found = NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    return Decimal(found[-1].replace(",", "")) if found else None


def token_f1(target: str, completion: str) -> float:
    """F1 over the words of both, as SQuAD counts them; two empty texts are equal.

    Lower case, without ASCII punctuation and without the words a, an and the: made for English. A text without
    spaces is one word. Source: the evaluation script of SQuAD 1.1 (Rajpurkar et al. 2016).
    """
    wanted, said = _words(target), _words(completion)
    if not wanted or not said:
        return float(wanted == said)
    shared = sum((Counter(wanted) & Counter(said)).values())
    return 2 * shared / (len(wanted) + len(said))


def _words(text: str) -> list[str]:
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


@lru_cache(maxsize=2**16)
def rouge_l(target: str, completion: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004), by rouge-score without stemming.

    Words are runs of a-z and 0-9: text in other scripts has none and scores 0.

    Raises:
        EvidenceError: rouge-score is not installed.
    """
    return _rouge()(target, completion)["rougeL"].fmeasure


@cache
def _rouge() -> Callable[[str, str], Any]:
    if missing_library("rouge_l"):
        raise EvidenceError("rouge_l: needs rouge-score, got none installed; pip install 'tunetrial[eval]'")
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"]).score


@lru_cache(maxsize=2**16)
def chrf(target: str, completion: str) -> float:
    """chrF2 of one completion (Popović 2015), characters up to 6 in a row; sacrebleu's number as a share of 100."""
    from sacrebleu import sentence_chrf

    return sentence_chrf(completion, [target]).score / 100


@lru_cache(maxsize=2**16)
def bleu(target: str, completion: str) -> float:
    """BLEU of one completion, with exponential smoothing and effective order; sacrebleu's number as a share of 100.

    A mean of these is not the BLEU of a corpus, which is no mean of examples: see `corpus_bleu`.
    """
    from sacrebleu import sentence_bleu

    return min(sentence_bleu(completion, [target]).score / 100, 1.0)


def corpus_bleu(targets: list[str], completions: list[str]) -> float:
    """BLEU of all completions together (Papineni et al. 2002), as papers state it; a share of 100."""
    from sacrebleu import corpus_bleu

    return min(corpus_bleu(completions, [targets]).score / 100, 1.0)


def valid_json(target: str, completion: str) -> float:
    """Whether the completion is one JSON value and nothing else, whatever the target."""
    return float(read_json(completion) is not NOT_JSON)


def field_accuracy(target: str, completion: str) -> float:
    """Share of the target object's fields that the completion's object has with an equal value; 0 without an object.

    Further fields cost nothing: that is what a schema is for. 1 equals 1.0, and true is not 1.
    """
    wanted, said = _fields(target), _fields(completion)
    return sum(name in said and _equal(said[name], value) for name, value in wanted.items()) / len(wanted)


def fits_schema(completion: str, schema: str) -> float:
    """Whether the completion is one JSON value that is valid against the JSON of a schema. Formats are not checked."""
    value = read_json(completion)
    try:
        return float(value is not NOT_JSON and _validator(schema).is_valid(value))
    except RecursionError:
        return 0.0


def schema_fault(schema: str) -> str | None:
    """What is wrong with the JSON of a schema, None if it is a JSON Schema."""
    from jsonschema.exceptions import SchemaError

    try:
        parsed = json.loads(schema, parse_constant=_refuse)
        if outside := re.search(r'"\$ref": "([^#"][^"]*)"', json.dumps(parsed, allow_nan=False)):
            return f"no schema of its own (it refers to {outside[1]!r})"
        _validator(schema).check_schema(parsed)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    except (SchemaError, AttributeError, TypeError) as error:
        return f"no JSON Schema ({getattr(error, 'message', error)})"
    return None if isinstance(parsed, dict) else "no JSON Schema (not an object)"


@cache
def _validator(schema: str) -> Any:
    from jsonschema.validators import validator_for
    from referencing.jsonschema import EMPTY_REGISTRY

    parsed = json.loads(schema)
    return validator_for(parsed)(parsed, registry=EMPTY_REGISTRY)


def read_json(text: str) -> Any:
    """The one JSON value that a text is, or NOT_JSON; NaN and infinities are none."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return NOT_JSON


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _fields(text: str) -> dict[str, Any]:
    value = read_json(text)
    return value if isinstance(value, dict) else {}


def _equal(one: Any, other: Any) -> bool:
    """Equal as JSON values: Python takes true for 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and one == other
