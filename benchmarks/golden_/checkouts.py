"""The files of a revision, in a folder of their own."""

import shutil
import subprocess
from pathlib import Path

WORKING_TREE = "."


class NoSuchRevision(Exception):
    """git does not know a revision."""


def full_name(repository: Path, revision: str) -> str:
    """The commit that a revision is now, in full; "." stays what it is. Raises NoSuchRevision."""
    if revision == WORKING_TREE:
        return revision
    command = ["git", "-C", str(repository), "rev-parse", "--verify", f"{revision}^{{commit}}"]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        raise NoSuchRevision(f"git knows no revision '{revision}' here.")
    return found.stdout.strip()


def check_out(repository: Path, name: str, folder: Path) -> None:
    """Put all files of a revision into `folder`, which does not exist yet.

    name: a commit, or "." for the working tree with what git does not ignore
    """
    git = ["git", "-C", str(repository)]
    if name != WORKING_TREE:
        archive = folder.with_suffix(".zip")
        subprocess.run([*git, "archive", "--format=zip", f"--output={archive}", name], check=True)
        shutil.unpack_archive(archive, folder)
        archive.unlink()
        return
    listing = [*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for file in filter(None, subprocess.check_output(listing, text=True).split("\0")):
        if (repository / file).is_file():  # one that was removed is listed too
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repository / file, folder / file)
