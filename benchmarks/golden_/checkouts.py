"""The files of a revision, in a folder of their own."""

import shutil
import subprocess
from pathlib import Path

WORKING_TREE = "."


class NoSuchRevision(Exception):
    """git does not know a revision."""


def check_out(repository: Path, revision: str, folder: Path) -> str:
    """Put all files of a revision into `folder`, which does not exist yet; returns the revision's full name.

    revision: anything that git calls one, or "." for the working tree with what git does not ignore

    Raises NoSuchRevision.
    """
    git = ["git", "-C", str(repository)]
    if revision == WORKING_TREE:
        listing = [*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.check_output(listing, text=True)
        for name in filter(None, listed.split("\0")):
            if (repository / name).is_file():  # one that was removed is listed too
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(repository / name, folder / name)
        return "the working tree"
    found = subprocess.run([*git, "rev-parse", "--verify", f"{revision}^{{commit}}"], capture_output=True, text=True)
    if found.returncode:
        raise NoSuchRevision(f"git knows no revision '{revision}' here.")
    name, archive = found.stdout.strip(), folder.with_suffix(".zip")
    subprocess.run([*git, "archive", "--format=zip", f"--output={archive}", name], check=True)
    shutil.unpack_archive(archive, folder)
    archive.unlink()
    return name
