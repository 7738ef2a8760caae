"""What raters found of a study's texts, and how far they agree: records in which nothing decides."""

from tunetrial.core.findings import Ends
from tunetrial.core.records import Record


class Rated(Record):
    """What one rater, a person or a `judge` model, prefers by `criterion` among the arms' answers to test rows.

    `preferred` is by arm the share of pairs with the reference in which its answer is found better, a tie half, and so
    are two orders of a pair that contradict each other. `strengths` are Bradley-Terry's, log odds against the
    reference, and `position` what being shown first adds; where the votes have no maximum, `separated` says why.
    `consistent` is the share of pairs that were judged alike in both orders; of the rows judged otherwise, `to_first`
    went to whichever answer stood first and `to_second` to whichever stood second. Intervals are at `level`, over new
    rows and the `seeds` trained; raters are held fixed. `same` pairs were of one text, ties that nobody was asked
    about; `refused` counts the judge's replies that were no answer, `blank` rows that a person left out.
    """

    task: str
    criterion: str
    rater: str
    judge: bool
    reference: str
    preferred: dict[str, Ends]
    strengths: dict[str, Ends] = {}
    position: Ends | None = None
    separated: str | None = None
    consistent: Ends | None
    to_first: int
    to_second: int
    rows: int
    seeds: int
    same: int
    refused: int
    blank: int
    level: float


class Concord(Record):
    """How far raters agree which of two arms' answers is better: Krippendorff's alpha, ordinal, over rows that two or
    more of them judged by one criterion; pairs of one text are left out. None where all say one thing."""

    task: str
    criterion: str
    arm: str
    reference: str
    raters: tuple[str, ...]
    alpha: Ends | None
    rows: int
    level: float


class Graded(Record):
    """What people's ratings of 1 to 10, by `criterion`, say of the arms' answers to test rows.

    The ratings are ordinal: `higher` is by arm how often its answer is rated higher than the reference's, a tie half,
    on rows where every rater rated both; `mean` is shown beside it and decides nothing. Intervals at `level` are over
    new rows and, where there are several, new raters. How far raters agree is Krippendorff's `alpha`, ordinal, answers
    being the units, and `icc`, ICC(2,1) of one rating, with that of their mean, on answers that all rated; None where
    one rater alone rated, or all give one rating.
    """

    task: str
    criterion: str
    reference: str
    raters: tuple[str, ...]
    rows: int
    seeds: int
    mean: dict[str, float]
    higher: dict[str, Ends]
    alpha: Ends | None
    icc: Ends | None
    icc_of_mean: Ends | None
    level: float
