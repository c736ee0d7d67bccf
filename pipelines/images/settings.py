"""The settings of the augmentation, from which the commands make their flags."""

import dataclasses

from dbl_tf.settings import FRACTION, check, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Options of the augmentation.

    Raises:
        ValueError: a value is out of its range.
    """

    flip_probability: float | None = setting(
        None,
        "Probability that a training image is mirrored. The default depends on the data: 0 for "
        "digits, 0.5 for photographs.",
        range=FRACTION,
    )

    def __post_init__(self) -> None:
        check(self)

    def for_data(self, flip_probability: float) -> "Augmentation":
        """Returns the options with None replaced by the default of the data set."""
        if self.flip_probability is not None:
            return self
        return dataclasses.replace(self, flip_probability=flip_probability)


PHOTOGRAPHS = Augmentation(flip_probability=0.5)
