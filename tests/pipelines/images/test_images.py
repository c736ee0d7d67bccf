"""Reading images: PIL pixel by pixel, hostile bytes, augmentation, and the exported graph."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from PIL import Image, ImageOps

from pipelines import images
from pipelines.images import augmentation, decoding

pytestmark = pytest.mark.filterwarnings("ignore:Palette images with Transparency")

RNG = np.random.default_rng(0)
# Smooth colors, so that JPEG has something to keep, with noise on top.
PICTURE = Image.fromarray(RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((61, 45))
NOISE = Image.fromarray(RNG.integers(0, 256, (19, 23, 3), dtype=np.uint8))
GREY16 = RNG.integers(0, 65536, (19, 23), dtype=np.uint16)

inspect = tf.function(images.inspect, input_signature=[tf.TensorSpec((), tf.string)])
decode = tf.function(images.decode, input_signature=[tf.TensorSpec((), tf.string)])
evaluate = tf.function(
    images.read_for_evaluation,
    input_signature=[tf.TensorSpec((), tf.string), tf.TensorSpec((), tf.int32)],
)
read_batch = tf.function(
    lambda encoded: images.read_batch(encoded, 16),
    input_signature=[tf.TensorSpec((None,), tf.string)],
)


def reason_of(encoded: bytes) -> str:
    return inspect(encoded).numpy().decode()


def written(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pil_pixels(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def png(pixels: np.ndarray, color_type: int, *, interlaced: bool = False) -> bytes:
    """A PNG of 8- or 16-bit channels, in forms that PIL does not write."""
    height, width = pixels.shape[:2]
    big_endian = pixels.astype(pixels.dtype.newbyteorder(">"))
    passes = [(0, 0, 1, 1)]
    if interlaced:  # Adam7: first row, first column, and their steps
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)]
        passes += [(2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(
        b"\0" + row.tobytes() for y, x, dy, dx in passes for row in big_endian[y::dy, x::dx]
    )
    depth = 8 * pixels.dtype.itemsize
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def bmp(
    rows: np.ndarray,
    *,
    header_size: int = 40,
    top_down: bool = False,
    compression: int = 0,
    palette: np.ndarray | None = None,
    masks: tuple[int, ...] = (),
) -> bytes:
    """A BMP of (H, W) palette indices or (H, W, 3 or 4) blue, green, red (, unused)."""
    height, width = rows.shape[:2]
    bits = 8 * (rows.shape[2] if rows.ndim == 3 else 1)
    lines = rows.reshape(height, -1)
    lines = np.pad(lines, ((0, 0), (0, -lines.shape[1] % 4)))
    colors = b"" if palette is None else palette.tobytes()
    info = struct.pack(
        "<IiiHHIIiiII",
        *(header_size, width, -height if top_down else height, 1, bits, compression),
        *(lines.size, 2835, 2835, 0 if palette is None else len(palette), 0),
    )
    info += struct.pack(f"<{len(masks)}I", *masks)
    info += b"\0" * (14 + header_size - 14 - len(info)) + colors
    start = 14 + len(info)
    data = (lines if top_down else lines[::-1]).tobytes()
    return struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start) + info + data


def with_frame(gif: bytes, *, screen: tuple[int, int], place: tuple[int, int]) -> bytes:
    """The GIF with another logical screen, its first frame at `place`."""
    descriptor = gif.index(b",\0\0\0\0")
    moved = gif[: descriptor + 1] + struct.pack("<HH", *place) + gif[descriptor + 5 :]
    return moved[:6] + struct.pack("<HH", *screen) + moved[10:]


BGR = np.asarray(NOISE)[..., ::-1]
BGRX = np.dstack([BGR, np.asarray(NOISE)[..., 0]])
PALETTE = RNG.integers(0, 256, (256, 4), dtype=np.uint8)
INDICES = RNG.integers(0, 256, (19, 23), dtype=np.uint8)
STANDARD_MASKS = (0xFF0000, 0x00FF00, 0x0000FF)
PALETTED = NOISE.quantize(200)
ANIMATION = written(
    PALETTED, "GIF", save_all=True, append_images=[ImageOps.flip(NOISE).quantize(200)] * 3
)

JPEGS = {
    "baseline": written(PICTURE, "JPEG"),
    "progressive": written(PICTURE, "JPEG", progressive=True),
    "without subsampling": written(PICTURE, "JPEG", subsampling=0),
    "4:2:2": written(PICTURE, "JPEG", subsampling=1),
    "restart markers": written(PICTURE, "JPEG", restart_marker_rows=1),
    "coarse": written(PICTURE, "JPEG", quality=5),
    "gray": written(PICTURE.convert("L"), "JPEG"),
    "RGB": written(PICTURE, "JPEG", keep_rgb=True),
    "CMYK": written(PICTURE.convert("CMYK"), "JPEG"),
    "ICC profile in segments": written(PICTURE, "JPEG", icc_profile=bytes(200_000)),
    "comment": written(PICTURE, "JPEG", comment=b"Exif\0\0 \xff\xe1 \xff\xd9"),
    "stray bytes before a segment": written(PICTURE, "JPEG").replace(
        b"\xff\xdb", b"\0\xff\xff\xdb", 1
    ),
}
EXACT = {
    **{f"PNG {mode}": written(NOISE.convert(mode), "PNG") for mode in ("1", "L", "RGB", "P")},
    **{f"PNG palette of {n} bits": written(NOISE.quantize(2**n), "PNG") for n in (1, 2, 4, 8)},
    "PNG with alpha": written(Image.fromarray(BGRX, "RGBA"), "PNG"),
    "PNG gray with alpha": written(Image.fromarray(BGRX[..., :2].copy(), "LA"), "PNG"),
    "PNG transparent index": written(PALETTED, "PNG", transparency=7),
    "PNG transparent indices": written(PALETTED, "PNG", transparency=bytes(range(200))),
    "PNG transparent color": written(NOISE, "PNG", transparency=NOISE.getpixel((3, 3))),
    "PNG interlaced": png(np.asarray(NOISE), 2, interlaced=True),
    "GIF": written(PALETTED, "GIF", interlace=0),
    "GIF interlaced": written(PALETTED, "GIF", interlace=1),
    "GIF gray": written(NOISE.convert("L"), "GIF"),
    "GIF of 2 colors": written(NOISE.convert("1"), "GIF"),
    "GIF transparent": written(PALETTED, "GIF", transparency=7),
    "GIF comment": written(PALETTED, "GIF", comment=b"," * 600),
    "GIF animation": ANIMATION,
    "GIF smaller than its screen": with_frame(
        written(PALETTED, "GIF"), screen=(40, 31), place=(5, 9)
    ),
    "GIF transparent, smaller than its screen": with_frame(
        written(PALETTED, "GIF", transparency=7), screen=(40, 31), place=(5, 9)
    ),
    "GIF reaching out of its screen": with_frame(
        written(PALETTED, "GIF"), screen=(20, 11), place=(5, 9)
    ),
    "GIF without trailer": written(PALETTED, "GIF")[:-1],
    "BMP 24": bmp(BGR),
    "BMP 24 top-down": bmp(BGR, top_down=True),
    "BMP 32": bmp(BGRX),
    "BMP 32 bit masks": bmp(BGRX, header_size=56, compression=3, masks=(*STANDARD_MASKS, 0)),
    "BMP 32 V5 top-down": bmp(
        BGRX, header_size=124, compression=3, masks=(*STANDARD_MASKS, 0xFF000000), top_down=True
    ),
    "BMP palette": bmp(INDICES, palette=PALETTE),
    "BMP short palette": bmp(INDICES % 50, palette=PALETTE[:50]),
    "BMP gray": written(NOISE.convert("L"), "BMP"),
    "BMP by PIL": written(NOISE, "BMP"),
}

TRANSPARENT = Image.fromarray(BGRX, "RGBA")
TURNED = Image.Exif()
TURNED[0x0112] = 6
WEBPS = {
    "lossy": written(NOISE, "WEBP"),
    "lossless": written(NOISE, "WEBP", lossless=True),
    "lossy with alpha": written(TRANSPARENT, "WEBP"),
    "lossless with alpha": written(TRANSPARENT, "WEBP", lossless=True, exact=True),
    "gray": written(NOISE.convert("L"), "WEBP"),
    "EXIF": written(NOISE, "WEBP", exif=TURNED),
    "EXIF without prefix": written(NOISE, "WEBP", exif=TURNED.tobytes()[6:]),
    "EXIF, lossless with alpha": written(TRANSPARENT, "WEBP", lossless=True, exif=TURNED),
    "ICC profile": written(NOISE, "WEBP", icc_profile=bytes(2001)),
    "bytes after its end": written(NOISE, "WEBP") + b"ANMF" + bytes(9),
}
WEBP = WEBPS["lossy"]
MOVING = written(NOISE, "WEBP", save_all=True, append_images=[ImageOps.flip(NOISE)])


@pytest.mark.parametrize("name", WEBPS)
def test_webp_is_exactly_as_pil_reads_it(name):
    assert reason_of(WEBPS[name]) == ""
    np.testing.assert_array_equal(decode(WEBPS[name]), pil_pixels(WEBPS[name]))


@pytest.mark.parametrize("name", JPEGS)
def test_jpeg_is_as_pil_reads_it(name):
    assert reason_of(JPEGS[name]) == ""
    difference = decode(JPEGS[name]).numpy().astype(int) - pil_pixels(JPEGS[name])
    assert np.abs(difference).max() <= 2  # the two may be built on different versions of libjpeg


@pytest.mark.parametrize("name", EXACT)
def test_lossless_format_is_exactly_as_pil_reads_it(name):
    assert reason_of(EXACT[name]) == ""
    np.testing.assert_array_equal(decode(EXACT[name]), pil_pixels(EXACT[name]))


@pytest.mark.parametrize(("channels", "color_type"), [(1, 0), (2, 4), (3, 2), (4, 6)])
def test_16_bit_png_keeps_the_high_byte(channels, color_type):
    pixels = RNG.integers(0, 65536, (19, 23, channels), dtype=np.uint16)
    expected = (pixels[..., :3] if channels > 2 else pixels[..., [0, 0, 0]]) >> 8
    np.testing.assert_array_equal(decode(png(pixels, color_type)), expected)


def test_photographs_are_as_pil_reads_them(shared_data):
    for path in sorted((shared_data / "voc_subset" / "images").iterdir())[::50]:
        encoded = path.read_bytes()
        assert reason_of(encoded) == ""
        difference = decode(encoded).numpy().astype(int) - pil_pixels(encoded)
        assert np.abs(difference).max() <= 2, path.name


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, form, byte_order):
    exif = Image.Exif()
    exif.endian = byte_order
    exif[0x010F] = "a maker"  # so that the orientation is not the first entry
    exif[0x0112] = orientation
    encoded = written(PICTURE, form, exif=exif.tobytes())
    assert (b"II*\0" if byte_order == "<" else b"MM\0*") in encoded
    difference = decode(encoded).numpy().astype(int) - pil_pixels(encoded)
    assert np.abs(difference).max() <= 2


def comments(count: int, length: int) -> bytes:
    """JPEG segments of comments, each of so many bytes that look like other segments."""
    content = (b"\xff\xe1\0\x10Exif\0\0\xff\xc0\0" * length)[:length]
    return count * (b"\xff\xfe" + struct.pack(">H", 2 + length) + content)


def test_exif_and_frame_are_found_wherever_they_begin():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = written(PICTURE, "JPEG", exif=exif.tobytes())
    expected = decode(turned).numpy()
    assert expected.shape[:2] == PICTURE.size
    plain = decode(JPEG).numpy()
    before = [(1, length) for length in range(1100)]
    before += [(count, length) for count in (2, 14, 15, 16, 17, 33, 200) for length in (0, 9, 700)]
    before += [(3, 65_533)]
    for count, length in before:
        inserted = comments(count, length)
        np.testing.assert_array_equal(decode(turned[:2] + inserted + turned[2:]), expected)
        np.testing.assert_array_equal(decode(JPEG[:2] + inserted + JPEG[2:]), plain)


def test_broken_exif_leaves_a_picture_as_it_is():
    plain = decode(written(PICTURE, "JPEG")).numpy()
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    for content in (
        b"",
        b"MM\0*",
        b"MM\0*\xff\xff\xff\xff",
        b"XX\0*\0\0\0\x08\0\x01" + entry,
        b"MM\0*\0\0\0\x08\xff\xff",
        b"MM\0*\0\0\0\x08\0\x01" + entry.replace(b"\0\x06", b"\0\x09"),
        b"MM\0*\0\0\0\x08\0\x00" + entry,
    ):
        encoded = written(PICTURE, "JPEG", exif=b"Exif\0\0" + content)
        assert reason_of(encoded) == ""
        np.testing.assert_array_equal(decode(encoded), plain)


def declared(encoded: bytes, place: int, pattern: str, *numbers: int) -> bytes:
    """The bytes with numbers written over those at `place`."""
    new = struct.pack(pattern, *numbers)
    return encoded[:place] + new + encoded[place + len(new) :]


JPEG = JPEGS["baseline"]
FRAME = JPEG.index(b"\xff\xc0")
CMYK = JPEGS["CMYK"]
ADOBE = CMYK.index(b"\xff\xee\0\x0eAdobe")
GIF = EXACT["GIF"]
PNG = EXACT["PNG RGB"]
REFUSED = {
    "no bytes": (b"", "empty"),
    "text": (b"<html>404</html>", "no known image format; JPEG, PNG, GIF, WebP and BMP are"),
    "one byte": (b"\xff", "no known image format"),
    "WebP start": (WEBP[:20], "truncated"),
    "WebP cut": (WEBP[:-2], "truncated"),
    "WebP animation": (MOVING, "animated WebP is not read"),
    "WebP animation that its header denies": (
        declared(MOVING, 20, "B", MOVING[20] & ~2),
        "animated WebP is not read",
    ),
    "WebP without image": (b"RIFF\x0c\0\0\0WEBPICCP\0\0\0\0", "no image"),
    "WebP of another canvas": (declared(WEBPS["EXIF"], 24, "B", 9), "declares 10 x"),
    "WebP without key frame": (declared(WEBP, 20, "B", WEBP[20] | 1), "no valid header"),
    "WebP lossless, other version": (
        declared(WEBPS["lossless"], 24, "B", WEBPS["lossless"][24] | 0x20),
        "no valid header",
    ),
    "WebP too large": (declared(WEBP, 26, "<HH", 16_383, 16_383), "16383 x 16383"),
    "sound": (b"RIFF\x0c\0\0\0WAVEfmt \0\0\0\0", "no known image format"),
    "TIFF": (written(NOISE, "TIFF"), "TIFF"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
    "JPEG 2000": (written(NOISE, "JPEG2000"), "JPEG 2000 is not read"),
    "AVIF": (b"\0\0\0\x18ftypavif\0\0\0\0", "AVIF"),
    "JPEG start": (b"\xff\xd8\xff", "cut off"),
    "JPEG frame cut": (JPEG[: FRAME + 8], "cut off"),
    "JPEG without frame": (JPEG[:FRAME] + b"\xff\xda\0\x0c" + bytes(20), "no frame header"),
    "JPEG of endless segments": (b"\xff\xd8" + b"\xff\xd0" * 99_999, "segments"),
    "JPEG lossless": (declared(JPEG, FRAME + 1, "B", 0xC3), "SOF3"),
    "JPEG arithmetic": (declared(JPEG, FRAME + 1, "B", 0xC9), "SOF9"),
    "JPEG of 12 bits": (declared(JPEG, FRAME + 4, "B", 12), "12 bits"),
    "JPEG of 2 channels": (declared(JPEG, FRAME + 9, "B", 2), "2 channels"),
    "CMYK without Adobe": (CMYK[:ADOBE] + CMYK[ADOBE + 16 :], "Adobe"),
    "JPEG of no height": (declared(JPEG, FRAME + 5, ">HH", 0, 61), "61 x 0"),
    "JPEG too large": (declared(JPEG, FRAME + 5, ">HH", 60_000, 50_000), "50000 x 60000"),
    "JPEG too long": (declared(JPEG, FRAME + 5, ">HH", 1, 65_535), "65535 x 1"),
    "PNG cut": (PNG[:30], "cut off"),
    "PNG without header": (PNG[:8] + PNG[33:], "header"),
    "PNG of 3 bits": (declared(PNG, 24, "BB", 3, 0), "color type 0 of 3 bits"),
    "PNG of no width": (declared(PNG, 16, ">II", 0, 9), "0 x 9"),
    "PNG too large": (declared(PNG, 16, ">II", 2**31, 2**31), "2147483648 x 2147483648"),
    "GIF cut": (GIF[:12], "cut off"),
    "GIF without image": (GIF[: 13 + 768] + b";" + bytes(20), "no image"),
    "GIF without palette": (GIF[:10] + b"\0\0\0" + GIF[GIF.index(b",\0\0\0\0") :], "palette"),
    "GIF of no size": (declared(GIF, GIF.index(b",\0\0\0\0") + 5, "<HH", 0, 9), "0 x 9"),
    "GIF too large": (declared(GIF, 6, "<HH", 50_000, 40_000), "50000 x 40000"),
    "BMP cut": (b"BM\0\0", "cut off"),
    "BMP OS/2": (declared(EXACT["BMP 24"], 14, "<I", 12), "OS/2"),
    "BMP other header": (declared(EXACT["BMP 24"], 14, "<I", 64), "64 bytes"),
    "BMP of 1 bit": (written(NOISE.convert("1"), "BMP"), "1 bits"),
    "BMP of 16 bits": (declared(EXACT["BMP 24"], 28, "<H", 16), "16 bits"),
    "BMP run-length": (declared(EXACT["BMP palette"], 30, "<I", 1), "compression 1"),
    "BMP other masks": (
        bmp(BGRX, header_size=56, compression=3, masks=(0xFF, 0xFF00, 0xFF0000, 0)),
        "bit masks",
    ),
    "BMP truncated": (EXACT["BMP 24"][:-1], "truncated"),
    "BMP data in header": (declared(EXACT["BMP palette"], 10, "<I", 54), "overlap"),
    "BMP too large": (declared(EXACT["BMP 24"], 18, "<ii", 2**31 - 1, -(2**31)), "2147483648"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_names_its_reason(name):
    encoded, part = REFUSED[name]
    assert part in reason_of(encoded)
    with pytest.raises(tf.errors.InvalidArgumentError, match=part.replace("/", ".")):
        decode(encoded)


def test_limit_is_on_pixels():
    at_limit = declared(PNG, 16, ">II", 10_000, images.MAX_PIXELS // 10_000)
    assert reason_of(at_limit) == ""
    beyond = declared(PNG, 16, ">II", 10_000, images.MAX_PIXELS // 10_000 + 1)
    assert str(images.MAX_PIXELS) in reason_of(beyond)


@pytest.mark.parametrize(
    "encoded",
    [JPEG, JPEGS["progressive"], PNG, GIF, ANIMATION],
    ids=["JPEG", "progressive JPEG", "PNG", "GIF", "animation"],
)
def test_truncated_data_are_refused_not_filled(encoded):
    whole = decode(encoded).numpy()
    for share in (0.55, 0.8, 0.97):
        part = encoded[: int(len(encoded) * share)]
        try:
            pixels = decode(part).numpy()
        except tf.errors.InvalidArgumentError:
            continue
        # An animation may end after the frame that is read.
        np.testing.assert_array_equal(pixels, whole)
        assert encoded is ANIMATION


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("side", "ratio"), [(127, 1), (128, 2), (255, 2), (256, 4), (600, 8)])
def test_a_large_jpeg_is_decoded_at_twice_the_size_that_is_needed(side, ratio, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = written(PICTURE.resize((side + 7, side)), "JPEG", exif=exif.tobytes())
    part = images.decode_window(encoded, decoding.whole, 32, full_decoding=False)
    stored = (-(-side // ratio), -(-(side + 7) // ratio))
    assert tuple(part.shape[:2]) == (stored if orientation == 1 else stored[::-1])
    with Image.open(io.BytesIO(encoded)) as image:
        image.draft("RGB", ((side + 7) // ratio, side // ratio))
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
    assert np.abs(part.numpy() - expected).max() <= 2


def test_gif_of_countless_blocks_is_given_up(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_GIF_BLOCKS", 1)
    for name in ("_decode_gif", "_decode_other"):
        monkeypatch.setattr(decoding, name, getattr(decoding, name).__wrapped__)
    with pytest.raises(tf.errors.InvalidArgumentError, match="more than 1 blocks"):
        images.decode(written(PICTURE.convert("P"), "GIF"))


def test_bmp_index_beyond_its_palette_is_an_error():
    with pytest.raises(tf.errors.InvalidArgumentError, match="palette"):
        decode(bmp(INDICES, palette=PALETTE[:50]))


def hostile_strings() -> list[bytes]:
    rng = np.random.default_rng(1)
    seeds = [JPEG, CMYK, JPEGS["progressive"], PNG, EXACT["PNG P"], GIF, ANIMATION]
    seeds += [EXACT["BMP palette"], EXACT["BMP 32 bit masks"], MOVING, *WEBPS.values()]
    exif = Image.Exif()
    exif[0x0112] = 6
    seeds += [written(PICTURE, form, exif=exif) for form in ("JPEG", "PNG")]
    strings = [encoded for encoded, _ in REFUSED.values()]
    for seed in seeds:
        for _ in range(8):
            strings.append(seed[: rng.integers(1, len(seed))])
            flipped = bytearray(seed)
            # Half of the flips hit the header.
            end = len(seed) if rng.random() < 0.5 else min(len(seed), 64)
            for place in rng.integers(0, end, rng.integers(1, 6)):
                flipped[place] ^= 1 << rng.integers(0, 8)
            strings.append(bytes(flipped))
            strings.append(seed[: rng.integers(2, 40)] + rng.bytes(rng.integers(0, 300)))
        strings.append(rng.bytes(100))
    return strings


def test_hostile_bytes_never_harm_their_neighbours():
    strings = hostile_strings()
    good = [JPEG, PNG, GIF, EXACT["BMP palette"]]
    batch = [string for bad in strings for string in (bad, good[len(bad) % 4])]
    pixels, errors = read_batch(tf.constant(batch))
    pixels, errors = pixels.numpy(), errors.numpy()
    assert len(strings) > 300
    assert set(errors[1::2]) == {b""}
    expected = {string: evaluate(string, 16).numpy() for string in good}
    for image, string in zip(pixels[1::2], batch[1::2], strict=True):
        np.testing.assert_array_equal(image, expected[string])
    failed = errors != b""
    assert failed[: 2 * len(REFUSED) : 2].all()
    assert not pixels[failed].any()
    assert np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 255
    for string, error in zip(batch, errors, strict=True):
        reason = reason_of(string)  # never raises
        assert reason.encode() == error or (not reason and b"corrupt or truncated" in error)


def test_batch_equals_single_images_exactly(drawn_photographs):
    batch = [path.read_bytes() for path in drawn_photographs[:6]]
    pixels, errors = images.read_batch(tf.constant(batch), 64)
    assert pixels.shape == (6, 64, 64, 3) and pixels.dtype == tf.float32
    assert set(errors.numpy()) == {b""}
    singles = [evaluate(encoded, 64) for encoded in batch]
    np.testing.assert_array_equal(pixels, tf.stack(singles))


def test_empty_batch():
    pixels, errors = read_batch(tf.zeros((0,), tf.string))
    assert pixels.shape == (0, 16, 16, 3)
    assert errors.shape == (0,)


@pytest.mark.parametrize("size", [(45, 61), (450, 700), (9, 300), (1, 1), (24, 24)])
def test_resize_is_pils_antialiased_bilinear(size):
    # A full-contrast pattern: without antialiasing the largest of these would be far off.
    pattern = RNG.integers(0, 2, (*size, 3)).astype(np.float32) * 255
    expected = [
        Image.fromarray(channel, "F").resize((24, 24), Image.Resampling.BILINEAR)
        for channel in np.moveaxis(pattern, 2, 0)
    ]
    result = images.resize(tf.cast(pattern, tf.uint8), 24)
    assert result.dtype == tf.float32
    np.testing.assert_allclose(result, np.stack(expected, -1), atol=0.01)


def reference_colors(pixel, brightness, contrast, saturation, hue):
    """One step after the other, on the definitions of luma, and of hue as an angle in YIQ."""
    red, green, blue = (np.asarray(pixel, np.float64) + brightness) * contrast
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    red, green, blue = (luma + saturation * (channel - luma) for channel in (red, green, blue))
    in_phase = 0.595716 * red - 0.274453 * green - 0.321263 * blue
    quadrature = 0.211456 * red - 0.522591 * green + 0.311135 * blue
    turned = (in_phase + 1j * quadrature) * np.exp(1j * np.deg2rad(hue))
    to_yiq = [[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263]]
    to_yiq.append([0.211456, -0.522591, 0.311135])
    return np.linalg.solve(to_yiq, [luma, turned.real, turned.imag])


def test_color_matrix_equals_the_steps_one_by_one():
    rng = np.random.default_rng(2)
    for _ in range(20):
        pixel = rng.uniform(0, 255, 3)
        change = rng.uniform([-32, 0.5, 0.5, -18], [32, 1.5, 1.5, 18])
        matrix, offset = images.color_matrix(*change.astype(np.float32))
        np.testing.assert_allclose(
            matrix.numpy() @ pixel + offset.numpy(), reference_colors(pixel, *change), atol=2e-3
        )
    matrix, offset = images.color_matrix(0.0, 1.0, 1.0, 0.0)
    np.testing.assert_allclose(matrix, np.eye(3), atol=1e-6)
    np.testing.assert_array_equal(offset, np.zeros(3))


def augmented(image, image_size, num, flip_probability=0.5) -> np.ndarray:
    """The image under `num` seeds."""
    augmentation = images.Augmentation(flip_probability=flip_probability)
    augment = tf.function(
        lambda seeds: tf.map_fn(
            lambda seed: images.augment(image, image_size, seed, augmentation),
            seeds,
            fn_output_signature=tf.float32,
        )
    )
    return augment(tf.stack([tf.range(num), tf.fill([num], 7)], axis=1)).numpy()


def test_augmentation_is_a_function_of_image_and_seed():
    encoded = JPEGS["baseline"]
    first = images.read_for_training(encoded, 32, tf.constant([3, 4]))
    again = images.read_for_training(encoded, 32, tf.constant([3, 4], tf.int64))
    other = images.read_for_training(encoded, 32, tf.constant([4, 3]))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1
    in_pipeline = tf.data.Dataset.from_tensors(encoded).map(
        lambda encoded: images.read_for_training(encoded, 32, tf.constant([3, 4]))
    )
    np.testing.assert_array_equal(first, in_pipeline.get_single_element())
    assert first.dtype == tf.float32 and first.shape == (32, 32, 3)
    assert tf.reduce_min(first) >= 0 and tf.reduce_max(first) <= 255


def in_binomial_bounds(successes, trials, probability) -> bool:
    return scipy.stats.binomtest(int(successes), trials, probability).pvalue > 0.001


def test_color_changes_have_their_ranges_and_probabilities():
    # Constant pictures show the affine map: of gray, offset and contrast alone.
    num = 2000
    dark, light, red = (
        augmented(tf.fill((3, 3, 3), tf.constant(0, tf.uint8)) + color, 1, num)[:, 0, 0]
        for color in (
            tf.constant([60, 60, 60], tf.uint8),
            tf.constant([120, 120, 120], tf.uint8),
            tf.constant([120, 80, 90], tf.uint8),
        )
    )
    np.testing.assert_allclose(dark, dark[:, :1].repeat(3, 1), atol=1e-3)  # gray stays gray
    contrast = (light - dark)[:, 0] / 60
    brightness = dark[:, 0] / contrast - 60
    assert contrast.min() >= 0.499 and contrast.max() <= 1.501
    assert brightness.min() >= -32.01 and brightness.max() <= 32.01
    to_chroma = np.array([[0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
    chroma, original = ((color @ to_chroma.T) @ [1, 1j] for color in (red, [120, 80, 90]))
    turned = chroma / contrast / original
    saturation, hue = np.abs(turned), np.rad2deg(np.angle(turned))
    assert saturation.min() >= 0.499 and saturation.max() <= 1.501
    assert np.abs(hue).max() <= 18.01
    for name, change, spread in (
        ("contrast", contrast - 1, 0.5),
        ("brightness", brightness, 32),
        ("saturation", saturation - 1, 0.5),
        ("hue", hue, 18),
    ):
        applied = np.abs(change) > 1e-4 * spread
        assert in_binomial_bounds(applied.sum(), num, 0.5), name
        uniform = scipy.stats.uniform(-spread, 2 * spread)
        assert scipy.stats.kstest(change[applied], uniform.cdf).pvalue > 0.001, name
    applied = [np.abs(brightness) > 0.01, np.abs(contrast - 1) > 1e-4, np.abs(hue) > 0.01]
    table = np.histogramdd(np.array(applied, int).T, bins=2)[0]
    assert scipy.stats.chisquare(table.ravel()).pvalue > 0.001  # independent of one another


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_mirroring(probability):
    # The sign of the gradient tells whether the picture was mirrored.
    ramp = np.broadcast_to(np.arange(0, 250, 5, dtype=np.uint8)[None, :, None], (20, 50, 3))
    pictures = augmented(tf.constant(ramp), 8, 400, flip_probability=probability)
    mirrored = pictures[:, 4, 0, 1] > pictures[:, 4, -1, 1]
    if probability in (0.0, 1.0):
        assert (mirrored == bool(probability)).all()
    else:
        assert in_binomial_bounds(mirrored.sum(), 400, probability)


def crops(height: int, width: int, num: int, monkeypatch) -> tuple[np.ndarray, ...]:
    """top, bottom, left, right of `num` crops, read from a picture that names its pixels."""

    def corners(image, image_size):
        return tf.tile(tf.stack([image[0, 0], image[-1, -1]])[..., None] / 16, (1, 1, image_size))

    monkeypatch.setattr(augmentation, "resized_columns", corners)
    monkeypatch.setattr(augmentation, "COLOR_PROBABILITY", 0.0)
    y, x = np.mgrid[:height, :width]
    named = tf.constant(np.dstack([y, x, x]).astype(np.float32))
    seen = np.rint(augmented(named, 2, num, flip_probability=0.0) * 16)
    (top, left), (bottom, right) = (seen[:, 0, corner, :2].T for corner in (0, 1))
    return top, bottom + 1, left, right + 1


@pytest.mark.parametrize(
    ("height", "width", "narrowest", "widest"),
    [
        (200, 300, 1.2, 1.875),  # no crop of these sides is beyond the bounds
        (100, 220, 1.76, 2.0),  # the bound cuts in
        (230, 100, 0.5, 0.54),
        (100, 1000, 8.0, 8.0),  # no crop is within: the nearest
        (900, 100, 1 / 7.2, 1 / 7.2),
    ],
)
def test_crops(height, width, narrowest, widest, monkeypatch):
    num = 300
    top, bottom, left, right = crops(height, width, num, monkeypatch)
    shares = (bottom - top) / height, (right - left) / width
    assert min(map(np.min, shares)) >= 0.8 and max(map(np.max, shares)) <= 1
    aspect = (right - left) / (bottom - top)
    pixel = 2.5 / min(height, width)
    assert aspect.min() >= narrowest * (1 - pixel) and aspect.max() <= widest * (1 + pixel)
    if (height, width) == (200, 300):
        for share, places, room in (
            (shares[0], top, height - (bottom - top)),
            (shares[1], left, width - (right - left)),
        ):
            assert scipy.stats.kstest(share, scipy.stats.uniform(0.8, 0.2).cdf).pvalue > 0.001
            place = places[room > 9] / room[room > 9]
            assert scipy.stats.kstest(place, scipy.stats.uniform(0, 1).cdf).pvalue > 0.001
        assert abs(scipy.stats.spearmanr(*shares).statistic) < 0.25


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2)])
def test_tiny_images_are_augmented(size):
    image = tf.fill((*size, 3), tf.constant(9, tf.uint8))
    assert images.augment(image, 5, tf.constant([0, 0])).shape == (5, 5, 3)


LOADER = """
import sys
import numpy as np
import tensorflow as tf

directory, batch_file, result_file = sys.argv[1:]
batch = np.load(batch_file, allow_pickle=True)["batch"].tolist()
new = tf.saved_model.load(directory).signatures["serving_default"](tf.constant(batch))
with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    meta = tf.compat.v1.saved_model.load(session, ["serve"], directory)
    signature = meta.signature_def["serving_default"]
    feed = {signature.inputs["encoded"].name: batch}
    fetch = {key: tensor.name for key, tensor in signature.outputs.items()}
    old = session.run(fetch, feed)
    empty = session.run(fetch, {signature.inputs["encoded"].name: np.zeros(0, object)})
assert "pipelines" not in sys.modules
assert empty["images"].shape == (0, 32, 32, 3)
np.savez(
    result_file,
    new_images=new["images"], new_errors=[e.decode() for e in new["errors"].numpy()],
    old_images=old["images"], old_errors=[e.decode() for e in old["errors"]],
)
"""


def test_exported_graph_reads_the_same_pixels_with_tensorflow_alone(tmp_path):
    class Reader(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="encoded")])
        def __call__(self, encoded):
            pixels, errors = images.read_batch(encoded, 32)
            return {"images": pixels, "errors": errors}

    reader = Reader()
    tf.saved_model.save(reader, tmp_path / "model", signatures=reader.__call__)
    exif = Image.Exif()
    exif[0x0112] = 6
    good = [*JPEGS.values(), *EXACT.values(), *WEBPS.values(), written(PICTURE, "JPEG", exif=exif)]
    bad = [JPEG[:400], *(encoded for encoded, _ in REFUSED.values())]
    np.savez(tmp_path / "batch.npz", batch=np.array(good + bad, object))
    subprocess.run(
        [sys.executable, "-c", LOADER, "model", "batch.npz", "result.npz"],
        cwd=tmp_path,
        check=True,
    )
    result = np.load(tmp_path / "result.npz")
    expected = np.stack([evaluate(encoded, 32) for encoded in good])
    reasons = ["the image data are corrupt or truncated", *map(reason_of, bad[1:])]
    for loader in ("new", "old"):
        np.testing.assert_array_equal(result[f"{loader}_images"][: len(good)], expected)
        assert not result[f"{loader}_images"][len(good) :].any()
        assert list(result[f"{loader}_errors"]) == [""] * len(good) + reasons
