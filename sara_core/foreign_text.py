"""Text that somebody else has written, as text and nothing else, whatever shows it.

Names of tensors and files, titles, descriptions and captions come from files, and files come from strangers. What shows
them (a terminal, a log, a node, a web page, Markdown) takes some characters for commands. `plain` leaves text that all
of these show as it is, and changes only what one of them would obey: [1, 2], a < b and attn.* stay as they are.

Addresses stay, too: one that a page makes a link of leads where it says. Links that say something else do not.
"""

import re
import unicodedata

# A title, or the name of a file or a weight; a text of several sentences; an error with all that it names.
NAME, SENTENCES, MESSAGE = 100, 1000, 2000

_UNKNOWN, _ELLIPSIS = "\ufffd", "…"
_RARE = re.compile(r"[^ -~\n]")
# Commands to terminals, turns of the writing direction and other characters without a shape, halves of characters.
_COMMANDS = {"Cc", "Cf", "Cs"}
_BREAKS = {"Zl", "Zp"}
# Persian, the scripts of India and compound emoji cannot be written without them.
_JOINERS = "\u200c\u200d"
_MARKUP = (
    # Begins an element of HTML, or an address in Markdown.
    (re.compile(r"<(?=[A-Za-z/!?])"), "‹"),
    # A character by its name.
    (re.compile(r"&(?=#?\w)"), "＆"),
    # [[label|address]] is a link on a node of ComfyUI, which keeps a place for it under the name of __LNK0__.
    (re.compile(r"\[\["), "⟦"),
    (re.compile(r"\]\]"), "⟧"),
    (re.compile(r"__(?=LNK\d)"), "ˍˍ"),
    # Links and pictures in Markdown: [label](address), [label][name] with a line [name]: address.
    (re.compile(r"\](?=[(\[])"), "］"),
    (re.compile(r"^(\s*)\[(?=[^\]\n]*\]:)", re.M), r"\1［"),
    (re.compile(r"`"), "ˋ"),
)


def plain(text: object, longest: int = MESSAGE) -> str:
    """`text` in one line that is shown as it is everywhere, of at most `longest` characters.

    What is too long loses its middle. Plain text stays plain if it is put together with other such text, in quotes or
    with a space between.
    """
    return plain_lines(_cut(str(text), longest).replace("\n", " "))


def plain_lines(text: str) -> str:
    """`text` of ours, with foreign text in it, as `plain` makes it; its line breaks stay, and so does its length."""
    text = visible(text)
    for pattern, instead in _MARKUP:
        text = pattern.sub(instead, text)
    return text


def visible(text: str) -> str:
    """`text` with its line breaks, for what knows no markup: every other character that has no shape of its own is
    replaced by one that has."""
    return _RARE.sub(_shape, text)


def escaped_json(text: str) -> str:
    """JSON that says the same, with every character that a terminal would obey in the form \\u001b."""

    def escaped(match: re.Match) -> str:
        letter = match[0]
        if unicodedata.category(letter) not in _COMMANDS | _BREAKS:
            return letter
        return "".join(f"\\u{ord(unit):04x}" for unit in _utf_16(letter))

    return _RARE.sub(escaped, text)


def _utf_16(letter: str) -> str:
    """A character as the one or two that JSON has for it."""
    packed = letter.encode("utf-16-be", "surrogatepass")
    return "".join(chr(int.from_bytes(packed[place : place + 2])) for place in range(0, len(packed), 2))


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    end = longest // 3
    return text[: longest - end - len(_ELLIPSIS)] + _ELLIPSIS + text[len(text) - end :]


def _shape(match: re.Match) -> str:
    letter = match[0]
    if letter in "\t\r" or unicodedata.category(letter) in _BREAKS:
        return " "
    if letter in _JOINERS or unicodedata.category(letter) not in _COMMANDS:
        return letter
    return _UNKNOWN
