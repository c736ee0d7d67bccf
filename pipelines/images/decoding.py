"""Decoding and resizing of images, the same for training, evaluation and serving.

All functions are made of TensorFlow graph ops, so that an exported model reads images as training
did and loads without this package.
"""

import tensorflow as tf

from pipelines.images.headers import (
    MAX_GIF_BLOCKS,
    NO_FORMAT,
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
)

# The version of `read_for_evaluation`. Raise it whenever a change of decoding or resizing changes a
# pixel, so that cached features are computed again.
EVALUATION_VERSION = 1


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a JPEG, PNG, GIF or BMP as `PIL.ImageOps.exif_transpose(image).convert("RGB")` does.

    Transparency is dropped rather than blended: a transparent pixel gets the color that the file
    stores for it. Of an animation, the first frame is read. 16-bit channels keep their high byte.
    The EXIF orientation of a JPEG, and of a PNG that holds it before its data, is applied. CMYK
    follows Adobe's inverted convention, without a color profile.

    Args:
        encoded: the bytes of an image file, string ().

    Returns:
        The image in RGB, uint8 (H, W, 3).

    Raises:
        tf.errors.InvalidArgumentError: the image cannot be read; the message gives the reason of
            `inspect` or, for corrupt or truncated data after a good header, of the decoder.
    """
    encoded = tf.convert_to_tensor(encoded)
    reason, image_format, orientation = read_header(encoded)
    with tf.control_dependencies([tf.debugging.Assert(tf.equal(reason, ""), [reason])]):
        encoded = tf.identity(encoded)
    return _decode_as(encoded, image_format, orientation)


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


def read_for_evaluation(encoded: tf.Tensor, image_size: int) -> tf.Tensor:
    """Decodes and resizes an image, string () → float32 (S, S, 3) in [0, 255]; see `decode`."""
    return resize(decode(encoded), image_size)


def read_batch(encoded: tf.Tensor, image_size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Reads images for evaluation in parallel, such that a bad image does not fail the others.

    Args:
        encoded: the bytes of image files, string (B,), where B may be 0.
        image_size: the side S of the results.

    Returns:
        images: the results of `read_for_evaluation`, float32 (B, S, S, 3); zeros for an image that
            cannot be read.
        errors: the reasons why images cannot be read, string (B,); empty for the others.
    """
    batch_size = tf.size(encoded, tf.int64)
    # Headers are read outside the pipeline, because it prepares its function anew at every call,
    # which takes longer for a larger function. Reading a header never fails, whatever the bytes.
    header = [tf.TensorSpec((), dtype) for dtype in (tf.string, tf.int32, tf.int64)]
    reasons, formats, orientations = tf.map_fn(
        read_header, encoded, fn_output_signature=tuple(header)
    )
    is_readable = tf.equal(reasons, "")
    formats = tf.where(is_readable, formats, NO_FORMAT)

    def read(row, encoded, image_format, orientation):
        return row, resize(_decode_as(encoded, image_format, orientation), image_size)

    # Rows whose decoder fails drop out. An extra last row keeps the batch from being empty.
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


def _decode_as(encoded: tf.Tensor, image_format: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Decodes an image whose header is known to be good; `NO_FORMAT` gives a black pixel."""
    image = tf.switch_case(
        image_format,
        [
            # PIL uses this transform too; TensorFlow's default differs by up to 7 levels.
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
    flipped = tf.stack([is_any(orientation, (3, 4, 7, 8)), is_any(orientation, (2, 3, 6, 7))])
    return tf.reverse(image, tf.boolean_mask([0, 1], flipped))


@seldom_called(input_signature=[tf.TensorSpec((), tf.string)])
def _decode_gif(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes the first frame of a GIF and puts it on the canvas.

    TensorFlow's decoder unpacks every frame and blackens transparent pixels, so it is given a GIF
    that holds only the first frame, without transparency. If the frame does not fill the canvas,
    the rest gets the transparent color or, without one, the first color, as PIL does it.
    """
    _, position, transparent = gif_header(encoded)
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
    inside = tf.pad(tf.ones_like(image, tf.bool), margins)
    return tf.where(inside, tf.pad(image, margins), surround)


def _byte_string(number: tf.Tensor) -> tf.Tensor:
    return tf.gather(tf.constant([bytes([i]) for i in range(256)]), number)


@seldom_called(input_signature=[tf.TensorSpec((), tf.string)])
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
