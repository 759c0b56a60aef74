"""What tells who somebody is (home folder, names of user and computer) is taken out of texts that go to strangers."""

import getpass
import os
import platform
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

USER, COMPUTER, HOME = "<user>", "<computer>", "~"

# Names that tell nothing of a person, and words that a report needs; only as bare words: in a path they go too.
_ANYBODY = {
    "admin", "administrator", "comfy", "comfyui", "debian", "default", "docker", "guest", "home", "linux", "localhost",
    "python", "root", "runner", "sara", "torch", "ubuntu", "user", "users", "windows",
}  # fmt: skip
_SHORTEST = 3
_SEPARATOR = r"[\\/]+"
# Other people's names, too, in what a file says of where it was made, in the order in which they are replaced.
_IN_ANY_PATH = [
    (r"(://)[^/\s@]+@", rf"\1{USER}@"),
    (r"\b((?:smb|cifs|file|ftp|sftp|ssh)://)[^/\s]+(?=/)", rf"\1{COMPUTER}"),
    (r"(?<![:\w/])(//)[^/\s]+(?=/)", rf"\1{COMPUTER}"),
    (r"(?<![\\:\w])(\\{2,4}(?:\?\\{1,2}UNC\\{1,2})?)[^\\/\s:*?\"<>|]+(?=\\)", rf"\1{COMPUTER}"),
    # On Windows, where a name may hold spaces, and on a Mac.
    (rf"({_SEPARATOR}(?:Users|Documents and Settings){_SEPARATOR})[^\\/:*?\"<>|\r\n]+", rf"\1{USER}"),
    (rf"({_SEPARATOR}(?:home|media){_SEPARATOR})[^\\/:\s]+", rf"\1{USER}"),
]


class Privacy:
    """Takes names out of texts: `Privacy(…)(text)`.

    homes: paths of home folders, written as their system writes them
    users: names of users; computers: names of computers and networks

    Names and paths are found in any case, with either slash, doubled backslashes (as JSON has them) and either form of
    accents. A name shorter than three letters, or that anybody's could be (root, user), is found only in a path.
    """

    def __init__(self, homes: Iterable[str] = (), users: Iterable[str] = (), computers: Iterable[str] = ()):
        homes = [home for home in _longest_first(homes) if _parts(home) and not home.rstrip("\\/").endswith(":")]
        users = [*users, *(_parts(home)[-1] for home in homes)]
        self._replacements = [
            *((_path(home), HOME) for home in homes),
            *((re.compile(pattern, re.I), replacement) for pattern, replacement in _IN_ANY_PATH),
            *((_word(name), USER) for name in _longest_first(users) if _tells_something(name)),
            *((_word(name), COMPUTER) for name in _longest_first(computers) if _tells_something(name)),
        ]

    def __call__(self, text: str) -> str:
        for pattern, replacement in self._replacements:
            text = pattern.sub(replacement, text)
        return text


def of_this_machine() -> Privacy:
    """For the user who runs this. Of the environment nothing is read but names of home, user and computer."""
    computer = platform.node()
    computers = [computer, computer.split(".")[0]]
    computers += [os.environ.get(name, "") for name in ("COMPUTERNAME", "USERDOMAIN")]
    homes, users = [], []
    # Neither need exist: a container's numbered user has no name.
    try:
        homes += [str(Path.home()), os.path.realpath(Path.home())]
    except (OSError, RuntimeError):
        pass
    try:
        users.append(getpass.getuser())
    except (OSError, KeyError, ImportError):
        pass
    return Privacy(homes, users, computers)


def _parts(path: str) -> list[str]:
    return [part for part in re.split(_SEPARATOR, path) if part]


def _path(path: str) -> re.Pattern:
    start = _SEPARATOR if path[0] in "\\/" else ""
    return re.compile(rf"(?<![\w.~-]){start}{_SEPARATOR.join(map(_spelled, _parts(path)))}(?![\w-])", re.I)


def _word(name: str) -> re.Pattern:
    # Between letters and digits only: people separate words with underscores, and some languages do not at all.
    before, after = (r"(?<![^\W_])", r"(?![^\W_])") if name.isascii() else ("", "")
    return re.compile(before + _spelled(name) + after, re.I)


def _spelled(name: str) -> str:
    """A pattern of one name: with its accents in either form, and with its spaces also as in addresses."""
    forms = sorted({unicodedata.normalize(form, name) for form in ("NFC", "NFD")})
    return "(?:" + "|".join(re.escape(form).replace(r"\ ", "(?: |%20)") for form in forms) + ")"


def _tells_something(name: str) -> bool:
    return name.casefold() not in _ANYBODY and (len(name) >= _SHORTEST or not name.isascii())


def _longest_first(names: Iterable[str]) -> list[str]:
    return sorted(set(names) - {""}, key=lambda name: (-len(name), name))
