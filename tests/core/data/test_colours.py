"""A picture reaches the training in the colours that a person sees, whatever way its file has of storing them."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, features

from sara_core.data.pictures import PROFILE, TRANSPARENT, read_picture
from sara_core.errors import TrainingError
from tests.support.picture_files import GREEN, RED, SIDE, WHITE, assert_near, saved, seen, square

# --- transparent


def rgba(inside, outside):
    return square("RGBA", inside, outside)


TRANSPARENT_ONES = {
    "RGBA in a PNG": ("png", rgba((*RED, 255), (255, 0, 255, 0)), {}),
    "RGBA in a WebP": ("webp", rgba((*RED, 255), (255, 0, 255, 0)), {"lossless": True, "exact": True}),
    "RGBA in a TIFF": ("tif", rgba((*RED, 255), (255, 0, 255, 0)), {}),
    "RGBA in a TGA": ("tga", rgba((*RED, 255), (255, 0, 255, 0)), {}),
    "RGBA in an AVIF": ("avif", rgba((*RED, 255), (255, 0, 255, 0)), {"quality": 100}),
    "one colour of RGB": ("png", square("RGB", RED, (255, 0, 255)), {"transparency": (255, 0, 255)}),
}


@pytest.mark.parametrize("what", TRANSPARENT_ONES)
def test_what_is_transparent_is_white_and_never_its_hidden_colour(tmp_path, what):
    ending, image, options = TRANSPARENT_ONES[what]
    if ending == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    found = read_picture(saved(tmp_path / f"a.{ending}", image, **options))
    assert_near(found.image.getpixel((8, 8)), RED, 4)
    assert_near(found.image.getpixel((1, 1)), WHITE, 4)
    assert found.remarks == (TRANSPARENT,)


def palette_picture():
    image = Image.new("P", (SIDE, SIDE), 0)
    image.putpalette([*GREEN, *RED, 0, 0, 255] + [0] * 759)
    image.paste(1, (4, 4, 12, 12))
    image.paste(2, (12, 12, 16, 16))
    return image


@pytest.mark.parametrize("transparency, corner", [(0, (0, 0, 255)), (bytes([0, 255, 128]), (127, 127, 255))])
@pytest.mark.parametrize("ending", ["png", "gif"])
def test_transparent_entries_of_a_palette(tmp_path, transparency, corner, ending):
    if ending == "gif" and isinstance(transparency, bytes):
        pytest.skip("a GIF has one")
    path = saved(tmp_path / f"a.{ending}", palette_picture(), transparency=transparency)
    assert (seen(path), seen(path, (1, 1))) == (RED, WHITE)
    assert_near(seen(path, (14, 14)), corner)


def test_half_transparent_is_half_white(tmp_path):
    assert_near(seen(saved(tmp_path / "a.png", rgba((*RED, 128), (0, 0, 0, 0)))), (255, 127, 127))


def test_an_opaque_picture_with_an_alpha_channel_is_not_said_to_be_transparent(tmp_path):
    found = read_picture(saved(tmp_path / "a.png", Image.new("RGBA", (SIDE, SIDE), (*RED, 255))))
    assert found.remarks == () and found.image.getpixel((8, 8)) == RED


def test_grey_with_alpha_in_8_bits_and_one_transparent_grey(tmp_path):
    la = square("LA", (200, 255), (30, 0))
    path = saved(tmp_path / "a.png", la)
    assert (seen(path), seen(path, (1, 1))) == ((200,) * 3, WHITE)
    path = saved(tmp_path / "b.png", square("L", 200, 30), transparency=30)
    assert (seen(path), seen(path, (1, 1))) == ((200,) * 3, WHITE)


def test_colours_that_were_multiplied_by_their_transparency(tmp_path):
    """As TIFFs of paint programs have them; PIL writes none, so the tag that says so is put in."""
    path = saved(tmp_path / "a.tif", Image.new("RGBA", (SIDE, SIDE), (128, 0, 0, 128)))
    plain, multiplied = (struct.pack("<HHII", 338, 3, 1, kind) for kind in (2, 1))
    assert plain in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(plain, multiplied))
    assert_near(seen(path), (255, 127, 127), 3)


def png(path, colour_type, bits, rows, *chunks):
    """A PNG written by hand, of a kind that PIL reads and does not write. rows: bytes of each, 1 × n pixels"""
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    width = len(rows[0]) * 8 // (bits * {0: 1, 2: 3, 4: 2, 6: 4}[colour_type])
    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunk(*one) for one in chunks)
        + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )  # fmt: skip
    return path


BY_HAND = {
    "RGB of 16 bits, a transparent colour": (
        2, 16, [struct.pack(">6H", 0xFF12, 0, 0xFF34, 0x80FF, 0x4000, 0)],
        (b"tRNS", struct.pack(">3H", 0xFF12, 0, 0xFF34)), WHITE, (0x80, 0x40, 0),
    ),
    "grey of 16 bits, a transparent grey": (
        0, 16, [struct.pack(">2H", 300, 0x8080)], (b"tRNS", struct.pack(">H", 300)), WHITE, (0x80,) * 3,
    ),
    "grey of 4 bits, a transparent grey": (0, 4, [b"\x38"], (b"tRNS", b"\0\x03"), WHITE, (0x88,) * 3),
    "grey of 2 bits, a transparent grey": (0, 2, [b"\x61"], (b"tRNS", b"\0\x01"), WHITE, (170,) * 3),
    "grey of 1 bit, white transparent": (0, 1, [b"\x80"], (b"tRNS", b"\0\x01"), WHITE, (0, 0, 0)),
    "grey of 1 bit, black transparent": (0, 1, [b"\x80"], (b"tRNS", b"\0\0"), WHITE, WHITE),
    "grey and alpha of 16 bits": (4, 16, [struct.pack(">4H", 9000, 0, 0x4040, 65535)], None, WHITE, (0x40,) * 3),
    "RGBA of 16 bits": (
        6, 16, [struct.pack(">8H", 65535, 0, 65535, 0, 0x8080, 0, 0, 65535)], None, WHITE, (0x80, 0, 0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BY_HAND)
def test_pngs_of_few_and_many_bits_with_transparency(tmp_path, what):
    colour_type, bits, rows, chunk, first, second = BY_HAND[what]
    path = png(tmp_path / "a.png", colour_type, bits, rows, *([chunk] if chunk else []))
    assert_near(seen(path, (0, 0)), first)
    assert_near(seen(path, (1, 0)), second)


# --- many bits


def sixteen_bits(level):
    return Image.fromarray(np.full((SIDE, SIDE), round(level * 65535), np.uint16))


@pytest.mark.parametrize("name, image, options", [
    ("a.png", sixteen_bits(0.5), {}),
    ("a.tif", sixteen_bits(0.5), {}),
    ("a.tif", sixteen_bits(0.5), {"tiffinfo": {262: 0}}),  # white is 0, and the middle stays the middle
    ("a.pgm", Image.fromarray(np.full((SIDE, SIDE), 32768, np.int32)), {}),
    ("a.tif", Image.fromarray(np.full((SIDE, SIDE), 0.5, np.float32)), {}),
    ("a.pfm", Image.fromarray(np.full((SIDE, SIDE), 0.5, np.float32)), {}),
    ("a.jp2", sixteen_bits(0.5), {"irreversible": False}),
])
def test_grey_of_16_bits_and_float_is_as_light_as_it_was(tmp_path, name, image, options):
    assert_near(seen(saved(tmp_path / name, image, **options)), (128,) * 3)


def test_a_tiff_whose_white_is_zero(tmp_path):
    assert_near(seen(saved(tmp_path / "a.tif", sixteen_bits(0.25), tiffinfo={262: 0})), (191,) * 3)
    path = saved(tmp_path / "b.tif", Image.fromarray(np.full((SIDE, SIDE), 0.25, np.float32)))
    black, white = (struct.pack("<HHII", 262, 3, 1, kind) for kind in (1, 0))
    path.write_bytes(path.read_bytes().replace(black, white))
    assert_near(seen(path), (191,) * 3)


def test_whole_numbers_of_32_bits_fill_their_range(tmp_path):
    path = saved(tmp_path / "a.tif", Image.fromarray(np.full((SIDE, SIDE), 3 * 2**29, np.int32)))
    assert_near(seen(path), (191,) * 3)
    signed, unsigned = (struct.pack("<HHII", 339, 3, 1, kind) for kind in (2, 1))
    path.write_bytes(path.read_bytes().replace(signed, unsigned))
    assert_near(seen(path), (96,) * 3)


@pytest.mark.parametrize("value", [128.0, -0.5, float("nan"), float("inf")])
def test_float_values_of_which_nobody_knows_what_is_white_are_refused(tmp_path, value):
    image = Image.fromarray(np.full((SIDE, SIDE), value, np.float32))
    with pytest.raises(TrainingError, match="'a.tif' has float values.*save it as PNG or JPEG"):
        read_picture(saved(tmp_path / "a.tif", image))


@pytest.mark.parametrize("bit, level", [(0, 0), (1, 255)])
def test_one_bit_is_black_or_white(tmp_path, bit, level):
    assert seen(saved(tmp_path / "a.png", Image.new("1", (SIDE, SIDE), bit))) == (level,) * 3


# --- colours


def rgb_profile(red, green, blue, gamma):
    """An ICC profile with these primaries (XYZ at D50, columns of the matrix) and one gamma: version 2, by hand."""
    def fixed(value):
        return struct.pack(">i", round(value * 65536))

    def xyz(values):
        return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78) + b"\0\0\0\0"
    parts = {
        b"desc": text, b"wtpt": xyz((0.9642, 1, 0.8249)), b"cprt": b"text\0\0\0\0x\0\0\0",
        b"rXYZ": xyz(red), b"gXYZ": xyz(green), b"bXYZ": xyz(blue), b"rTRC": curve, b"gTRC": curve, b"bTRC": curve,
    }  # fmt: skip
    return icc_file(b"RGB ", parts)


def grey_profile(gamma):
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78) + b"\0\0\0\0"
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    return icc_file(b"GRAY", {b"desc": text, b"wtpt": white, b"cprt": b"text\0\0\0\0x\0\0\0", b"kTRC": curve})


def icc_file(space, parts):
    table, content, at = struct.pack(">I", len(parts)), b"", 128 + 4 + 12 * len(parts)
    for name, part in parts.items():
        table += name + struct.pack(">II", at + len(content), len(part))
        content += part + bytes(-len(part) % 4)
    head = struct.pack(">I", 128 + len(table + content)) + bytes(4) + struct.pack(">I", 0x02200000) + b"mntr" + space
    head += b"XYZ " + bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head + bytes(128 - len(head)) + table + content


# The primaries, adapted to D50, as the ICC profiles of these colour spaces have them.
PRIMARIES = {
    "Display P3": ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)),
    "Adobe RGB": ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)),
}
WIDE = {space: rgb_profile(*primaries, 2.2) for space, primaries in PRIMARIES.items()}
STORED = (100, 150, 100)
SRGB_PRIMARIES = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7142]])


def in_srgb(colour, primaries, gamma=2.2):
    """What a colour of other primaries is in sRGB, computed the long way."""
    light = np.linalg.inv(SRGB_PRIMARIES) @ np.array(primaries).T @ (np.array(colour) / 255) ** gamma
    return tuple(np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255)


@pytest.mark.parametrize("name, options", [
    ("a.png", {}), ("a.jpg", {"quality": 100, "subsampling": 0}), ("a.webp", {"lossless": True}), ("a.tif", {}),
])
@pytest.mark.parametrize("space", WIDE)
def test_a_colour_profile_is_converted_to_srgb(tmp_path, name, options, space):
    image = Image.new("RGB", (SIDE, SIDE), STORED)
    found = read_picture(saved(tmp_path / name, image, icc_profile=WIDE[space], **options))
    assert_near(found.image.getpixel((8, 8)), in_srgb(STORED, PRIMARIES[space]))
    assert found.remarks == ()


def test_a_profile_counts_for_palettes_and_pictures_with_alpha_too(tmp_path):
    wanted = in_srgb(STORED, PRIMARIES["Adobe RGB"])
    palette = Image.new("P", (SIDE, SIDE), 0)
    palette.putpalette([*STORED] + [0] * 765)
    assert_near(seen(saved(tmp_path / "p.png", palette, icc_profile=WIDE["Adobe RGB"])), wanted)
    both = rgba((*STORED, 255), (0, 0, 0, 0))
    path = saved(tmp_path / "a.png", both, icc_profile=WIDE["Adobe RGB"])
    assert_near(seen(path), wanted)
    assert seen(path, (1, 1)) == WHITE


def test_srgb_itself_stays(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = saved(tmp_path / "a.png", Image.new("RGB", (SIDE, SIDE), (10, 120, 200)), icc_profile=srgb)
    assert_near(seen(path), (10, 120, 200), 1)


def test_a_grey_profile_counts_and_a_colour_profile_on_grey_too(tmp_path):
    grey = Image.new("L", (SIDE, SIDE), 128)
    path = saved(tmp_path / "a.png", grey, icc_profile=grey_profile(1.0))
    assert_near(seen(path), (188,) * 3, 3)  # half of the light is 188 in sRGB
    path = saved(tmp_path / "b.png", grey, icc_profile=rgb_profile(*[(0.3214, 1 / 3, 0.275)] * 3, 1.0))
    assert_near(seen(path), (188,) * 3, 3)


@pytest.mark.parametrize("profile", [b"no profile", grey_profile(2.2), WIDE["Adobe RGB"][:200]])
def test_a_profile_that_is_damaged_or_of_other_colours_is_said(tmp_path, profile):
    found = read_picture(saved(tmp_path / "a.png", Image.new("RGB", (SIDE, SIDE), RED), icc_profile=profile))
    assert found.image.getpixel((8, 8)) == RED and found.remarks == (PROFILE,)


def test_ink_is_seen_as_a_colour(tmp_path):
    cyan = Image.new("CMYK", (SIDE, SIDE), (255, 0, 0, 0))
    for name in ("a.jpg", "a.tif"):
        assert_near(seen(saved(tmp_path / name, cyan)), (0, 255, 255), 6)
    # An inverted one, as Adobe's programs write it, has a mark of theirs, by which Pillow knows it.
    path = saved(tmp_path / "b.jpg", Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 255)), quality=100)
    content = path.read_bytes()
    if b"Adobe" not in content:
        path.write_bytes(content[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\0\0\0\0\0" + content[2:])
        assert_near(seen(path), (255, 0, 0), 6)


def test_lab_is_seen_as_a_colour(tmp_path):
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(Image.new("RGB", (SIDE, SIDE), (200, 60, 30)), to_lab)
    assert_near(seen(saved(tmp_path / "a.tif", lab)), (200, 60, 30), 6)


def test_the_gamma_of_a_png_counts(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", struct.pack(">I", 100000))
    image = Image.new("RGB", (SIDE, SIDE), (128, 0, 255))
    assert_near(seen(saved(tmp_path / "a.png", image, pnginfo=info)), (186, 0, 255), 3)
    usual = PngImagePlugin.PngInfo()
    usual.add(b"gAMA", struct.pack(">I", 45455))
    assert seen(saved(tmp_path / "b.png", image, pnginfo=usual)) == (128, 0, 255)
