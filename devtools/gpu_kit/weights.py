"""Files of weights, packed: in fp16 the high bytes are alike and the low ones are noise, so they are packed apart.

    python -m devtools.gpu_kit.weights FOLDER TARGET      there: unpacks all of FOLDER into TARGET, by the same names
"""

import lzma
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SUFFIX = ".xz"


def packed(content: bytes) -> bytes:
    """Any bytes, packed; an odd last one stands behind the even places."""
    return lzma.compress(content[0::2] + content[1::2], preset=1)


def unpacked(content: bytes) -> bytes:
    """What `packed` was given."""
    raw = lzma.decompress(content)
    even = (len(raw) + 1) // 2
    whole = bytearray(len(raw))
    whole[0::2], whole[1::2] = raw[:even], raw[even:]
    return bytes(whole)


def pack(root: Path, names: list[str], target: Path) -> None:
    """Pack files of a folder, each into `target` by its own name with a suffix."""
    for name in names:
        file = target / (name + SUFFIX)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(packed((root / name).read_bytes()))


def unpack(folder: Path, target: Path) -> None:
    """Unpack all that `pack` has put into a folder."""

    def one(file: Path) -> None:
        whole = target / file.relative_to(folder).with_suffix("")
        whole.parent.mkdir(parents=True, exist_ok=True)
        whole.write_bytes(unpacked(file.read_bytes()))

    with ThreadPoolExecutor() as together:
        list(together.map(one, sorted(folder.rglob("*" + SUFFIX))))


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
