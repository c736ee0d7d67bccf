"""Decoding, augmenting and resizing images: one definition for training, test and serving.

Everything here is a TensorFlow graph op, so that an exported model reads images as training did and
loads without this package. Bytes that would be read wrongly are refused by name (`inspect`).
"""

import functools
import operator
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

# A declared size is believed before a pixel is decoded; the limits keep it from taking all memory.
MAX_PIXELS = 100_000_000
MAX_SIDE = 65_500  # the most that libjpeg reads

MIN_CROP = 0.8  # of each side
MAX_CROP_ASPECT = 2.0
COLOUR_PROBABILITY = 0.5  # of each of the four changes of colour
MAX_BRIGHTNESS = 32.0
MAX_SCALE = 0.5  # contrast and saturation are scaled by 1 ± this
MAX_HUE = 18.0  # degrees

# What files of each format begin with; the position says which branch reads them.
_MAGICS = {b"\xff\xd8\xff": 0, b"\x89PNG\r\n\x1a\n": 1, b"GIF87a": 2, b"GIF89a": 2, b"BM": 3}
_NO_FORMAT = 4
_READ_FORMATS = "JPEG, PNG, GIF and BMP are"
_UNREAD_MAGICS = {  # name: offset, four bytes there
    "WebP": (8, (b"WEBP",)),
    "TIFF": (0, (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    "AVIF": (8, (b"avif", b"avis")),
    "HEIC": (8, (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")),
}

# Steps of a walk through the parts of a header before it is given up: hostile bytes can hold
# millions of parts, photographs hold tens.
_MAX_HEADER_PARTS = 2_000
# 25 MB in full blocks; a file of tiny ones takes seconds here, and no longer.
_MAX_GIF_BLOCKS = 100_000

_RGB_TO_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]]
)


def inspect(encoded: tf.Tensor) -> tf.Tensor:
    """Says why an image cannot be read, from its header alone.

    Args:
        encoded: string (), the bytes of an image file; any bytes.

    Returns:
        string (): empty where the header is that of an image that `decode` reads, else the reason.
        Data after the header are not looked at, except that the length of a BMP is checked.
    """
    reason, _, _ = _read_header(tf.convert_to_tensor(encoded))
    return reason


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a JPEG, PNG, GIF or BMP as `PIL.ImageOps.exif_transpose(image).convert("RGB")` does.

    Alpha and transparency are dropped, not blended: a transparent pixel shows the colour that the
    file stores for it. Of an animation the first frame is read. 16-bit channels keep their high
    byte. The EXIF orientation of a JPEG, and of a PNG that holds it before its data, is applied.
    CMYK follows Adobe's inverted convention, without a colour profile.

    Args:
        encoded: string (), the bytes of an image file.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        tf.errors.InvalidArgumentError: with the reason of `inspect`, or of the decoder where the
            data after a good header are corrupt or truncated.
    """
    encoded = tf.convert_to_tensor(encoded)
    reason, image_format, orientation = _read_header(encoded)
    with tf.control_dependencies([tf.debugging.Assert(tf.equal(reason, ""), [reason])]):
        encoded = tf.identity(encoded)
    return _decode_as(encoded, image_format, orientation)


def resize(image: tf.Tensor, image_size: int) -> tf.Tensor:
    """Resizes to a square, bilinear and antialiased; the aspect is not kept.

    A pixel of the result averages all source pixels under it, with the weights of
    `PIL.Image.resize(..., BILINEAR)`: without that, a large photograph would be point-sampled.

    Args:
        image: (H, W, 3) in [0, 255], any numeric type.
        image_size: S, the side of the result.

    Returns:
        float32 (S, S, 3) in [0, 255].
    """
    resized = tf.transpose(_resized_columns(image, image_size), (2, 0, 1))
    # The weights sum to one within rounding only.
    return tf.clip_by_value(resized, 0.0, 255.0)


def _resized_columns(image: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes to a square, column by column: (H, W, 3) → float32 (S, 3, S), place y in the last."""
    height, width = tf.unstack(tf.shape(image)[:2])
    rows = _resize_rows(tf.reshape(image, (height, width * 3)), size)
    columns = _resize_rows(tf.reshape(tf.transpose(rows), (width, 3 * size)), size)
    return tf.reshape(columns, (size, 3, size))


def _resize_rows(rows: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes the first axis of a matrix: (H, K), any numeric type → float32 (S, K).

    The kernel of `tf.image.resize` adds up a pixel's channels together and its pixels one by one.
    Given an axis at a time, with all the rest as channels, it takes half as long for the same sums.
    """
    return tf.image.resize(rows[:, tf.newaxis], (size, 1), antialias=True)[:, 0]


def augment(
    image: tf.Tensor, image_size: int, seed: tf.Tensor, *, flip_probability: float = 0.5
) -> tf.Tensor:
    """Crops, resizes, mirrors and recolours an image at random; a pure function of image and seed.

    The crop takes 0.8 to 1 of each side, each uniform, at a uniform place; its width over its
    height stays within [1/2, 2], or as near to that as such a crop can be. Brightness ±32, contrast
    and saturation ×[0.5, 1.5] and hue ±18° are uniform, each applied with probability 0.5, in this
    order and without clipping in between (`colour_matrix`).

    Args:
        image: uint8 (H, W, 3).
        image_size: S, the side of the result.
        seed: integer (2,).
        flip_probability: how often the image is mirrored left to right.

    Returns:
        float32 (S, S, 3) in [0, 255].
    """
    # The generator is named because the default one depends on the device.
    uniform = tf.random.stateless_uniform((13,), seed, alg="philox")
    side, place, amount, gate = tf.split(uniform, (2, 2, 4, 5))

    height, width = _crop_size(tf.shape(image), side)
    room = tf.shape(image)[:2] - (height, width)
    # A uniform number is at most 1 − 2^−23, so the product never rounds up to room + 1.
    top, left = tf.unstack(tf.cast(place * tf.cast(room + 1, tf.float32), tf.int32))
    columns = _resized_columns(image[top : top + height, left : left + width], image_size)
    columns = tf.reverse(columns, tf.boolean_mask([0], gate[:1] < flip_probability))

    amount = tf.where(gate[1:] < COLOUR_PROBABILITY, 2.0 * amount - 1.0, 0.0)
    matrix, offset = colour_matrix(
        brightness=amount[0] * MAX_BRIGHTNESS,
        contrast=1.0 + amount[1] * MAX_SCALE,
        saturation=1.0 + amount[2] * MAX_SCALE,
        hue=amount[3] * MAX_HUE,
    )
    recoloured = tf.matmul(matrix, columns) + offset[:, tf.newaxis]
    return tf.clip_by_value(tf.transpose(recoloured, (2, 0, 1)), 0.0, 255.0)


def colour_matrix(
    brightness: tf.Tensor, contrast: tf.Tensor, saturation: tf.Tensor, hue: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """One affine map of RGB for a brightness, contrast, saturation and hue change, in this order.

    Brightness is added to every channel, contrast multiplies the pixel values; saturation scales
    the I and Q of the YIQ colour space, and hue rotates them.

    Args:
        brightness: float (), added; in the units of the pixels.
        contrast: float (), a factor.
        saturation: float (), a factor.
        hue: float (), degrees.

    Returns:
        matrix float32 (3, 3) and offset float32 (3,): a pixel x becomes matrix · x + offset.
    """
    to_rgb = np.linalg.inv(_RGB_TO_YIQ)
    luma, chroma, quarter_turn = (
        (to_rgb @ np.array(plane, np.float64) @ _RGB_TO_YIQ).astype(np.float32)
        for plane in (
            [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
            [[0, 0, 0], [0, 1, 0], [0, 0, 1]],
            [[0, 0, 0], [0, 0, -1], [0, 1, 0]],
        )
    )
    angle = tf.cast(hue, tf.float32) * (np.pi / 180.0)
    rotated = tf.cos(angle) * chroma + tf.sin(angle) * quarter_turn
    matrix = contrast * (luma + saturation * rotated)
    # The rows of luma sum to one and those of the rest to zero, so grey stays grey.
    return matrix, tf.fill((3,), tf.cast(contrast * brightness, tf.float32))


def read_for_evaluation(encoded: tf.Tensor, image_size: int) -> tf.Tensor:
    """Decodes and resizes: string () → float32 (S, S, 3) in [0, 255]; raises as `decode`."""
    return resize(decode(encoded), image_size)


def read_for_training(
    encoded: tf.Tensor, image_size: int, seed: tf.Tensor, *, flip_probability: float = 0.5
) -> tf.Tensor:
    """Decodes and augments: string () → float32 (S, S, 3) in [0, 255]; raises as `decode`."""
    return augment(decode(encoded), image_size, seed, flip_probability=flip_probability)


def read_batch(encoded: tf.Tensor, image_size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Reads images for evaluation, in parallel; a bad one never fails the others.

    Args:
        encoded: string (B,), image files; B may be 0.
        image_size: S, the side of the results.

    Returns:
        images, float32 (B, S, S, 3): `read_for_evaluation` of each, zeros where it cannot be read;
        errors, string (B,): the reason where it cannot be read, else empty.
    """
    batch_size = tf.size(encoded, tf.int64)
    # Headers are read out here because a pipeline prepares its function anew at every call, which
    # takes longer the larger that is; reading a header never fails, whatever the bytes.
    header = [tf.TensorSpec((), dtype) for dtype in (tf.string, tf.int32, tf.int64)]
    reasons, formats, orientations = tf.map_fn(
        _read_header, encoded, fn_output_signature=tuple(header)
    )
    is_readable = tf.equal(reasons, "")
    formats = tf.where(is_readable, formats, _NO_FORMAT)

    def read(row, encoded, image_format, orientation):
        return row, resize(_decode_as(encoded, image_format, orientation), image_size)

    # Rows whose decoder fails drop out; the row after the last keeps the batch from being empty.
    last = (batch_size, tf.zeros((image_size, image_size, 3)))
    rows, images = (
        tf.data.Dataset.from_tensor_slices((tf.range(batch_size), encoded, formats, orientations))
        .map(read, num_parallel_calls=tf.data.AUTOTUNE)
        .ignore_errors(log_warning=False)
        .concatenate(tf.data.Dataset.from_tensors(last))
        .batch(batch_size + 1)
        .get_single_element()
    )
    shape = tf.stack([batch_size + 1, image_size, image_size, 3])
    images = tf.scatter_nd(rows[:, None], images, shape)[:-1]
    num_decoded = tf.scatter_nd(rows[:, None], tf.ones_like(rows), [batch_size + 1])[:-1]
    is_corrupt = is_readable & tf.equal(num_decoded, 0)
    errors = tf.where(is_corrupt, "the image data are corrupt or truncated", reasons)
    static = encoded.shape
    return tf.ensure_shape(images, (*static, image_size, image_size, 3)), tf.ensure_shape(
        errors, static
    )


def _crop_size(image_shape: tf.Tensor, uniform: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The crop's (height, width), int32, from two uniform numbers.

    The height is uniform over the shares for which a width within the bounds exists, then the width
    is uniform over those. Where no shares fit, the clipped bounds meet at the nearest aspect.
    """
    sides = tf.cast(image_shape[:2], tf.float32)
    aspect = sides[1] / sides[0]

    def between(low, high, uniform):
        low, high = (tf.clip_by_value(bound, MIN_CROP, 1.0) for bound in (low, high))
        return low + uniform * (high - low)

    height = between(aspect * MIN_CROP / MAX_CROP_ASPECT, aspect * MAX_CROP_ASPECT, uniform[0])
    width = between(
        height / (aspect * MAX_CROP_ASPECT), height * MAX_CROP_ASPECT / aspect, uniform[1]
    )
    size = tf.round(tf.stack([height, width]) * sides)
    size = tf.clip_by_value(size, tf.math.ceil(MIN_CROP * sides), sides)
    return tuple(tf.unstack(tf.cast(size, tf.int32)))


def _read_header(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Reason (empty if readable), which branch reads the format, and EXIF orientation (1 to 8)."""
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
    image_format = tf.gather([*_MAGICS.values(), _NO_FORMAT], first)
    is_jpeg = tf.equal(image_format, 0)
    checks, exif = _jpeg_header(encoded, is_jpeg)
    is_bad = tf.reduce_any(tf.stack([failed for failed, *_ in checks]))
    reason, orientation = tf.cond(
        is_jpeg & ~is_bad & tf.equal(exif, 0),
        lambda: (tf.constant(""), tf.constant(1, tf.int64)),
        lambda: _examine_header(encoded, image_format),
    )
    return tf.ensure_shape(reason, ()), image_format, tf.ensure_shape(orientation, ())


# An untaken branch costs what its ops cost to skip, one by one: as much as a small JPEG costs to
# decode. What a JPEG without EXIF does not need is therefore called as a function, never inlined.
_seldom_called = functools.partial(
    tf.function, autograph=False, experimental_attributes={"_noinline": True}
)


@_seldom_called(input_signature=[tf.TensorSpec((), tf.string), tf.TensorSpec((), tf.int32)])
def _examine_header(encoded: tf.Tensor, image_format: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Reason and orientation, as `_read_header` has them, of any image."""
    upright = tf.constant(1, tf.int64)

    def jpeg():
        checks, exif = _jpeg_header(encoded, tf.constant(True))
        return _first_reason(*checks), _exif_orientation(encoded, exif)

    return tf.switch_case(
        image_format,
        [
            jpeg,
            lambda: _png_header(encoded),
            lambda: (_gif_header(encoded)[0], upright),
            lambda: (_bmp_header(encoded)[0], upright),
            lambda: (_unread_format(encoded), upright),
        ],
    )


def _decode_as(encoded: tf.Tensor, image_format: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Decodes an image whose header is known to be good; one of no format is a black pixel."""
    image = tf.switch_case(
        image_format,
        [
            # The exact transform is PIL's; TensorFlow's default one is up to 7 levels off.
            lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
            lambda: tf.io.decode_png(encoded, channels=3),
            lambda: _decode_gif(encoded),
            lambda: _decode_bmp(encoded),
            lambda: tf.zeros((1, 1, 3), tf.uint8),
        ],
    )
    image = tf.cond(orientation > 1, lambda: _reorient(image, orientation), lambda: image)
    return tf.ensure_shape(image, (None, None, 3))


def _reorient(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Undoes an EXIF orientation: a transposition for 5 to 8, then flips of rows and columns."""
    image = tf.transpose(image, tf.where(orientation >= 5, [1, 0, 2], [0, 1, 2]))
    flipped = tf.stack([_is_any(orientation, (3, 4, 7, 8)), _is_any(orientation, (2, 3, 6, 7))])
    return tf.reverse(image, tf.boolean_mask([0, 1], flipped))


# Reading bytes. Numbers are int64: no sum of file offsets and declared sizes overflows them.


def _length(encoded: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.strings.length(encoded), tf.int64)


def _bytes(encoded: tf.Tensor, position: tf.Tensor | int, count: int) -> tf.Tensor:
    """int64 (count,); zeros stand for bytes beyond the end."""
    position = tf.minimum(tf.cast(position, tf.int64), _length(encoded))
    part = tf.strings.substr(encoded, position, tf.constant(count, tf.int64))
    return tf.cast(tf.io.decode_raw(part, tf.uint8, fixed_length=count), tf.int64)


def _big_endian(digits: tf.Tensor) -> tf.Tensor:
    """The number that the bytes along the last axis spell, most significant first."""
    weights = 256 ** np.arange(digits.shape[-1], dtype=np.int64)[::-1]
    return tf.reduce_sum(digits * weights, axis=-1)


def _little_endian(digits: tf.Tensor) -> tf.Tensor:
    weights = 256 ** np.arange(digits.shape[-1], dtype=np.int64)
    return tf.reduce_sum(digits * weights, axis=-1)


def _choose(condition: tf.Tensor, number: tf.Tensor | int, other: tf.Tensor | int) -> tf.Tensor:
    return tf.where(condition, tf.cast(number, tf.int64), tf.cast(other, tf.int64))


def _is_any(number: tf.Tensor, candidates: Sequence[int]) -> tf.Tensor:
    return tf.reduce_any(tf.equal(number, tf.constant(candidates, number.dtype)))


def _spells(digits: tf.Tensor, text: bytes) -> tf.Tensor:
    return tf.reduce_all(tf.equal(digits[: len(text)], tf.constant(list(text), tf.int64)))


def _first_reason(*checks: tuple) -> tf.Tensor:
    """The message of the first check that holds, or an empty string.

    A check is a boolean (), a message, and the numbers for the {} in the message.
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
    unknown = f"the bytes are of no known image format; {_READ_FORMATS}"
    return _first_reason(*checks, (tf.constant(True), unknown))


def _jpeg_steps() -> tuple[np.ndarray, np.ndarray]:
    """How far to go from each JPEG marker to the next (ITU T.81, B.1.1), as libjpeg does.

    Returns:
        The bytes to skip, int64 (257,), and whether the segment's length adds to them. Entry 0 is
        of what is no marker, entry 1 + m of FF m. No step: the header ends here.
    """
    marker = np.arange(256)
    is_frame = (marker >= 0xC0) & (marker <= 0xCF) & ~np.isin(marker, (0xC4, 0xC8, 0xCC))
    is_end = is_frame | ((marker >= 0xD8) & (marker <= 0xDA))
    is_bare = (marker <= 0x01) | ((marker >= 0xD0) & (marker <= 0xD7))
    skipped = np.where(is_end, 0, np.where(marker == 0xFF, 1, 2))
    has_length = ~(is_end | is_bare | (marker == 0xFF))
    return np.append(1, skipped), np.append(0, has_length)


def _jpeg_header(encoded: tf.Tensor, is_jpeg: tf.Tensor) -> tuple[list[tuple], tf.Tensor]:
    """Checks of a JPEG, and where its EXIF lies (else 0), from one walk over its segments.

    The walk is most of what a JPEG costs beyond its decoder, so its body is of few ops.
    """
    end = _length(encoded)
    skipped, has_length = (tf.constant(table, tf.int64) for table in _jpeg_steps())
    # Marker, length (any) and first content of the two segments looked for: EXIF and Adobe.
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
        (_choose(is_jpeg, 2, end), tf.constant(1, tf.int64), tf.zeros(2, tf.int64)),
        maximum_iterations=_MAX_HEADER_PARTS,
        parallel_iterations=1,
    )
    exif, adobe = tf.where(found > 0, found + 10, 0)[0], found[1]
    frame = _bytes(encoded, position, 10)
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
            ~_is_any(channels, (1, 3, 4)),
            "JPEG of {} channels is not read; 1, 3 and 4 are",
            channels,
        ),
        # Whether such inks are inverted is not told, and readers disagree.
        (
            (channels == 4) & (adobe == 0),
            "CMYK JPEG without an Adobe marker is not read",
        ),
        *_size_checks("JPEG", width, height),
    ]
    return checks, exif


def _exif_orientation(encoded: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """The orientation, 1 to 8, in the TIFF structure at `start`; 1 where there is none, or at 0."""
    header = _bytes(encoded, start, 8)
    little = _spells(header, b"II*\0")

    def number(digits):
        return _choose(little, _little_endian(digits), _big_endian(digits))

    directory = start + number(header[4:8])
    count = number(_bytes(encoded, directory, 2))
    position = tf.minimum(directory + 2, _length(encoded))
    table = tf.io.decode_raw(tf.strings.substr(encoded, position, 12 * count), tf.uint8)
    whole = tf.size(table) // 12
    entries = tf.cast(tf.reshape(table[: 12 * whole], (-1, 12)), tf.int64)
    is_short = number(entries[:, 2:4]) == 3
    values = _choose(is_short, number(entries[:, 8:10]), number(entries[:, 8:12]))
    found = tf.boolean_mask(values, number(entries[:, :2]) == 0x0112)
    orientation = tf.concat([found, [1]], 0)[0]
    known = (
        (start > 0) & (little | _spells(header, b"MM\0*")) & (orientation >= 1) & (orientation <= 8)
    )
    return _choose(known, orientation, 1)


def _png_header(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Reason of a PNG, and its orientation where an eXIf chunk stands before the data."""
    end = _length(encoded)
    header = _bytes(encoded, 8, 18)
    width, height = _big_endian(header[8:12]), _big_endian(header[12:16])
    depth, colour = header[16], header[17]
    depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    possible = [(colour == c) & _is_any(depth, d) for c, d in depths.items()]
    reason = _first_reason(
        (end < 33, "the PNG header is cut off"),
        (~_spells(header[4:], b"IHDR"), "the PNG does not start with a header"),
        (
            ~functools.reduce(operator.or_, possible),
            "PNG has no colour type {} of {} bits",
            colour,
            depth,
        ),
        *_size_checks("PNG", width, height),
    )

    def walk(position, exif, _):
        part = _bytes(encoded, position, 8)
        is_exif = _spells(part[4:], b"eXIf")
        stop = is_exif | _spells(part[4:], b"IDAT")
        return (
            position + 12 + _big_endian(part[:4]),
            _choose(is_exif, position + 8, exif),
            stop,
        )

    _, exif, _ = tf.while_loop(
        lambda position, exif, stop: ~stop & (position < end),
        walk,
        (tf.constant(33, tf.int64), tf.constant(0, tf.int64), tf.constant(False)),
        maximum_iterations=_MAX_HEADER_PARTS,
        parallel_iterations=1,
    )
    return reason, _exif_orientation(encoded, exif)


def _gif_header(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Reason, the position of the first frame's descriptor, and its transparent index (else 0)."""
    end = _length(encoded)
    screen = _bytes(encoded, 6, 5)
    has_palette = screen[4] >= 128
    start = 13 + _choose(has_palette, 3 * 2 ** (screen[4] % 8 + 1), 0)

    def walk(position, transparent, in_extension, _):
        part = _bytes(encoded, position, 7)
        extension = ~in_extension & (part[0] == 0x21)
        stop = ~in_extension & ~extension
        graphic_control = extension & (part[1] == 0xF9)
        step = _choose(in_extension, part[0] + 1, 2)
        return (
            _choose(stop, position, position + step),
            _choose(graphic_control, _choose(part[3] % 2 == 1, part[6], 0), transparent),
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
    frame = _bytes(encoded, position, 10)
    left, top, width, height = tf.unstack(_little_endian(tf.reshape(frame[1:9], (4, 2))))
    canvas_width = tf.maximum(_little_endian(screen[:2]), left + width)
    canvas_height = tf.maximum(_little_endian(screen[2:4]), top + height)
    reason = _first_reason(
        (~stopped | (position + 10 > end), "the GIF header is cut off"),
        (frame[0] != 0x2C, "the GIF holds no image"),
        (~has_palette & (frame[9] < 128), "GIF without a palette is not read"),
        *_size_checks("a frame of the GIF", width, height),
        *_size_checks("GIF", canvas_width, canvas_height),
    )
    return reason, position, transparent


@_seldom_called(input_signature=[tf.TensorSpec((), tf.string)])
def _decode_gif(encoded: tf.Tensor) -> tf.Tensor:
    """The first frame on its canvas.

    TensorFlow's decoder unpacks every frame, and blackens what is transparent. It is given a GIF
    of the first frame alone, without transparency. Where that does not fill the canvas, the
    transparent colour surrounds it, or else the first colour, as PIL has it.
    """
    _, position, transparent = _gif_header(encoded)
    screen = _bytes(encoded, 6, 5)
    frame = _bytes(encoded, position, 10)
    left, top, width, height = tf.unstack(_little_endian(tf.reshape(frame[1:9], (4, 2))))
    local = frame[9] >= 128
    palette_bits = _choose(local, frame[9], screen[4]) % 8
    palette_size = 3 * 2 ** (palette_bits + 1)
    palette_start = _choose(local, position + 10, tf.constant(13, tf.int64))
    data_start = position + 10 + _choose(local, palette_size, 0)

    def skip_block(_, position):
        size = _bytes(encoded, position, 1)[0]
        return size, position + 1 + size

    last_size, data_end = tf.while_loop(
        lambda size, _: size > 0,
        skip_block,
        # The data begin with a byte of their own, the code size.
        (tf.constant(1, tf.int64), data_start + 1),
        maximum_iterations=_MAX_GIF_BLOCKS,
        parallel_iterations=1,
    )
    complete = tf.debugging.Assert(
        tf.equal(last_size, 0) & (data_end <= _length(encoded)),
        [f"the GIF data are truncated, or in more than {_MAX_GIF_BLOCKS} blocks"],
    )
    with tf.control_dependencies([complete]):
        palette = tf.strings.substr(encoded, palette_start, palette_size)
        data = tf.strings.substr(encoded, data_start, data_end - data_start)
    size = tf.strings.substr(encoded, position + 5, tf.constant(4, tf.int64))
    flags = _byte_string(128 + frame[9] // 64 % 2 * 64 + palette_bits)
    image = tf.io.decode_gif(
        tf.strings.join(
            [b"GIF89a", size, b"\0\0\0", b",\0\0\0\0", size, flags, palette, data, b";"]
        )
    )[0]

    right = tf.maximum(_little_endian(screen[:2]) - left - width, 0)
    bottom = tf.maximum(_little_endian(screen[2:4]) - top - height, 0)
    surround = tf.io.decode_raw(
        tf.strings.substr(palette, tf.minimum(3 * transparent, palette_size - 3), 3), tf.uint8
    )
    margins = tf.stack([[top, bottom], [left, right], [0, 0]])
    inside = tf.pad(tf.ones_like(image, tf.bool), margins)
    return tf.where(inside, tf.pad(image, margins), surround)


def _byte_string(number: tf.Tensor) -> tf.Tensor:
    return tf.gather(tf.constant([bytes([i]) for i in range(256)]), number)


def _bmp_header(encoded: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Reason, width, height, bits a pixel, data offset, palette position and size, top-down."""
    end = _length(encoded)
    header = _bytes(encoded, 0, 66)
    data_start, header_size = _little_endian(header[10:14]), _little_endian(header[14:18])
    width, height = _little_endian(header[18:22]), _little_endian(header[22:26])
    top_down = height >= 2**31
    height = _choose(top_down, 2**32 - height, height)
    bits, compression = _little_endian(header[28:30]), _little_endian(header[30:34])
    masks = _little_endian(tf.reshape(header[54:66], (3, 4)))
    standard = tf.reduce_all(masks == [0xFF0000, 0x00FF00, 0x0000FF])
    colours = _little_endian(header[46:50])
    colours = _choose(colours == 0, 256, colours)
    palette_start = 14 + header_size
    header_end = palette_start + _choose(bits == 8, 4 * colours, 0)
    needed = data_start + height * _bmp_stride(width, bits)
    reason = _first_reason(
        (end < 18, "the BMP header is cut off"),
        (header_size == 12, "BMP with an OS/2 core header is not read"),
        (
            ~_is_any(header_size, (40, 52, 56, 108, 124)),
            "BMP with a header of {} bytes is not read",
            header_size,
        ),
        (end < header_end, "the BMP header is cut off"),
        (
            ~_is_any(bits, (8, 24, 32)),
            "BMP of {} bits a pixel is not read; 8, 24 and 32 are",
            bits,
        ),
        (
            (compression != 0) & ((compression != 3) | (bits != 32)),
            "BMP of compression {} and {} bits a pixel is not read; uncompressed ones are",
            compression,
            bits,
        ),
        (
            (compression == 3) & ~standard,
            "BMP with other bit masks than 8 bits of blue, green and red is not read",
        ),
        ((bits == 8) & (colours > 256), "BMP palette of {} colours", colours),
        *_size_checks("BMP", width, height),
        (data_start < header_end, "the BMP data overlap its header"),
        (needed > end, "the BMP data are truncated: {} of {} bytes", end, needed),
    )
    return reason, width, height, bits, data_start, palette_start, colours, top_down


def _bmp_stride(width: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    return (width * bits + 31) // 32 * 4


@_seldom_called(input_signature=[tf.TensorSpec((), tf.string)])
def _decode_bmp(encoded: tf.Tensor) -> tf.Tensor:
    # TensorFlow's decoder takes palette indices for grey levels.
    _, width, height, bits, start, palette_start, colours, top_down = _bmp_header(encoded)
    stride, depth = _bmp_stride(width, bits), bits // 8
    data = tf.io.decode_raw(tf.strings.substr(encoded, start, height * stride), tf.uint8)
    rows = tf.reshape(data, (height, stride))[:, : width * depth]
    rows = tf.cond(top_down, lambda: rows, lambda: rows[::-1])
    pixels = tf.reshape(rows, tf.stack([height, width, depth]))

    def look_up():
        palette = tf.io.decode_raw(tf.strings.substr(encoded, palette_start, 4 * colours), tf.uint8)
        index = tf.cast(pixels[..., 0], tf.int64)
        known = tf.debugging.Assert(
            tf.reduce_max(index) < colours, ["the BMP data hold colours that its palette lacks"]
        )
        with tf.control_dependencies([known]):
            return tf.gather(tf.reshape(palette, (-1, 4)), index)

    return tf.cond(bits == 8, look_up, lambda: pixels)[..., 2::-1]
