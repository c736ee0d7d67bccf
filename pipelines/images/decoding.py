"""Decoding and resizing of images, the same for training, evaluation and serving.

All functions are made of TensorFlow graph ops, so that an exported model reads images as training
did and loads without this package.
"""

import functools
from collections.abc import Callable

import tensorflow as tf

from pipelines.images.headers import (
    HEADER_SPEC,
    JPEG,
    MAX_GIF_BLOCKS,
    NO_FORMAT,
    Header,
    bmp_header,
    bmp_stride,
    bytes_at,
    choose,
    gif_header,
    is_any,
    length_of,
    little_endian,
    read_header,
    seldom_called,
    webp_header,
)

# The version of `read_for_evaluation`. Raise it whenever a change of decoding or resizing changes a
# pixel, so that cached features are computed again.
EVALUATION_VERSION = 1
# A JPEG is decoded at 1, 1/2, 1/4 or 1/8 of its size, the smallest at which the part that is
# resized still has so many times the side of the result.
SCALED_SIDES = 2
_RATIOS = (1, 2, 4, 8)
# PIL uses this transform too; TensorFlow's default differs by up to 7 levels.
_DCT_METHOD = "INTEGER_ACCURATE"
# Function from the size of an upright image, (height, width), to the part that is wanted of it:
# top, left, height and width. All are int32 ().
Window = Callable[[tf.Tensor], tuple[tf.Tensor, ...]]


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes an image as `PIL.ImageOps.exif_transpose(image).convert("RGB")` does.

    JPEG, PNG, GIF, WebP and BMP are read. Transparency is dropped rather than blended: a
    transparent pixel gets the color that the file stores for it. Of an animated GIF, the first
    frame is read; an animated WebP is refused. 16-bit channels keep their high byte. The EXIF
    orientation of a JPEG, a WebP, and a PNG that holds it before its data, is applied. CMYK follows
    Adobe's inverted convention, without a color profile.

    Args:
        encoded: the bytes of an image file, string ().

    Returns:
        The image in RGB, uint8 (H, W, 3).

    Raises:
        tf.errors.InvalidArgumentError: the image cannot be read; the message gives the reason of
            `inspect` or, for corrupt or truncated data after a good header, of the decoder.
    """
    encoded, header = _checked(encoded)
    return _decode_whole(encoded, header)


def decode_window(
    encoded: tf.Tensor, window: Window, image_size: int, *, full_decoding: bool
) -> tf.Tensor:
    """Decodes the part of an image that is going to be resized to a square; see `decode`.

    A large JPEG is decoded at a smaller size by the scaled inverse cosine transform of libjpeg: at
    the largest ratio of 1, 2, 4 and 8 that leaves the part at least twice the side of the result.
    The window is then taken in the scaled image.

    Args:
        encoded: the bytes of an image file, string ().
        window: the function from the size of an image to the part that is wanted.
        image_size: the side S to which it is going to be resized.
        full_decoding: whether every image is decoded at its full size instead.

    Returns:
        The part in RGB, uint8 (h, w, 3).

    Raises:
        tf.errors.InvalidArgumentError: see `decode`.
    """
    encoded, header = _checked(encoded)
    return _decode_window(encoded, header, window, image_size, full_decoding=full_decoding)


def whole(size: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Returns the window that is the whole image."""
    return (tf.constant(0), tf.constant(0), *tf.unstack(size))


def _checked(encoded: tf.Tensor) -> tuple[tf.Tensor, Header]:
    """Returns the bytes with their header, which is known to be good."""
    encoded = tf.convert_to_tensor(encoded)
    header = read_header(encoded)
    good = tf.debugging.Assert(tf.equal(header.reason, ""), [header.reason])
    with tf.control_dependencies([good]):
        return tf.identity(encoded), header


def resize(image: tf.Tensor, image_size: int) -> tf.Tensor:
    """Resizes an image to a square, whatever its aspect, by antialiased bilinear interpolation.

    A pixel of the result is an average of all source pixels under it, with the weights of
    `PIL.Image.resize(..., BILINEAR)`. Without antialiasing, a large photograph would be
    point-sampled.

    Args:
        image: the image, (H, W, 3) in [0, 255], of any numeric type.
        image_size: the side S of the result.

    Returns:
        The resized image, float32 (S, S, 3) in [0, 255].
    """
    resized = tf.transpose(resized_columns(image, image_size), (2, 0, 1))
    # The weights sum to one only up to rounding.
    return tf.clip_by_value(resized, 0.0, 255.0)


def resized_columns(image: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes to a square, (H, W, 3) → float32 (S, 3, S), whose last axis is the vertical one."""
    height, width = tf.unstack(tf.shape(image)[:2])
    rows = _resize_rows(tf.reshape(image, (height, width * 3)), size)
    columns = _resize_rows(tf.reshape(tf.transpose(rows), (width, 3 * size)), size)
    return tf.reshape(columns, (size, 3, size))


def _resize_rows(rows: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes the first axis of a matrix: (H, K), any numeric type → float32 (S, K).

    The kernel of `tf.image.resize` adds the channels of a pixel at once, but pixels one by one. For
    one axis at a time, with everything else as channels, it takes half as long for the same sums.
    """
    return tf.image.resize(rows[:, tf.newaxis], (size, 1), antialias=True)[:, 0]


def read_for_evaluation(
    encoded: tf.Tensor, image_size: int, *, full_decoding: bool = True
) -> tf.Tensor:
    """Decodes and resizes an image, string () → float32 (S, S, 3) in [0, 255].

    See `decode` and, for large JPEGs, `decode_window`.
    """
    image = decode_window(encoded, whole, image_size, full_decoding=full_decoding)
    return resize(image, image_size)


def read_batch(
    encoded: tf.Tensor, image_size: int, *, full_decoding: bool = True
) -> tuple[tf.Tensor, tf.Tensor]:
    """Reads images for evaluation in parallel, such that a bad image does not fail the others.

    Args:
        encoded: the bytes of image files, string (B,), where B may be 0.
        image_size: the side S of the results.
        full_decoding: see `decode_window`.

    Returns:
        images: the results of `read_for_evaluation`, float32 (B, S, S, 3); zeros for an image that
            cannot be read.
        errors: the reasons why images cannot be read, string (B,); empty for the others.
    """
    batch_size = tf.size(encoded, tf.int64)
    # Headers are read outside the pipeline, because it prepares its function anew at every call,
    # which takes longer for a larger function. Reading a header never fails, whatever the bytes.
    headers = tf.map_fn(read_header, encoded, fn_output_signature=HEADER_SPEC)
    is_readable = tf.equal(headers.reason, "")
    headers = headers._replace(image_format=tf.where(is_readable, headers.image_format, NO_FORMAT))

    def read(row: tf.Tensor, encoded: tf.Tensor, header: Header) -> tuple[tf.Tensor, tf.Tensor]:
        image = _decode_window(encoded, header, whole, image_size, full_decoding=full_decoding)
        return row, resize(image, image_size)

    # Rows whose decoder fails drop out. An extra last row keeps the batch from being empty.
    last = (batch_size, tf.zeros((image_size, image_size, 3)))
    rows, images = (
        tf.data.Dataset.from_tensor_slices((tf.range(batch_size), encoded, headers))
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
    errors = tf.where(is_corrupt, "the image data are corrupt or truncated", headers.reason)
    static = encoded.shape
    return tf.ensure_shape(images, (*static, image_size, image_size, 3)), tf.ensure_shape(
        errors, static
    )


def _decode_window(
    encoded: tf.Tensor, header: Header, window: Window, image_size: int, *, full_decoding: bool
) -> tf.Tensor:
    """Decodes the part of an image whose header is known to be good; see `decode_window`."""
    halvings = None if full_decoding else _halvings(header, window, image_size)
    image = _decode_whole(encoded, header, halvings)
    top, left, height, width = window(tf.shape(image)[:2])
    return image[top : top + height, left : left + width]


def _halvings(header: Header, window: Window, image_size: int) -> tf.Tensor:
    """Returns how often the sides of a JPEG are halved when it is decoded, int32 () from 0 to 3."""
    size = tf.cast(tf.where(header.orientation >= 5, header.size[::-1], header.size), tf.int32)
    *_, height, width = window(size)
    enough = SCALED_SIDES * image_size * tf.constant(_RATIOS[1:])
    return tf.reduce_sum(tf.cast(tf.minimum(height, width) >= enough, tf.int32))


def _decode_whole(
    encoded: tf.Tensor, header: Header, halvings: tf.Tensor | None = None
) -> tf.Tensor:
    """Decodes an image whose header is known to be good; `NO_FORMAT` gives a black pixel.

    Args:
        encoded: the bytes of an image file, string ().
        header: its header.
        halvings: see `_halvings`; None for the full size.
    """

    def jpeg(ratio: int = 1) -> tf.Tensor:
        return tf.io.decode_jpeg(encoded, channels=3, ratio=ratio, dct_method=_DCT_METHOD)

    def scaled_jpeg() -> tf.Tensor:
        if halvings is None:
            return jpeg()
        return tf.switch_case(halvings, [functools.partial(jpeg, ratio) for ratio in _RATIOS])

    image = tf.cond(
        tf.equal(header.image_format, JPEG),
        scaled_jpeg,
        lambda: _decode_other(encoded, header.image_format),
    )
    return tf.ensure_shape(_reorient(image, header.orientation), (None, None, 3))


@seldom_called(tf.TensorSpec((), tf.string), tf.TensorSpec((), tf.int32))
def _decode_other(encoded: tf.Tensor, image_format: tf.Tensor) -> tf.Tensor:
    """Decodes an image of any format but JPEG."""
    return tf.switch_case(
        image_format - 1,
        [
            lambda: tf.io.decode_png(encoded, channels=3),
            lambda: _decode_gif(encoded),
            lambda: _decode_bmp(encoded),
            lambda: _decode_webp(encoded),
            lambda: tf.zeros((1, 1, 3), tf.uint8),
        ],
    )


def _reorient(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Undoes an EXIF orientation: a transposition for 5 to 8, then flips of rows and columns."""

    def turned() -> tf.Tensor:
        upright = tf.transpose(image, tf.where(orientation >= 5, [1, 0, 2], [0, 1, 2]))
        return tf.reverse(upright, tf.boolean_mask([0, 1], tf.stack(_flips(orientation))))

    return tf.cond(orientation > 1, turned, lambda: image)


def _flips(orientation: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns whether an EXIF orientation flips rows, and columns, of the transposed image."""
    return is_any(orientation, (3, 4, 7, 8)), is_any(orientation, (2, 3, 6, 7))


@seldom_called(tf.TensorSpec((), tf.string))
def _decode_gif(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes the first frame of a GIF and puts it on the canvas.

    TensorFlow's decoder unpacks every frame and blackens transparent pixels, so it is given a GIF
    that holds only the first frame, without transparency. If the frame does not fill the canvas,
    the rest gets the transparent color or, without one, the first color, as PIL does it.
    """
    _, _, position, transparent = gif_header(encoded)
    screen = bytes_at(encoded, 6, 5)
    frame = bytes_at(encoded, position, 10)
    left, top, width, height = tf.unstack(little_endian(tf.reshape(frame[1:9], (4, 2))))
    local = frame[9] >= 128
    palette_bits = choose(local, frame[9], screen[4]) % 8
    palette_size = 3 * 2 ** (palette_bits + 1)
    palette_start = choose(local, position + 10, tf.constant(13, tf.int64))
    data_start = position + 10 + choose(local, palette_size, 0)

    def skip_block(_, position):
        size = bytes_at(encoded, position, 1)[0]
        return size, position + 1 + size

    last_size, data_end = tf.while_loop(
        lambda size, _: size > 0,
        skip_block,
        # The data begin with a byte that belongs to no block, the code size.
        (tf.constant(1, tf.int64), data_start + 1),
        maximum_iterations=MAX_GIF_BLOCKS,
        parallel_iterations=1,
    )
    complete = tf.debugging.Assert(
        tf.equal(last_size, 0) & (data_end <= length_of(encoded)),
        [f"the GIF data are truncated, or in more than {MAX_GIF_BLOCKS} blocks"],
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

    right = tf.maximum(little_endian(screen[:2]) - left - width, 0)
    bottom = tf.maximum(little_endian(screen[2:4]) - top - height, 0)
    surround = tf.io.decode_raw(
        tf.strings.substr(palette, tf.minimum(3 * transparent, palette_size - 3), 3), tf.uint8
    )
    margins = tf.stack([[top, bottom], [left, right], [0, 0]])
    # Bytes wrap around, so that the difference is exact; a mask would take the memory of another
    # canvas.
    return tf.pad(image - surround, margins) + surround


@seldom_called(tf.TensorSpec((), tf.string))
def _decode_webp(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes the image of a WebP without its transparency.

    TensorFlow's decoder refuses three channels of a file with transparency, and ends the process
    on an animated one, so it is given a file of the image chunk alone. Lossy images store their
    transparency in another chunk; lossless ones announce it by a bit of their header, on which the
    colors do not depend.
    """
    _, _, position, _ = webp_header(encoded)
    chunk = bytes_at(encoded, position, 13)
    size = little_endian(chunk[4:8])
    is_lossless = tf.equal(chunk[3], ord("L"))
    fifth = chunk[12] - choose(is_lossless, chunk[12] // 16 % 2 * 16, 0)
    riff_size = 12 + size + size % 2
    digits = [_byte_string(riff_size // 256**place % 256) for place in range(4)]
    name_to_fourth = tf.strings.substr(encoded, position, tf.constant(12, tf.int64))
    rest = tf.strings.substr(encoded, position + 13, size - 5)
    padding = tf.where(tf.equal(size % 2, 1), b"\0", b"")
    parts = [b"RIFF", *digits, b"WEBP", name_to_fourth, _byte_string(fifth), rest, padding]
    return tf.io.decode_webp(tf.strings.join(parts), channels=3)[0]


def _byte_string(number: tf.Tensor) -> tf.Tensor:
    return tf.gather(tf.constant([bytes([i]) for i in range(256)]), number)


@seldom_called(tf.TensorSpec((), tf.string))
def _decode_bmp(encoded: tf.Tensor) -> tf.Tensor:
    # TensorFlow's decoder mistakes palette indices for gray levels.
    _, width, height, bits, start, palette_start, colors, top_down = bmp_header(encoded)
    stride, depth = bmp_stride(width, bits), bits // 8
    data = tf.io.decode_raw(tf.strings.substr(encoded, start, height * stride), tf.uint8)
    rows = tf.reshape(data, (height, stride))[:, : width * depth]
    rows = tf.cond(top_down, lambda: rows, lambda: rows[::-1])
    pixels = tf.reshape(rows, tf.stack([height, width, depth]))

    def look_up():
        palette = tf.io.decode_raw(tf.strings.substr(encoded, palette_start, 4 * colors), tf.uint8)
        index = tf.cast(pixels[..., 0], tf.int64)
        known = tf.debugging.Assert(
            tf.reduce_max(index) < colors, ["the BMP data hold colors that its palette lacks"]
        )
        with tf.control_dependencies([known]):
            return tf.gather(tf.reshape(palette, (-1, 4)), index)

    return tf.cond(bits == 8, look_up, lambda: pixels)[..., 2::-1]
