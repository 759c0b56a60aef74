"""What lies in people's folders beside what belongs there, coming and going."""

import contextlib
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

# All that is put there begins so, and nothing else does.
BEGINNING = "odd_"
ENDING = ".safetensors"


def _dangling(path: Path, sound: bytes) -> None:
    path.symlink_to(path.with_name("nowhere"))


def _circle(path: Path, sound: bytes) -> None:
    path.symlink_to(path.name)


def _pipe(path: Path, sound: bytes) -> None:
    os.mkfifo(path)


def _folder(path: Path, sound: bytes) -> None:
    path.mkdir()


def _empty(path: Path, sound: bytes) -> None:
    path.write_bytes(b"")


def _cut(path: Path, sound: bytes) -> None:
    path.write_bytes(sound[: len(sound) // 2])


def _header_only(path: Path, sound: bytes) -> None:
    path.write_bytes(sound[:8])


def _text(path: Path, sound: bytes) -> None:
    path.write_text("<html>404</html>\n" * 40, encoding="utf-8")


def _unreadable(path: Path, sound: bytes) -> None:
    """Not for the super-user, for whom it is only one more."""
    path.write_bytes(sound)
    path.chmod(0)


MAKERS: dict[str, Callable[[Path, bytes], None]] = {
    "dangling": _dangling, "circle": _circle, "pipe": _pipe, "folder": _folder, "empty": _empty, "cut": _cut,
    "header": _header_only, "text": _text, "unreadable": _unreadable,
}  # fmt: skip


def places(base: Path) -> dict[str, Path]:
    """The folders that ComfyUI and the pack list: name → path."""
    models, output = base / "models", base / "output"
    return {
        "sara": models / "sara", "loras": models / "loras", "checkpoints": models / "checkpoints",
        "saved": output / "sara", "unsaved": output / "sara" / "unsaved", "baked": output / "checkpoints",
        "snapshots": output / "sara_snapshots",
    }  # fmt: skip


def make(folder: Path, kind: str, sound: bytes) -> Path:
    """One odd file; if one of its kind is there, that. sound: the content of a file that is as it should be."""
    path = folder / f"{BEGINNING}{kind}{ENDING}"
    if not os.path.lexists(path):
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # somebody else made it just now
            MAKERS[kind](path, sound)
    return path


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def lying_about(base: Path, sound: bytes, kinds: list[str]) -> Iterator[None]:
    """Odd files of some kinds in all folders, as long as the block lasts."""
    made = [make(folder, kind, sound) for folder in places(base).values() for kind in kinds]
    try:
        yield
    finally:
        for path in made:
            remove(path)


@contextlib.contextmanager
def coming_and_going(base: Path, sound: bytes, choose: random.Random) -> Iterator[None]:
    """Odd files are made and removed in all folders, as fast as it goes, as long as the block lasts."""
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            path = make(choose.choice(list(places(base).values())), choose.choice(list(MAKERS)), sound)
            ended.wait(0.002)
            remove(path)

    with _beside(work, ended):
        yield


@contextlib.contextmanager
def rewritten(path: Path, sound: bytes) -> Iterator[None]:
    """A file that another program writes again and again, from nothing to its end, as long as the block lasts."""
    ended = threading.Event()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sound)

    def work() -> None:
        while not ended.wait(0.01):
            with open(path, "wb") as file:
                for begin in range(0, len(sound), 1 << 16):
                    file.write(sound[begin : begin + (1 << 16)])
                    file.flush()

    try:
        with _beside(work, ended):
            yield
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _beside(work: Callable[[], None], ended: threading.Event) -> Iterator[None]:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
