"""Changing untrusted files at random: as plain bytes, and inside their containers, whose own checks would otherwise
refuse nearly everything before our code sees it."""

import io
import json
import random
import struct
import zipfile
import zlib

_NUMBERS = (0, 1, -1, 2, 127, 128, 254, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63))
_FLOATS = tuple(map(float, ("nan", "inf", "-inf", "0", "-0", "1e-45", "3.4e38")))
_DTYPE_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


def of_bytes(content: bytes, choose: random.Random) -> bytes:
    """One to four changes of plain bytes."""
    result = bytearray(content or b"\0")
    for _ in range(choose.choice((1, 1, 2, 4))):
        place = choose.randrange(len(result) or 1)
        length = choose.choice((1, 2, 4, 8, 16, 64))
        kind = choose.randrange(7)
        if kind == 0 and result:
            result[place] ^= 1 << choose.randrange(8)
        elif kind == 1 and result:
            result[place] = choose.randrange(256)
        elif kind == 2:
            del result[place : place + length]
        elif kind == 3:
            result[place:place] = result[place : place + length]
        elif kind == 4:
            result[place:place] = choose.randbytes(choose.choice((1, 2, 4)))
        elif kind == 5:
            layout = choose.choice("bhiq")
            bits = 8 * struct.calcsize(layout)
            number = (choose.choice(_NUMBERS) + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
            result[place : place + bits // 8] = struct.pack("<" + layout, number)
        else:
            result[place : place + 4] = struct.pack("<f", choose.choice(_FLOATS))
    return bytes(result)


def of_safetensors(content: bytes, choose: random.Random) -> bytes:
    """The file with another header or another tensor, well-formed three times out of four."""
    if choose.random() < 0.25:
        return of_bytes(content, choose)
    try:
        tensors, metadata = _read_safetensors(content)
    except (ValueError, KeyError, TypeError, struct.error, AttributeError):
        return of_bytes(content, choose)
    if not tensors:
        return of_bytes(content, choose)
    name = choose.choice(sorted(tensors))
    dtype, shape, data = tensors[name]
    kind = choose.randrange(8)
    if kind <= 2:
        data = _other_data(name, data, choose)
        size = _DTYPE_SIZES[dtype]
        data = data[: len(data) // size * size]
        shape = [len(data) // size] if len(shape) < 2 else shape
    elif kind == 3:
        dtype = choose.choice(list(_DTYPE_SIZES))
        shape = [len(data) // _DTYPE_SIZES[dtype]]
    elif kind == 4:
        shape = choose.choice(([1, *shape], [*shape, 1], shape[::-1], shape[:-1], [len(data) // _DTYPE_SIZES[dtype]]))
    elif kind == 5:
        del tensors[name]
        name = of_bytes(name.encode(), choose).decode("utf-8", "replace") if choose.random() < 0.7 else ""
    elif kind == 6:
        other = choose.choice(sorted(tensors))
        tensors[other], (dtype, shape, data) = tensors[name], tensors[other]
    else:
        key, text = choose.choice(sorted(metadata.items()) or [("sara.version", "1")])
        metadata[key] = _other_text(text, choose)
    if name:
        tensors[name] = (dtype, shape, data)
    return safetensors_file(tensors, metadata)


def of_zip(content: bytes, choose: random.Random) -> bytes:
    """A file of torch.save with one member changed, its checksum right, three times out of four."""
    if choose.random() < 0.25:
        return of_bytes(content, choose)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        name = choose.choice(sorted(members))
        members[name] = of_bytes(members[name], choose)
        result = io.BytesIO()
        with zipfile.ZipFile(result, "w", zipfile.ZIP_STORED) as archive:
            for member, data in members.items():
                archive.writestr(member, data)
        return result.getvalue()
    except Exception:  # an earlier change has left no archive
        return of_bytes(content, choose)


def of_packed_positions(content: bytes, choose: random.Random) -> bytes:
    """Count and elements (int64 each) before an index: the numbers, the stream, or its packed form."""
    head, packed = content[:16], content[16:]
    if choose.random() < 0.3:
        return of_bytes(head, choose)[:16].ljust(16, b"\0") + packed
    return head + _repacked(packed, choose)


def safetensors_file(tensors: dict[str, tuple[str, list[int], bytes]], metadata: dict[str, str]) -> bytes:
    """A file of these (dtype, shape, bytes), whether or not they fit together."""
    header, end = ({"__metadata__": metadata} if metadata else {}), 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values())


def _read_safetensors(content: bytes) -> tuple[dict, dict]:
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, about in header.items():
        begin, end = about["data_offsets"]
        _ = _DTYPE_SIZES[about["dtype"]]
        tensors[name] = (about["dtype"], list(about["shape"]), content[8 + length + begin : 8 + length + end])
    return tensors, dict(metadata)


def _other_data(name: str, data: bytes, choose: random.Random) -> bytes:
    return _repacked(data, choose) if name.endswith("_index") else of_bytes(data, choose)


def _other_text(text: str, choose: random.Random) -> str:
    """JSON with another name or value somewhere in it, or the text changed as it is."""
    try:
        settings = json.loads(text)
        inside = choose.choice([part for part in _containers(settings) if part])
    except (ValueError, IndexError, RecursionError):
        inside = None
    if not inside or choose.random() < 0.2:
        return of_bytes(text.encode(), choose).decode("utf-8", "replace")
    place = choose.choice(sorted(inside) if isinstance(inside, dict) else range(len(inside)))
    kind = choose.randrange(4)
    if kind <= 1:
        hostile = [*_NUMBERS, *_FLOATS, None, True, "", [], {}, {".*": choose.choice(_NUMBERS)}]
        inside[place] = choose.choice([*hostile, json.loads(text)])
    elif kind == 2 and isinstance(inside, dict):
        inside[of_bytes(place.encode(), choose).decode("utf-8", "replace")] = inside.pop(place)
    elif kind == 2:
        inside.insert(place, inside[place])
    else:
        del inside[place]
    return json.dumps(settings)


def _containers(value) -> list:
    """All tables and lists in a tree of JSON, the whole first."""
    found = [value] if isinstance(value, (dict, list)) else []
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        found += _containers(part)
    return found


def _repacked(packed: bytes, choose: random.Random) -> bytes:
    """zlib data with another stream in it, or changed as it is."""
    if choose.random() < 0.6:
        try:
            stream = zlib.decompressobj().decompress(packed, 2**16)
        except zlib.error:
            stream = b""
        return zlib.compress(of_bytes(stream, choose))
    return of_bytes(packed, choose)
