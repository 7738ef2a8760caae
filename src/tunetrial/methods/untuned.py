"""`none`: the base as it is. `tfidf`: a linear model of word counts, without any base. Do you need to tune at all?"""

from typing import ClassVar

from pydantic import Field

from tunetrial.methods.method import Untuned
from tunetrial.models import ModelShape


class NoTuning(Untuned):
    """The untuned base, asked with `shots` examples of the training rows in each prompt.

    They are drawn anew for each seed, and the same for every row. It has no head to read: labels are read by their
    texts, or text is generated.
    """

    shots: int = Field(default=0, ge=0, le=64, description="number of training examples in the prompt", examples=[4])

    def artifact_bytes(self, shape: ModelShape, outputs: int, base_bytes_per_weight: int) -> int:
        """No weights."""
        return 0


class Tfidf(Untuned):
    """A linear model of TF-IDF weights of words and pairs of words (scikit-learn): logistic regression for labels,
    ridge regression for numbers, its regularisation chosen on the validation rows.

    Nothing in it is random: it gives the same scores at every seed, and only the other arm's seeds vary.
    """

    uses_base: ClassVar[bool] = False

    def base_bytes(self, shape: ModelShape, compute_bytes: int) -> int:
        return 0

    def artifact_bytes(self, shape: ModelShape, outputs: int, base_bytes_per_weight: int) -> None:
        """It depends on how many different words the training rows have."""
        return None
