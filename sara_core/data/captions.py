"""The text of a caption file, or what to do about a file that holds none."""

import codecs
from pathlib import Path

from ..errors import TrainingError
from ..wording import Sentence, readable_size

# Files in which other programs keep captions: kohya's own ending, tables of many pictures, a table for each.
OTHER_CAPTIONS = frozenset({".caption", ".cap", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".toml"})
# No caption is nearly as long; a log or a table that somebody has put there may be.
MOST_BYTES = 1 << 20
# The longer mark first: that of UTF-32 begins like that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip
_WHITE_SPACE = "\t\n\v\f\r"


def read_caption(path: Path) -> str:
    """The text of a UTF-8 file, with Unix's ends of lines, without white space and its encoding's mark around it.

    Raises TrainingError for a file in another encoding, of bytes that no text has, or too long; OSError if it cannot
    be read.
    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise TrainingError(Sentence(
            "'{name}' is longer than {size}: that is no caption.", name=path.name, size=readable_size(MOST_BYTES)
        ))  # fmt: skip
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            raise TrainingError(Sentence(
                "'{name}' is {encoding}, not UTF-8 text: save it as UTF-8.", name=path.name, encoding=encoding
            ))  # fmt: skip
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TrainingError(Sentence("'{name}' is not UTF-8 text: save it as UTF-8.", name=path.name)) from error
    if odd := {letter for letter in text if letter < " " and letter not in _WHITE_SPACE}:
        raise TrainingError(Sentence(
            "'{name}' holds bytes that no text has ({bytes}), as files have in UTF-16 or after a crash: save it as "
            "UTF-8, or write it anew.", name=path.name, bytes=", ".join(f"{ord(one):#04x}" for one in sorted(odd)[:3]),
        ))  # fmt: skip
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()
