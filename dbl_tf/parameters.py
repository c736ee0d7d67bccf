"""The parameters of all losses: each with its default, range, symbol and description, once."""

import dataclasses
from typing import Any

from dbl_tf.settings import (
    FINITE,
    FRACTION_BELOW_ONE,
    NON_NEGATIVE,
    POSITIVE,
    check,
    setting,
)

MARGINS = ("paper", "released")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossParameters:
    """Parameters of the losses and weights, passed whole; a method uses those that it has.

    Equations are those of Wu et al., Distribution-Balanced Loss, ECCV 2020.

    Raises:
        ValueError: a value out of its range.
    """

    alpha: float = setting(
        0.1, "Lower bound of the re-balanced weights, Eq. 4.", range=NON_NEGATIVE, symbol="α"
    )
    beta: float = setting(
        10.0, "Slope of the re-balanced weights, Eq. 4.", range=POSITIVE, symbol="β"
    )
    mu: float = setting(
        0.2, "Midpoint of the re-balanced weights, Eq. 4.", range=FINITE, symbol="μ"
    )
    lambda_: float = setting(
        2.0, "Scale of the loss of negatives, Eq. 7.", range=POSITIVE, symbol="λ"
    )
    kappa: float = setting(0.05, "Scale of the class margins, Eq. 9.", range=FINITE, symbol="κ")
    margin: str = setting(
        "paper",
        "How the class margin ν enters the loss: as printed in the paper, or as ν/λ, as in the "
        "authors' released code.",
        choices=MARGINS,
    )
    focal_gamma: float = setting(
        2.0, "Focusing exponent of the focal losses; 0 turns focusing off.", range=NON_NEGATIVE,
        symbol="γ",
    )  # fmt: skip
    focal_scale: float = setting(2.0, "Factor of the focal losses.", range=POSITIVE, symbol="s")
    gamma_negative: float = setting(
        4.0, "Focusing exponent of the negatives in the asymmetric loss.", range=NON_NEGATIVE,
        symbol="γ₋",
    )  # fmt: skip
    gamma_positive: float = setting(
        1.0, "Focusing exponent of the positives in the asymmetric loss.", range=NON_NEGATIVE,
        symbol="γ₊",
    )  # fmt: skip
    clip: float = setting(
        0.05,
        "Probability below which negatives cost nothing in the asymmetric loss.",
        range=FRACTION_BELOW_ONE,
        symbol="m",
    )
    max_margin: float = setting(
        0.5, "Largest margin of LDAM, on the scale of the cosine.", range=NON_NEGATIVE, symbol="Δ"
    )
    cosine_scale: float = setting(
        30.0, "Scale of the cosine classifier and of its loss, LDAM.", range=POSITIVE, symbol="s"
    )
    effective_number_beta: float = setting(
        0.9,
        "β of the effective number of examples in class-balanced weights.",
        range=FRACTION_BELOW_ONE,
        symbol="β",
    )

    def __post_init__(self) -> None:
        check(self)


DEFAULTS = LossParameters()


def check_parameters(**values: Any) -> None:
    """Refuses values of parameters, given by name, that are out of range.

    Raises:
        ValueError: names the parameter, what it takes and what was found.
    """
    LossParameters(**values)
