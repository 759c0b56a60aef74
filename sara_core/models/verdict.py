"""What a model is to a delta, in words."""

from dataclasses import dataclass

from ..foreign_text import NAME, plain
from .samples import is_quantised

BASE, EITHER, FINE_TUNE, OTHER, UNKNOWN = "base", "base or fine-tune", "fine-tune", "other", "unknown"


@dataclass(frozen=True)
class Verdict:
    """What a model is to a delta.

    kind: BASE, FINE_TUNE (of it, or of an ancestor of both), EITHER of these where the weights have too few bits to
        tell, OTHER (another family or a model of its own), UNKNOWN
    agreeing: share of the compared elements that are the same, 0 … 1; 0 if none is precise enough to say
    likeness: mean over the weights of the cosine between their elements, −1 … 1
    base_name, trained_in: the base and the precision of its weights, as far as the delta says
    precision: of most of the model's weights; empty if it has no name here
    """

    kind: str
    agreeing: float = 0.0
    likeness: float = 0.0
    base_name: str = ""
    trained_in: str = ""
    precision: str = ""

    def text(self) -> str:
        """For people: which of the five it is, and what to expect of the delta then."""
        named = f" ({self._quoted_name()})" if self.base_name else ""
        said = {
            BASE: f"This model is the base that the delta was trained on{named}, in this precision or another.",
            EITHER: f"This model is the base that the delta was trained on{named}, or a fine-tune of it: its weights, "
            "or the base's, have too few bits to tell.",
            FINE_TUNE: "This model is a fine-tune.",
            OTHER: "This model is of another family, or was trained on its own.",
            UNKNOWN: "Whether the delta was trained on this model is not known: the delta does not say what it was "
            "trained on, or the model's weights cannot be read.",
        }
        return " ".join(filter(None, (said[self.kind], self.warning(), self.note())))

    def warning(self) -> str:
        """For people: what to expect of the delta on this model; empty if there is nothing to warn of."""
        named = self._quoted_name() or "another model"
        if self.kind == FINE_TUNE:
            share = f" ({self.agreeing:.1%} of the compared weights are the same)" if self.agreeing else ""
            return (
                f"This delta was trained on {named}; this model is another fine-tune of it or of its ancestor{share}. "
                "It may work less well here: lower the strength, or use the model it was trained on."
            )
        if self.kind == OTHER:
            return (
                f"This delta was trained on {named}, whose weights have nothing to do with this model's. Expect noise: "
                "use the model it was trained on, or a fine-tune of it."
            )
        return ""

    def note(self) -> str:
        """For people: that the delta goes from one precision to another; empty if it does not, if neither is
        quantised, or if there is a worse thing to say."""
        known = self.trained_in and self.precision and self.trained_in != self.precision
        if self.kind == OTHER or not known or not (is_quantised(self.trained_in) or is_quantised(self.precision)):
            return ""
        return (
            f"This delta was trained on {plain(self.trained_in, NAME)} weights, this model has {self.precision}: "
            "that works."
        )

    def _quoted_name(self) -> str:
        return f"'{plain(self.base_name, NAME)}'" if self.base_name else ""
