"""The parameters of all losses, each with its default, range, symbol and description, once."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dbl_tf.settings import (
    FINITE,
    FRACTION,
    FRACTION_BELOW_ONE,
    NON_NEGATIVE,
    POSITIVE,
    Range,
    check_value,
    setting,
    settings_of,
)

MARGINS = ("paper", "released")
WAYS = ("both", "samples")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossParameters:
    """The parameters of all losses, weights and classifiers; each method uses some of them.

    Equation numbers refer to Wu et al., Distribution-Balanced Loss, ECCV 2020.

    Raises:
        ValueError: if a value is out of range.

    Example:

    >>> LossParameters(mu=0.3, lambda_=5.0).lambda_
    5.0
    >>> LossParameters(beta=0.0)
    Traceback (most recent call last):
    ValueError: beta must be greater than 0; got 0.0
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
        2.0, "Focusing exponent of the focal losses, Hill and SPLC; 0 turns focusing off.",
        range=NON_NEGATIVE,
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
    temperature_positive: float = setting(
        4.0, "Temperature of the positives in the two-way loss.", range=POSITIVE, symbol="T₊"
    )
    temperature_negative: float = setting(
        1.0, "Temperature of the negatives in the two-way loss.", range=POSITIVE, symbol="T₋"
    )
    ways: str = setting(
        "both",
        "What the two-way loss compares: the labels of each example and the examples of each "
        "label, or the labels of each example alone.",
        choices=WAYS,
    )
    logit_margin: float = setting(
        1.0, "Margin of the logits of positives in Hill and SPLC.", range=FINITE, symbol="m"
    )
    hill_lambda: float = setting(
        1.5,
        "λ of the factor λ − p of negatives in Hill and the robust asymmetric loss.",
        range=Range(low=1),
        symbol="λ",
    )
    correction_threshold: float = setting(
        0.6,
        "Probability above which SPLC takes a negative for a positive that was not labelled.",
        range=FRACTION,
        symbol="τ",
    )
    correction_epochs: float = setting(
        1.0, "Epochs at the beginning in which SPLC takes labels as they are.", range=NON_NEGATIVE
    )
    robust_gamma_positive: float = setting(
        0.0,
        "Focusing exponent of the positives in the robust asymmetric loss.",
        range=NON_NEGATIVE,
        symbol="γ₊",
    )
    robust_linear: float = setting(
        1.0,
        "Coefficient of 1 − p in the polynomial of positives of the robust asymmetric loss.",
        range=FINITE,
        symbol="a₁",
    )
    robust_quadratic: float = setting(
        -1.25,
        "Coefficient of (1 − p)² in the polynomial of positives of the robust asymmetric loss.",
        range=FINITE,
        symbol="a₂",
    )
    poly_epsilon: float = setting(
        2.0,
        "Coefficient ε of 1 − p in poly-1 cross-entropy.",
        range=Range(low=-1),
        symbol="ε",
    )

    def __post_init__(self) -> None:
        check_parameters(**dataclasses.asdict(self))


_SETTINGS = {field.name: details for field, details in settings_of(LossParameters)}


def check_parameters(*, arguments: Mapping[str, str] | None = None, **values: Any) -> None:
    """Refuses parameters that are out of range.

    Args:
        arguments: the caller's own names for parameters, by their name in `LossParameters`.
        **values: the values of parameters, by their name in `LossParameters`.

    Raises:
        ValueError: the message names the argument, the accepted values and the value found.
        KeyError: if there is no parameter of this name.

    Example:

    >>> check_parameters(alpha=0.1, cosine_scale=0.0, arguments={"cosine_scale": "scale"})
    Traceback (most recent call last):
    ValueError: scale must be greater than 0; got 0.0
    """
    for name, value in values.items():
        check_value(value, _SETTINGS[name], name=(arguments or {}).get(name, name))


DEFAULTS = LossParameters()
