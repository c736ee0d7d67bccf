"""What the network of a run sees: images, or features that were given or computed once."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

import tensorflow as tf

from pipelines import inputs
from pipelines.examples import Examples, FeatureRows

BATCH_SIZE = 64
_ANY_SIZE = 32

# The errors of reading and decoding an image. Others, such as a lack of memory, have other causes.
_READING_ERRORS = (
    tf.errors.DataLossError,
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.UnknownError,
)


class NetworkInputs(Protocol):
    """The inputs of a network, as it is judged and used."""

    def batches(self, examples: Examples) -> tf.data.Dataset:
        """Returns the inputs of the examples in their order, in batches."""
        ...

    def naming_unreadable(
        self, examples: Examples, positions: Callable[[], tf.data.Dataset] | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """Returns a context that turns an error of a pipeline into one that names the example.

        Args:
            examples: the examples that the pipeline reads.
            positions: returns batches of the positions that may be the cause; all by default.
        """
        ...


class ImageInputs:
    """Images, resized.

    Args:
        image_size: the side S of the images.
        full_decoding: whether JPEGs are decoded at their full size; see `images.decode_window`.
    """

    def __init__(self, image_size: int, full_decoding: bool):
        self.image_size, self.full_decoding = image_size, full_decoding

    def batches(self, examples: Examples) -> tf.data.Dataset:
        """Returns the images of the examples in their order, float32 (≤ B, S, S, 3)."""
        return inputs.evaluation_batches(
            examples,
            image_size=self.image_size,
            batch_size=BATCH_SIZE,
            full_decoding=self.full_decoding,
        )

    @contextlib.contextmanager
    def naming_unreadable(
        self, examples: Examples, positions: Callable[[], tf.data.Dataset] | None = None
    ) -> Iterator[None]:
        """Turns an error of a pipeline into one that names the image, if an image is the cause."""
        try:
            yield
        except _READING_ERRORS as error:
            suspected = positions() if positions else _every_position(examples)
            cause = inputs.find_unreadable(examples, suspected, self.image_size)
            if cause is None:
                raise
            raise cause from error


class FeatureInputs:
    """Features.

    Args:
        features_of: a function that returns the features of examples.
    """

    def __init__(self, features_of: Callable[[Examples], FeatureRows]):
        self.features_of = features_of

    def batches(self, examples: Examples) -> tf.data.Dataset:
        """Returns the features of the examples in their order, float32 (≤ B, F)."""
        return inputs.evaluation_features(self.features_of(examples), BATCH_SIZE)

    def naming_unreadable(
        self, examples: Examples, positions: Callable[[], tf.data.Dataset] | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """Returns an empty context, since no image is read."""
        return contextlib.nullcontext()


def given_features(examples: Examples) -> FeatureRows:
    """Returns the features that the data themselves hold.

    Raises:
        TypeError: the examples are images.
    """
    if examples.features is None:
        raise TypeError("these examples are images and hold no features")
    return examples.features


def of_data(image_size: int | None, full_decoding: bool) -> ImageInputs | FeatureInputs:
    """Returns the inputs of a network that sees the data themselves.

    Args:
        image_size: the side of the images; None for data that are features.
        full_decoding: see `ImageInputs`.
    """
    if image_size is None:
        return FeatureInputs(given_features)
    return ImageInputs(image_size, full_decoding)


def naming_unreadable(
    examples: Examples, positions: Callable[[], tf.data.Dataset] | None = None
) -> contextlib.AbstractContextManager[None]:
    """Returns the context of `NetworkInputs.naming_unreadable` where no network sees the data."""
    size = _ANY_SIZE if examples.features is None else None
    return of_data(size, True).naming_unreadable(examples, positions)


def _every_position(examples: Examples) -> tf.data.Dataset:
    return tf.data.Dataset.range(len(examples)).batch(BATCH_SIZE)
