"""What a format is: how its files are told from others, read and written.

To add one, write a class for it in a file of its own and put an instance into registry.READERS or WRITERS.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from ..delta import SparseDelta
from ..wording import capitalised
from .foreign_file import ForeignFile
from .request import ReadRequest, WriteRequest
from .result import Conversion


class Sign(NamedTuple):
    """What the name of one tensor tells of its file.

    what: "a LoRA"; remedy: a key of remedies.py, what people do with such a file
    endings, beginnings, within: the name has one of them there
    """

    what: str
    remedy: str
    endings: tuple[str, ...] = ()
    beginnings: tuple[str, ...] = ()
    within: tuple[str, ...] = ()

    def is_in(self, names: Iterable[str]) -> bool:
        """Whether one of the names tells it."""
        return any(
            name.endswith(self.endings) or name.startswith(self.beginnings) or any(part in name for part in self.within)
            for name in names
        )


class Reader(Protocol):
    """A format that deltas are made of. Whoever inherits from it has its answers, where none are of its own.

    called: "a whole model": what a person calls a file of it. The deltas made of one say so in their metadata, for ever
    names: what lists of formats call it; nothing where another reader's name stands for it
    signs: what the names of its tensors tell, the surest first
    needs_base: whether no file of it can be read without the model that it was made for
    takes_density: whether its files change so much that the smaller changes may have to be cut off; for others, which
        lose nothing, asking for a density is an error
    files_in_folder: what its own program calls the one file in the folder that it makes: the folder stands for the file
    """

    called: str
    names: tuple[str, ...] = ()
    signs: tuple[Sign, ...] = ()
    needs_base: bool = True
    takes_density: bool = False
    files_in_folder: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What a file of it is called at the beginning of a sentence."""
        return capitalised(self.called)

    def recognises(self, file: ForeignFile) -> bool:
        """Whether the file is of this format; as it stands here, by `signs`. No tensor is read for it.

        Raises DeltaError for a file that is of this format and incomplete.
        """
        return any(sign.is_in(file.names) for sign in self.signs)

    def read(self, file: ForeignFile, request: ReadRequest) -> Conversion:
        """The delta that a file is or makes, usually by request.made.

        Its entries are by ComfyUI's names with the prefix `diffusion_model.`, positions int32 and values float32,
        bfloat16 or float16 on the CPU: copies, for file and base are closed when it returns. Both belong to the caller;
        neither their tensors nor what is at their paths is changed.
        Dense changes go through request.keep_largest, one weight at a time, so that they are never all in memory.
        What the file says is not trusted: sizes are checked before memory is taken.

        Raises DeltaError for a file that is damaged, lies, or does not fit the base.
        """
        ...


class Writer(Protocol):
    """A format that deltas are written in. Whoever inherits from it has its answers, where none are of its own.

    summary: what a file of it is and what it loses, in a few words
    ending: of its files' names; empty where a folder is written
    readers: the programs (keys of dense.programs.PROGRAMS) that its files can be written for; none if there is nothing
        to choose
    """

    summary: str
    ending: str = ".safetensors"
    readers: tuple[str, ...] = ()

    def write(self, delta: SparseDelta, path: Path, request: WriteRequest) -> str:
        """Write the delta, which has changes and is not changed itself, and return a report for people.

        path: with the right ending; what is there is replaced in one step or, without request.overwrite, left

        Raises DeltaError if the delta cannot be written so or the file cannot be made, and leaves then nothing behind;
        NameTakenError if it would replace something and must not.
        """
        ...
