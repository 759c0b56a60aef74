"""What of a delta arrived in a baked checkpoint, in words."""

from dataclasses import dataclass, field

from .quantised.loss import Loss

_MANY_LOST = 0.1
# Below this share it is worth a sentence.
_NEARLY_ALL = 0.99


@dataclass
class BakeReport:
    """What rounding to the checkpoint's precision left of a delta.

    changes: all elements of the delta; lost: those that are as before, though their change was not zero
    share: of the whole change that arrived, measured along it; rescaled: blocks that share a scale and got a new one
    left_out: a sentence on each weight whose changes do not fit this variant of the model, and on the text encoders
        that are not in the file
    """

    changes: int
    lost: int = 0
    left_out: tuple[str, ...] = ()
    share: float = field(default=1.0, compare=False)
    rescaled: int = 0

    @classmethod
    def of(cls, changes: int, loss: Loss, left_out: tuple[str, ...]) -> "BakeReport":
        """Of what was counted while the delta was added."""
        return cls(changes, loss.lost, left_out, loss.share, loss.rescaled)

    def text(self) -> str:
        """For people; empty if nothing was lost or left out."""
        return " ".join(filter(None, (*self.left_out, self._rounding(), self._rescaling())))

    def _rounding(self) -> str:
        if not self.lost:
            return ""
        text = f"{self.lost:,} of {self.changes:,} changes ({self.lost / self.changes:.1%}) are lost in its rounding."
        if self.lost >= _MANY_LOST * self.changes:
            text += " A version of the checkpoint in a higher precision (fp16 or bf16, best fp32) keeps more of them."
        return text if self.share >= _NEARLY_ALL else f"{text} Of the delta's effect {self.share:.0%} arrived."

    def _rescaling(self) -> str:
        if not self.rescaled:
            return ""
        return (
            f"{self.rescaled:,} blocks of the quantised weights got another scale, because changed elements were too "
            "large for theirs; their other elements were rounded anew."
        )
