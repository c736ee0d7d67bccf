"""Reads the headers of image files: format, size, orientation, and why an image is refused.

All functions are made of TensorFlow graph ops, so that an exported model reads images as training
did and loads without this package. `inspect` names each kind of file that would be read wrongly.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import tensorflow as tf

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Decoders allocate the size that a header declares; the limits keep that from taking all memory.
MAX_PIXELS = 100_000_000
MAX_SIDE = 65_500  # the most that libjpeg reads
# No format that is read stores more than 8 bytes for a pixel, those of 16-bit RGBA; the rest is
# for metadata.
MAX_FILE_BYTES = 8 * MAX_PIXELS + 2**24
# A progressive JPEG may go over its pixels any number of times, at 10 bytes a time. Encoders make
# some 10 scans: this allows them at MAX_PIXELS, and 40 at 25 megapixels.
MAX_SCANNED_PIXELS = 10 * MAX_PIXELS
# Rows of a PNG are unpacked to up to 8 bytes a pixel; this allows RGBA of 8 bits at MAX_PIXELS.
MAX_PNG_BYTES = 4 * MAX_PIXELS
# libpng unpacks each to up to 8 MB and keeps it, wherever it stands. Pictures have a few at most.
MAX_PNG_TEXTS = 16
# The first bytes of each format, and the number of the branch that reads it.
_MAGICS = {
    b"\xff\xd8\xff": 0,
    b"\x89PNG\r\n\x1a\n": 1,
    b"GIF87a": 2,
    b"GIF89a": 2,
    b"BM": 3,
    b"RIFF": 4,
}
JPEG, NO_FORMAT = 0, 5
_READ_FORMATS = "JPEG, PNG, GIF, WebP and BMP are"
_UNKNOWN_FORMAT = f"the bytes are of no known image format; {_READ_FORMATS}"
_UNREAD_MAGICS = {  # name: offset, four bytes there
    "TIFF": (0, (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    "JPEG 2000": (4, (b"jP  ",)),
    "AVIF": (8, (b"avif", b"avis")),
    "HEIC": (8, (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")),
}
# A walk through the parts of a header ends after so many steps. Hostile bytes can hold millions of
# parts, photographs hold tens.
_MAX_HEADER_PARTS = 2_000
# The bytes of the shortest segment that begins a scan of a JPEG.
_SCAN_BYTES = 10
# Text is cut at so many places at most, whatever the bytes.
_MAX_CUTS = 1_000
# This allows 25 MB in full blocks, and limits a file of tiny blocks to seconds.
MAX_GIF_BLOCKS = 100_000


def inspect(encoded: tf.Tensor) -> tf.Tensor:
    """Says why an image cannot be read, from its header alone.

    Args:
        encoded: the bytes of a file, string ().

    Returns:
        The reason, string (); empty if `decode` reads images with this header. The data after the
        header are not decoded, but the length of a BMP is checked, and the scans of a JPEG and the
        compressed texts of a PNG are counted: each costs time or memory that no size declares.
    """
    return read_header(tf.convert_to_tensor(encoded)).reason


def stored_size(encoded: tf.Tensor) -> tf.Tensor:
    """Returns the height and width of an image file as its header says, int64 (2,).

    An EXIF orientation may exchange them when the image is decoded. They mean nothing where
    `inspect` gives a reason.
    """
    return read_header(tf.convert_to_tensor(encoded)).size


class Header(NamedTuple):
    """What the header of an image file says.

    Attributes:
        reason: the reason of `inspect`, string ().
        image_format: the number of the branch that reads the format, int32 ().
        orientation: the EXIF orientation, 1 to 8, int64 ().
        size: height and width as they are stored, before the orientation is applied, int64 (2,).
            They mean nothing if there is a reason.
    """

    reason: tf.Tensor
    image_format: tf.Tensor
    orientation: tf.Tensor
    size: tf.Tensor


HEADER_SPEC = Header(
    tf.TensorSpec((), tf.string),
    tf.TensorSpec((), tf.int32),
    tf.TensorSpec((), tf.int64),
    tf.TensorSpec((2,), tf.int64),
)


def read_header(encoded: tf.Tensor) -> Header:
    """Reads a header, string (). It never fails, whatever the bytes."""
    magics, masks = (
        np.array([int.from_bytes(part.ljust(8, b"\0"), "big", signed=True) for part in parts])
        for parts in (_MAGICS, [b"\xff" * len(magic) for magic in _MAGICS])
    )
    start = tf.io.decode_raw(
        tf.strings.substr(encoded, 0, 8), tf.int64, fixed_length=8, little_endian=False
    )
    matches = tf.equal(tf.bitwise.bitwise_and(start, masks), magics)
    # argmax finds the first that matches; the last always does.
    first = tf.argmax(tf.cast(tf.concat([matches, [True]], 0), tf.int32))
    image_format = tf.gather([*_MAGICS.values(), NO_FORMAT], first)
    is_jpeg = tf.equal(image_format, JPEG)
    checks, frame, exif, size = _jpeg_header(encoded, is_jpeg)
    is_bad = tf.reduce_any(tf.stack([failed for failed, *_ in checks]))
    has_excess = _has_excess_scans(encoded, frame, size, is_jpeg & ~is_bad)
    reason, orientation, size = tf.cond(
        is_jpeg & ~is_bad & tf.equal(exif, 0),
        lambda: (tf.constant(""), tf.constant(1, tf.int64), size),
        lambda: _examine_header(encoded, image_format),
    )
    reason = tf.cond(has_excess, lambda: _excess_reason(size), lambda: reason)
    return Header(
        tf.ensure_shape(reason, ()),
        image_format,
        tf.ensure_shape(orientation, ()),
        tf.ensure_shape(size, (2,)),
    )


def seldom_called(*signature: tf.TensorSpec) -> Callable[[_Function], _Function]:
    """Makes a function one that graphs call as a whole, and that runs op by op outside of graphs.

    Skipping the ops of an untaken branch one by one takes as long as decoding a small JPEG. What a
    JPEG without EXIF does not need is therefore called as a function that is never inlined. Outside
    of graphs it is not traced, because the errors of a traced function hold all of its calls.

    Args:
        *signature: what the function takes.
    """

    def decorated(function: _Function) -> _Function:
        traced = tf.function(
            function,
            input_signature=signature,
            autograph=False,
            experimental_attributes={"_noinline": True},
        )

        @functools.wraps(function)
        def called(*arguments: tf.Tensor) -> Any:
            return (function if tf.executing_eagerly() else traced)(*arguments)

        return cast(_Function, called)

    return decorated


@seldom_called(tf.TensorSpec((), tf.string), tf.TensorSpec((), tf.int32))
def _examine_header(
    encoded: tf.Tensor, image_format: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns reason, orientation and size of `read_header` for an image of any format."""
    upright = tf.constant(1, tf.int64)

    def jpeg():
        checks, _, exif, size = _jpeg_header(encoded, tf.constant(True))
        return _first_reason(*checks), _exif_orientation(encoded, exif), size

    def gif():
        reason, size, *_ = gif_header(encoded)
        return reason, upright, size

    def bmp():
        reason, width, height, *_ = bmp_header(encoded)
        return reason, upright, tf.stack([height, width])

    def webp():
        reason, size, _, exif = webp_header(encoded)
        return reason, _exif_orientation(encoded, exif), size

    return tf.switch_case(
        image_format,
        [
            jpeg,
            lambda: _png_header(encoded),
            gif,
            bmp,
            webp,
            lambda: (_unread_format(encoded), upright, tf.zeros((2,), tf.int64)),
        ],
    )


# The functions below use int64, which no sum of file offsets and declared sizes overflows.


def length_of(encoded: tf.Tensor) -> tf.Tensor:
    """Returns the number of bytes, int64 ()."""
    return tf.cast(tf.strings.length(encoded), tf.int64)


def bytes_at(encoded: tf.Tensor, position: tf.Tensor | int, count: int) -> tf.Tensor:
    """Returns the bytes at a position, int64 (count,), with zeros beyond the end."""
    position = tf.minimum(tf.cast(position, tf.int64), length_of(encoded))
    part = tf.strings.substr(encoded, position, tf.constant(count, tf.int64))
    return tf.cast(tf.io.decode_raw(part, tf.uint8, fixed_length=count), tf.int64)


def _big_endian(digits: tf.Tensor) -> tf.Tensor:
    """Returns the numbers whose bytes are on the last axis, the most significant byte first."""
    weights = 256 ** np.arange(digits.shape[-1], dtype=np.int64)[::-1]
    return tf.reduce_sum(digits * weights, axis=-1)


def little_endian(digits: tf.Tensor) -> tf.Tensor:
    """Returns the numbers whose bytes are on the last axis, the least significant byte first."""
    weights = 256 ** np.arange(digits.shape[-1], dtype=np.int64)
    return tf.reduce_sum(digits * weights, axis=-1)


def choose(condition: tf.Tensor, number: tf.Tensor | int, other: tf.Tensor | int) -> tf.Tensor:
    """Returns `number` where the condition holds, and `other` elsewhere, int64."""
    return tf.where(condition, tf.cast(number, tf.int64), tf.cast(other, tf.int64))


def is_any(number: tf.Tensor, candidates: Sequence[int]) -> tf.Tensor:
    """Returns whether the number is one of the candidates, bool ()."""
    return tf.reduce_any(tf.equal(number, tf.constant(candidates, number.dtype)))


def _spells(digits: tf.Tensor, text: bytes) -> tf.Tensor:
    return tf.reduce_all(tf.equal(digits[: len(text)], tf.constant(list(text), tf.int64)))


def _first_reason(*checks: tuple) -> tf.Tensor:
    """Returns the message of the first check that holds, or an empty string.

    A check consists of a boolean (), a message, and numbers for the {} in the message.
    """
    failed = tf.stack([*(failed for failed, *_ in checks), True])
    messages = [tf.strings.format(message, numbers) for _, message, *numbers in checks]
    return tf.gather([*messages, ""], tf.argmax(tf.cast(failed, tf.int32)))


def _size_checks(name: str, width: tf.Tensor, height: tf.Tensor) -> tuple[tuple, ...]:
    message = f"{name} declares {{}} x {{}} pixels"
    too_large = (width > MAX_SIDE) | (height > MAX_SIDE) | (width * height > MAX_PIXELS)
    limit = f"; at most {MAX_PIXELS} in all and {MAX_SIDE} a side are read"
    return (
        ((width <= 0) | (height <= 0), message, width, height),
        (too_large, message + limit, width, height),
    )


def _unread_format(encoded: tf.Tensor) -> tf.Tensor:
    start = tf.strings.join([tf.strings.substr(encoded, 0, 12), "\0" * 12])
    in_iso_box = tf.equal(tf.strings.substr(start, 4, 4), "ftyp")
    checks = [(tf.equal(encoded, ""), "the image is empty: 0 bytes")]
    for name, (offset, magics) in _UNREAD_MAGICS.items():
        found = tf.reduce_any(tf.equal(tf.strings.substr(start, offset, 4), tf.constant(magics)))
        if name in ("AVIF", "HEIC"):
            found &= in_iso_box
        checks.append((found, f"{name} is not read; {_READ_FORMATS}"))
    return _first_reason(*checks, (tf.constant(True), _UNKNOWN_FORMAT))


def _jpeg_steps() -> tuple[np.ndarray, np.ndarray]:
    """Returns the step from each JPEG marker to the next (ITU T.81, B.1.1), as libjpeg takes it.

    Returns:
        The number of bytes to skip, int64 (257,), and whether the length of the segment is added to
        it. Entry 1 + m belongs to the marker FF m, and entry 0 to bytes that are not a marker. The
        header ends where the step is zero.
    """
    marker = np.arange(256)
    is_frame = (marker >= 0xC0) & (marker <= 0xCF) & ~np.isin(marker, (0xC4, 0xC8, 0xCC))
    is_end = is_frame | ((marker >= 0xD8) & (marker <= 0xDA))
    is_bare = (marker <= 0x01) | ((marker >= 0xD0) & (marker <= 0xD7))
    skipped = np.where(is_end, 0, np.where(marker == 0xFF, 1, 2))
    has_length = ~(is_end | is_bare | (marker == 0xFF))
    return np.append(1, skipped), np.append(0, has_length)


def _jpeg_header(
    encoded: tf.Tensor, is_jpeg: tf.Tensor
) -> tuple[list[tuple], tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the checks of a JPEG, the positions of frame and EXIF (or 0), and its size.

    They come from one walk. It takes most of the time apart from decoding, so its body has few
    ops.
    """
    end = length_of(encoded)
    skipped, has_length = (tf.constant(table, tf.int64) for table in _jpeg_steps())
    # Marker, length (any) and first bytes of the two segments to find, EXIF and Adobe.
    sought = np.frombuffer(b"\xff\xe1..Exif\0\0\xff\xee..Adobe.", ">u2").reshape(2, 5)
    ignored = np.array([[0, 1, 0, 0, 0], [0, 1, 0, 0, 1]], bool)

    def walk(position, _, found):
        part = tf.strings.substr(encoded, position, tf.constant(10, tf.int64))
        words = tf.io.decode_raw(part, tf.uint16, fixed_length=10, little_endian=False)
        words = tf.cast(words, tf.int64)
        marker, length = words[0], words[1]
        entry = tf.maximum(marker - 0xFEFF, 0)
        step = tf.gather(skipped, entry) + tf.gather(has_length, entry) * length
        matches = tf.reduce_all(tf.equal(words, sought) | ignored, axis=1)
        found = tf.where(matches & tf.equal(found, 0), position, found)
        return tf.minimum(position + step, end), step, found

    position, step, found = tf.while_loop(
        lambda position, step, _: (step > 0) & (position < end),
        walk,
        (choose(is_jpeg, 2, end), tf.constant(1, tf.int64), tf.zeros(2, tf.int64)),
        maximum_iterations=_MAX_HEADER_PARTS,
        parallel_iterations=1,
    )
    exif, adobe = tf.where(found > 0, found + 10, 0)[0], found[1]
    frame = bytes_at(encoded, position, 10)
    marker, precision, channels = frame[1], frame[4], frame[9]
    height, width = 256 * frame[5] + frame[6], 256 * frame[7] + frame[8]
    checks = [
        (position + 10 > end, "the JPEG header is cut off"),
        (step > 0, f"the JPEG holds {_MAX_HEADER_PARTS} segments or more before its frame header"),
        (marker >= 0xD8, "the JPEG has no frame header before its data"),
        (
            marker > 0xC2,
            "JPEG process SOF{} is not read; baseline, extended and progressive are",
            marker - 0xC0,
        ),
        (precision != 8, "JPEG of {} bits is not read; 8 bits are", precision),
        (
            ~is_any(channels, (1, 3, 4)),
            "JPEG of {} channels is not read; 1, 3 and 4 are",
            channels,
        ),
        # Nothing says whether such inks are inverted, and readers disagree.
        (
            (channels == 4) & (adobe == 0),
            "CMYK JPEG without an Adobe marker is not read",
        ),
        *_size_checks("JPEG", width, height),
    ]
    return checks, position, exif, tf.stack([height, width])


def _has_excess_scans(
    encoded: tf.Tensor, frame: tf.Tensor, size: tf.Tensor, is_good: tf.Tensor
) -> tf.Tensor:
    """Returns whether a JPEG with a good header has more scans than its size allows, bool ().

    A scan begins with FF DA, which neither coded data nor an EXIF thumbnail, before the frame, can
    hold as they are. Other segments after the frame, and images after the end, may hold these
    bytes by chance, so that their number is an upper bound; where it is too large, the scans are
    counted one by one.

    Args:
        encoded: the bytes of the file, string ().
        frame: the position of the frame header, int64 ().
        size: height and width, int64 (2,).
        is_good: whether this is a JPEG with a good header; the others mean nothing if not.
    """
    limit = _scan_limit(size)
    can_exceed = is_good & ((length_of(encoded) - frame) // _SCAN_BYTES > limit)

    def count() -> tf.Tensor:
        data = tf.strings.substr(encoded, frame, length_of(encoded) - frame)
        return tf.cond(
            _occurrences(data, b"\xff\xda") > limit,
            lambda: _count_scans(data, limit) > limit,
            lambda: tf.constant(False),
        )

    return tf.ensure_shape(tf.cond(can_exceed, count, lambda: tf.constant(False)), ())


def _scan_limit(size: tf.Tensor) -> tf.Tensor:
    """Returns how many scans a JPEG of this size may have, int64 (), at most `_MAX_CUTS` − 1."""
    pixels = tf.maximum(size[0] * size[1], 1)
    return tf.minimum(MAX_SCANNED_PIXELS // pixels, _MAX_CUTS - 1)


def _excess_reason(size: tf.Tensor) -> tf.Tensor:
    return tf.strings.format(
        "the JPEG of {} x {} pixels holds more than {} scans, the most that are read at this "
        f"size ({MAX_SCANNED_PIXELS} pixels in all scans); save it again as a baseline JPEG",
        (size[1], size[0], _scan_limit(size)),
    )


def _occurrences(text: tf.Tensor, part: bytes) -> tf.Tensor:
    """Returns how often a part occurs in a string (), int64 (), or `_MAX_CUTS` if more often."""
    pieces = tf.raw_ops.StringSplitV2(
        input=tf.reshape(text, (1,)), sep=tf.constant(part), maxsplit=_MAX_CUTS
    ).values
    return tf.size(pieces, tf.int64) - 1


@seldom_called(tf.TensorSpec((), tf.string), tf.TensorSpec((), tf.int64))
def _count_scans(data: tf.Tensor, limit: tf.Tensor) -> tf.Tensor:
    """Counts the scans of a JPEG, of which one more than the limit is enough, int64 ().

    The data begin with the frame header. Where they have too many segments to be counted, the
    result is beyond the limit too.
    """
    digits = tf.io.decode_raw(data, tf.uint8)
    # Entry m: what follows the marker FF m. Coded data hold FF 00 and FF D0 to D7, the restarts,
    # and any number of FF may come before a marker.
    marker = np.arange(256)
    is_marker = (marker != 0) & (marker != 0xFF) & ~((marker >= 0xD0) & (marker <= 0xD7))
    has_length = is_marker & (marker >= 0xC0)
    follows = tf.gather(tf.constant(is_marker), tf.cast(digits[1:], tf.int32))
    places = tf.where(tf.equal(digits[:-1], 0xFF) & follows)[:, 0]
    places = tf.concat([places, [length_of(data)]], 0)

    def walk(
        position: tf.Tensor, scans: tf.Tensor, _: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        place = tf.gather(places, tf.searchsorted(places, position[None])[0])
        part = bytes_at(data, place, 4)
        length = choose(tf.gather(tf.constant(has_length), part[1]), _big_endian(part[2:]), 0)
        is_end = tf.equal(part[1], 0xD9) | (place >= length_of(data))
        scans += choose(tf.equal(part[1], 0xDA), 1, 0)
        return tf.minimum(place + 2 + length, length_of(data)), scans, is_end

    _, scans, is_end = tf.while_loop(
        lambda _, scans, is_end: ~is_end & (scans <= limit),
        walk,
        (tf.constant(0, tf.int64), tf.constant(0, tf.int64), tf.constant(False)),
        maximum_iterations=_MAX_HEADER_PARTS,
        parallel_iterations=1,
    )
    return choose(is_end, scans, limit + 1)


def _exif_orientation(encoded: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """Returns the orientation, 1 to 8, in the TIFF structure at `start`; 1 if there is none."""
    header = bytes_at(encoded, start, 8)
    little = _spells(header, b"II*\0")

    def number(digits):
        return choose(little, little_endian(digits), _big_endian(digits))

    directory = start + number(header[4:8])
    count = number(bytes_at(encoded, directory, 2))
    position = tf.minimum(directory + 2, length_of(encoded))
    table = tf.io.decode_raw(tf.strings.substr(encoded, position, 12 * count), tf.uint8)
    whole = tf.size(table) // 12
    entries = tf.cast(tf.reshape(table[: 12 * whole], (-1, 12)), tf.int64)
    is_short = number(entries[:, 2:4]) == 3
    values = choose(is_short, number(entries[:, 8:10]), number(entries[:, 8:12]))
    found = tf.boolean_mask(values, number(entries[:, :2]) == 0x0112)
    orientation = tf.concat([found, [1]], 0)[0]
    known = (
        (start > 0) & (little | _spells(header, b"MM\0*")) & (orientation >= 1) & (orientation <= 8)
    )
    return choose(known, orientation, 1)


def _png_header(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the reason for a PNG, its orientation if eXIf precedes the data, and its size."""
    end = length_of(encoded)
    header = bytes_at(encoded, 8, 18)
    width, height = _big_endian(header[8:12]), _big_endian(header[12:16])
    depth, color = header[16], header[17]
    depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    possible = [(color == c) & is_any(depth, d) for c, d in depths.items()]
    bits = depth * tf.gather(tf.constant([1, 0, 3, 1, 2, 0, 4, 0], tf.int64), color % 8)
    row_bytes = (width * bits + 7) // 8
    reason = _first_reason(
        (end < 33, "the PNG header is cut off"),
        (~_spells(header[4:], b"IHDR"), "the PNG does not start with a header"),
        (
            ~functools.reduce(operator.or_, possible),
            "PNG has no color type {} of {} bits",
            color,
            depth,
        ),
        *_size_checks("PNG", width, height),
        (
            height * row_bytes > MAX_PNG_BYTES,
            "the PNG of {} x {} pixels and {} bits each unpacks to {} bytes; at most "
            f"{MAX_PNG_BYTES} are read: save it again with 8 bits a channel",
            *(width, height, bits, height * row_bytes),
        ),
        (
            _occurrences(encoded, b"TXt") > MAX_PNG_TEXTS,
            f"the PNG holds more than {MAX_PNG_TEXTS} compressed texts (zTXt or iTXt), the most "
            "that are read; save it again without them",
        ),
    )

    def walk(position, exif, _):
        part = bytes_at(encoded, position, 8)
        is_exif = _spells(part[4:], b"eXIf")
        stop = is_exif | _spells(part[4:], b"IDAT")
        return (
            position + 12 + _big_endian(part[:4]),
            choose(is_exif, position + 8, exif),
            stop,
        )

    _, exif, _ = tf.while_loop(
        lambda position, exif, stop: ~stop & (position < end),
        walk,
        (tf.constant(33, tf.int64), tf.constant(0, tf.int64), tf.constant(False)),
        maximum_iterations=_MAX_HEADER_PARTS,
        parallel_iterations=1,
    )
    return reason, _exif_orientation(encoded, exif), tf.stack([height, width])


def gif_header(encoded: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Returns the reason for a GIF, its size, and the numbers that decoding needs.

    They are the position of its first frame, and its transparent index or 0.
    """
    end = length_of(encoded)
    screen = bytes_at(encoded, 6, 5)
    has_palette = screen[4] >= 128
    start = 13 + choose(has_palette, 3 * 2 ** (screen[4] % 8 + 1), 0)

    def walk(position, transparent, in_extension, _):
        part = bytes_at(encoded, position, 7)
        extension = ~in_extension & (part[0] == 0x21)
        stop = ~in_extension & ~extension
        graphic_control = extension & (part[1] == 0xF9)
        step = choose(in_extension, part[0] + 1, 2)
        return (
            choose(stop, position, position + step),
            choose(graphic_control, choose(part[3] % 2 == 1, part[6], 0), transparent),
            extension | (in_extension & (part[0] != 0)),
            stop,
        )

    position, transparent, _, stopped = tf.while_loop(
        lambda position, transparent, in_extension, stopped: ~stopped & (position < end),
        walk,
        (start, tf.constant(0, tf.int64), tf.constant(False), tf.constant(False)),
        maximum_iterations=_MAX_HEADER_PARTS,
        parallel_iterations=1,
    )
    frame = bytes_at(encoded, position, 10)
    left, top, width, height = tf.unstack(little_endian(tf.reshape(frame[1:9], (4, 2))))
    canvas_width = tf.maximum(little_endian(screen[:2]), left + width)
    canvas_height = tf.maximum(little_endian(screen[2:4]), top + height)
    reason = _first_reason(
        (~stopped | (position + 10 > end), "the GIF header is cut off"),
        (frame[0] != 0x2C, "the GIF holds no image"),
        (~has_palette & (frame[9] < 128), "GIF without a palette is not read"),
        *_size_checks("a frame of the GIF", width, height),
        *_size_checks("GIF", canvas_width, canvas_height),
    )
    return reason, tf.stack([canvas_height, canvas_width]), position, transparent


def webp_header(encoded: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Returns the reason for a WebP, its size, the position of its image chunk, and of EXIF or 0.

    The file is a list of chunks (RFC 9649): name, length, content, and a byte of padding after an
    odd length. EXIF counts where the first chunk, VP8X, announces it, as libwebp takes it.
    """
    declared = 8 + little_endian(bytes_at(encoded, 4, 4))
    end = tf.minimum(declared, length_of(encoded))
    extended = bytes_at(encoded, 12, 18)
    is_extended = _spells(extended, b"VP8X")
    flags = choose(is_extended, extended[8], 0)
    names = np.array([list(name) for name in (b"VP8 ", b"VP8L", b"EXIF", b"ANIM", b"ANMF")])

    def walk(position, image, exif, is_animated, _):
        part = bytes_at(encoded, position, 8)
        size = little_endian(part[4:])
        named = tf.reduce_all(tf.equal(part[:4], names), axis=1)
        is_image = tf.reduce_any(named[:2])
        return (
            position + 8 + size + size % 2,
            choose(is_image & (image == 0), position, image),
            choose(named[2] & (exif == 0), position, exif),
            is_animated | tf.reduce_any(named[3:]),
            position + 8 + size > end,
        )

    zero = tf.constant(0, tf.int64)
    position, image, exif, is_animated, is_cut = tf.while_loop(
        lambda position, image, exif, is_animated, is_cut: ~is_animated & (position + 8 <= end),
        walk,
        (tf.constant(12, tf.int64), zero, zero, flags // 2 % 2 == 1, tf.constant(False)),
        maximum_iterations=_MAX_HEADER_PARTS,
        parallel_iterations=1,
    )
    chunk = bytes_at(encoded, image, 18)
    is_lossless, frame = _spells(chunk, b"VP8L"), chunk[8:]
    bits = little_endian(frame[1:5])
    # A lossy frame must be a key frame and be shown; of each side, two bits are for scaling.
    is_frame = tf.where(
        is_lossless,
        (frame[0] == 0x2F) & (bits // 2**29 == 0),
        (frame[0] % 2 == 0) & (frame[0] // 16 % 2 == 1) & _spells(frame[3:], b"\x9d\x01\x2a"),
    )
    width = choose(is_lossless, bits % 2**14 + 1, little_endian(frame[6:8]) % 2**14)
    height = choose(is_lossless, bits // 2**14 % 2**14 + 1, little_endian(frame[8:10]) % 2**14)
    canvas_width, canvas_height = tf.unstack(1 + little_endian(tf.reshape(extended[12:18], (2, 3))))
    reason = _first_reason(
        (~_spells(bytes_at(encoded, 8, 4), b"WEBP"), _UNKNOWN_FORMAT),
        (is_animated, "animated WebP is not read; still ones are"),
        (
            (declared > length_of(encoded)) | is_cut,
            "the WebP is truncated: {} of {} bytes",
            length_of(encoded),
            tf.maximum(declared, position),
        ),
        (position + 8 <= end, f"the WebP holds {_MAX_HEADER_PARTS} chunks or more"),
        ((image == 0) | (~is_extended & (image > 12)), "the WebP holds no image"),
        (~is_frame, "the WebP's image has no valid header"),
        (
            is_extended & ((width != canvas_width) | (height != canvas_height)),
            "the WebP declares {} x {} pixels, and its image {} x {}",
            *(canvas_width, canvas_height, width, height),
        ),
        *_size_checks("WebP", width, height),
    )
    content = bytes_at(encoded, exif + 8, 6)
    prefix = choose(_spells(content, b"Exif\0\0"), 6, 0)
    has_exif = (exif > 0) & (flags // 8 % 2 == 1)
    return reason, tf.stack([height, width]), image, choose(has_exif, exif + 8 + prefix, 0)


def bmp_header(encoded: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Returns the reason for a BMP, and the numbers that decoding needs.

    They are width, height, bits per pixel, offset of the data, position and size of the palette,
    and whether the rows run from top to bottom.
    """
    end = length_of(encoded)
    header = bytes_at(encoded, 0, 66)
    data_start, header_size = little_endian(header[10:14]), little_endian(header[14:18])
    width, height = little_endian(header[18:22]), little_endian(header[22:26])
    top_down = height >= 2**31
    height = choose(top_down, 2**32 - height, height)
    bits, compression = little_endian(header[28:30]), little_endian(header[30:34])
    masks = little_endian(tf.reshape(header[54:66], (3, 4)))
    standard = tf.reduce_all(masks == [0xFF0000, 0x00FF00, 0x0000FF])
    colors = little_endian(header[46:50])
    colors = choose(colors == 0, 256, colors)
    palette_start = 14 + header_size
    header_end = palette_start + choose(bits == 8, 4 * colors, 0)
    needed = data_start + height * bmp_stride(width, bits)
    reason = _first_reason(
        (end < 18, "the BMP header is cut off"),
        (header_size == 12, "BMP with an OS/2 core header is not read"),
        (
            ~is_any(header_size, (40, 52, 56, 108, 124)),
            "BMP with a header of {} bytes is not read",
            header_size,
        ),
        (end < header_end, "the BMP header is cut off"),
        (
            ~is_any(bits, (8, 24, 32)),
            "BMP of {} bits per pixel is not read; 8, 24 and 32 are",
            bits,
        ),
        (
            (compression != 0) & ((compression != 3) | (bits != 32)),
            "BMP of compression {} and {} bits per pixel is not read; uncompressed ones are",
            compression,
            bits,
        ),
        (
            (compression == 3) & ~standard,
            "BMP with other bit masks than 8 bits of blue, green and red is not read",
        ),
        ((bits == 8) & (colors > 256), "BMP palette of {} colors", colors),
        *_size_checks("BMP", width, height),
        (data_start < header_end, "the BMP data overlap its header"),
        (needed > end, "the BMP data are truncated: {} of {} bytes", end, needed),
    )
    return reason, width, height, bits, data_start, palette_start, colors, top_down


def bmp_stride(width: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Returns the number of bytes in a row of pixels, which is padded to a multiple of four."""
    return (width * bits + 31) // 32 * 4
