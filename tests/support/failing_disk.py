"""Work in forked children, each of which is killed, or finds the disk full, before another of its steps on the disk."""

import builtins
import contextlib
import errno
import os
import shutil
import signal

import torch

STEPS = ("open", "fsync", "link", "replace", "rename", "unlink", "mkdir", "rmdir")
# What needs space; a full disk still removes files.
TAKING_SPACE = {"open", "fsync", "link", "mkdir", "write"}
UNDISTURBED, DISTURBED, FAILED = 40, 41, 42
MOST_STEPS = 300


class Disk:
    """Counts the steps of this process on the disk, and disturbs it at one of them, or from that one on.

    at: number of the step, from 1; disturbance: "kill", "interrupt" (once), "full" (from then on), "full once"
    """

    def __init__(self, atomic, at: int, disturbance: str):
        self.at, self.disturbance, self.count = at, disturbance, 0
        for name in STEPS:
            setattr(os, name, self._counted(name, getattr(os, name)))
        atomic.open = lambda *arguments: _Counted(self, self._counted("open", builtins.open)(*arguments))

    @property
    def was_disturbed(self) -> bool:
        return self.count >= self.at

    def step(self, name: str) -> None:
        self.count += 1
        if self.count == self.at and self.disturbance == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.count == self.at and self.disturbance == "interrupt":
            raise KeyboardInterrupt
        is_full = self.count == self.at or (self.count > self.at and self.disturbance == "full")
        if self.disturbance.startswith("full") and is_full and name in TAKING_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _counted(self, name, original):
        def step(*arguments, **options):
            self.step(name)
            return original(*arguments, **options)

        return step


class _Counted:
    """A file whose writes are steps."""

    def __init__(self, disk: Disk, file):
        self.disk, self.file = disk, file

    def write(self, content) -> int:
        self.disk.step("write")
        return self.file.write(content)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *details):
        return self.file.__exit__(*details)


def children(atomic, disturbance: str, folder, check) -> Disk | None:
    """Fork one child after another, the n-th of which is disturbed at its n-th step, until one was undisturbed.

    atomic: the module sara_core.files.atomic that the work uses; folder: as it was before, for each child
    check: called with n after each, with what that has left in the folder
    Returns in each child its Disk, with which it must come to `end`, and None in the parent once all have ended.
    """
    kept = folder.with_name(f"{folder.name} as it was")
    shutil.copytree(folder, kept)
    for at in range(1, MOST_STEPS):
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)  # the pool of more threads does not survive a fork
            return Disk(atomic, at, disturbance)
        _, status = os.waitpid(child, 0)
        how = os.waitstatus_to_exitcode(status)
        assert how in (UNDISTURBED, DISTURBED, -signal.SIGKILL), f"step {at}: ended with {how}"
        check(at)
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        if how == UNDISTURBED:
            shutil.rmtree(kept)
            return None
    raise AssertionError("the work does not come to an end")


@contextlib.contextmanager
def end(disks: list):
    """The work after `children`: ends the child whose Disk is in the list by then, whatever is raised inside."""
    import traceback

    failed = False
    try:
        yield
    except BaseException:
        if not disks:
            raise
        failed = True
        traceback.print_exc()
    finally:
        if disks:
            os._exit(FAILED if failed else DISTURBED if disks[0].was_disturbed else UNDISTURBED)
