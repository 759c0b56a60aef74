"""The names that people give new files: names alone, since the folder is the WebUI's to choose."""

from sara_core.errors import DeltaError
from sara_core.files.names import check_name


def file_name(given: str, ending: str, what: str) -> str:
    """The name of a file with this ending, of what somebody wrote with or without it.

    what: is to be named, in a sentence
    Raises DeltaError for nothing, a path, and a name that no file can have.
    """
    name = given.strip()
    name = name.removesuffix(ending) if ending else name
    if not name:
        raise DeltaError(f"Give {what} a name.")
    if "/" in name or "\\" in name:
        raise DeltaError(f"'{name}' is a path: give {what} a name alone.")
    check_name(f"{name}{ending}", f"The name '{name}'")
    return f"{name}{ending}"
