"""What a set of pictures may be and is rarely meant to be: said before it is trained on."""

from collections.abc import Sequence

from ..wording import counted, listed
from .image_folder import CaptionedImage
from .survey import copies


def doubts(images: Sequence[CaptionedImage]) -> list[str]:
    """Sentences on captions that are missing, what comes of it and what helps, and on pictures that are there twice."""
    captions = {image.path: image.caption for image in images}
    without = [path.name for path, caption in captions.items() if not caption]
    same = copies(captions)
    said = [_without_caption(without, len(captions))] if without else []
    if same:
        which = listed(f"{name} is {other}" for name, other in same.items())
        said.append(f"{counted(len(same), 'picture')} shown more often than the others, as a copy of another: {which}")
    return said


def _without_caption(names: Sequence[str], of: int) -> str:
    if len(names) == of:
        return (
            f"{counted(of, 'picture')}, and no caption: what is learned will show in every prompt, and no word calls "
            "for it. Give a trigger word, one caption for all, or write captions."
        )
    return (
        f"{len(names)} of {of} pictures without a caption: what is in them is learned for every prompt alike. Write "
        f"their captions, or give a trigger word or one caption for all: {listed(names)}"
    )
