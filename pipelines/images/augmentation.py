"""Augmentation of training images by random crops, mirroring and changes of color."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from pipelines.images.decoding import Window, decode_window, resized_columns
from pipelines.images.settings import PHOTOGRAPHS, Augmentation

MIN_CROP = 0.8  # of each side
MAX_CROP_ASPECT = 2.0
COLOR_PROBABILITY = 0.5  # of each of the four changes of color
MAX_BRIGHTNESS = 32.0
MAX_SCALE = 0.5  # contrast and saturation are scaled by 1 ± this
MAX_HUE = 18.0  # degrees
_RGB_TO_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]]
)


def augment(
    image: tf.Tensor, image_size: int, seed: tf.Tensor, augmentation: Augmentation = PHOTOGRAPHS
) -> tf.Tensor:
    """Crops, resizes, mirrors and recolors an image at random; a pure function of image and seed.

    The crop is at a uniform place and takes a uniform 0.8 to 1 of each side; its width over its
    height stays within [1/2, 2], or as near to that as such a crop can be. Brightness changes by
    ±32, contrast and saturation by factors in [0.5, 1.5], and hue by ±18°. All of these are
    uniform, and each is applied with probability 0.5, in this order and without clipping in between
    (see `color_matrix`).

    Args:
        image: the image, uint8 (H, W, 3).
        image_size: the side S of the result.
        seed: the seed, integer (2,).
        augmentation: the options of the augmentation, none of which may be None.

    Returns:
        float32 (S, S, 3) in [0, 255].
    """
    window, finish = _draw(image_size, seed, augmentation)
    top, left, height, width = window(tf.shape(image)[:2])
    return finish(image[top : top + height, left : left + width])


def read_for_training(
    encoded: tf.Tensor,
    image_size: int,
    seed: tf.Tensor,
    augmentation: Augmentation = PHOTOGRAPHS,
    *,
    full_decoding: bool = True,
) -> tf.Tensor:
    """Decodes and augments an image, string () → float32 (S, S, 3) in [0, 255].

    See `augment` and, for what is decoded of large JPEGs, `pipelines.images.decode_window`.
    """
    window, finish = _draw(image_size, seed, augmentation)
    return finish(decode_window(encoded, window, image_size, full_decoding=full_decoding))


def _draw(
    image_size: int, seed: tf.Tensor, augmentation: Augmentation
) -> tuple[Window, Callable[[tf.Tensor], tf.Tensor]]:
    """Draws an augmentation: the window of the crop, and what is done to the crop after it."""
    # The generator is named because the default one depends on the device.
    uniform = tf.random.stateless_uniform((13,), seed, alg="philox")
    side, place, amount, gate = tf.split(uniform, (2, 2, 4, 5))

    def window(size: tf.Tensor) -> tuple[tf.Tensor, ...]:
        height, width = _crop_size(size, side)
        room = size - (height, width)
        # A uniform number is at most 1 − 2^−23, so the product never rounds up to room + 1.
        top, left = tf.unstack(tf.cast(place * tf.cast(room + 1, tf.float32), tf.int32))
        return top, left, height, width

    def finish(crop: tf.Tensor) -> tf.Tensor:
        columns = resized_columns(crop, image_size)
        is_mirrored = gate[:1] < augmentation.flip_probability
        columns = tf.reverse(columns, tf.boolean_mask([0], is_mirrored))
        change = tf.where(gate[1:] < COLOR_PROBABILITY, 2.0 * amount - 1.0, 0.0)
        matrix, offset = color_matrix(
            brightness=change[0] * MAX_BRIGHTNESS,
            contrast=1.0 + change[1] * MAX_SCALE,
            saturation=1.0 + change[2] * MAX_SCALE,
            hue=change[3] * MAX_HUE,
        )
        recolored = tf.matmul(matrix, columns) + offset[:, tf.newaxis]
        return tf.clip_by_value(tf.transpose(recolored, (2, 0, 1)), 0.0, 255.0)

    return window, finish


def color_matrix(
    brightness: tf.Tensor, contrast: tf.Tensor, saturation: tf.Tensor, hue: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Combines changes of brightness, contrast, saturation and hue into one affine map of RGB.

    They are applied in this order. Brightness is added to every channel, and contrast multiplies
    the pixel values. Saturation scales I and Q of the YIQ color space, and hue rotates them.

    Args:
        brightness: the value to add, float (), in the units of the pixels.
        contrast: a factor, float ().
        saturation: a factor, float ().
        hue: an angle in degrees, float ().

    Returns:
        The matrix, float32 (3, 3), and the offset, float32 (3,): a pixel x becomes
        matrix · x + offset.
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
    # The rows of luma sum to one and those of the others to zero, so gray stays gray.
    return matrix, tf.fill((3,), tf.cast(contrast * brightness, tf.float32))


def _crop_size(size: tf.Tensor, uniform: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes the (height, width) of the crop, int32, from two uniform numbers.

    The height is uniform over the fractions for which there is a width within the bounds, and the
    width is then uniform over such widths. If no fractions fit, the clipped bounds meet at the
    nearest aspect.
    """
    sides = tf.cast(size, tf.float32)
    aspect = sides[1] / sides[0]

    def between(low, high, uniform):
        low, high = (tf.clip_by_value(bound, MIN_CROP, 1.0) for bound in (low, high))
        return low + uniform * (high - low)

    height = between(aspect * MIN_CROP / MAX_CROP_ASPECT, aspect * MAX_CROP_ASPECT, uniform[0])
    width = between(
        height / (aspect * MAX_CROP_ASPECT), height * MAX_CROP_ASPECT / aspect, uniform[1]
    )
    crop = tf.round(tf.stack([height, width]) * sides)
    crop = tf.clip_by_value(crop, tf.math.ceil(MIN_CROP * sides), sides)
    return tuple(tf.unstack(tf.cast(crop, tf.int32)))
