"""Whether a loss receives the logits, or the probabilities, that it was made for."""

import warnings
from typing import Any

import numpy as np

from dbl_tf.producers import Producer, known_values, producer_of

# Values are looked at in the first calls alone, because that waits for the device.
_CALLS_WITH_VALUES = 10
# Logits of a network without training may have one sign for each class, so in one case of 2^C all
# of them may be positive, and small.
_FEWEST_CLASSES, _FEWEST_VALUES = 8, 64
_TOLERANCE = 1e-3


class OutputCheck:
    """Warns once if a loss of logits receives probabilities, or the other way round.

    What is looked for is the operation that the outputs come from, in a compiled step as in an
    eager one, and the range of values that are known: outside [0, 1] they are no probabilities. Of
    logits, all of 64 or more values of 8 or more classes are hardly ever within [0, 1], and the
    rows of logits do not add up to 1.

    Args:
        loss: the name of the loss, for the message.
        from_logits: whether the loss takes logits.
    """

    def __init__(self, loss: str, from_logits: bool):
        self._loss = loss
        self._from_logits = from_logits
        self._has_warned = False
        self._num_values_seen = 0

    def __call__(self, y_pred: Any) -> None:
        """Warns if the outputs of a model, (B, C), are not what the loss takes."""
        if self._has_warned:
            return
        found = self._found(producer_of(y_pred)) or self._found_in_values(y_pred)
        if found:
            self._has_warned = True
            if self._from_logits:
                takes = "logits (from_logits=True)"
                remedy = (
                    "The loss would take the sigmoid of a probability: leave out the activation of "
                    "the last layer, or pass from_logits=False to the loss"
                )
            else:
                takes = "probabilities (from_logits=False)"
                remedy = "Pass from_logits=True to the loss, or let the model end in a sigmoid"
            warnings.warn(f"{self._loss} takes {takes}, but {found}. {remedy}.", stacklevel=4)

    def _found(self, producer: Producer | None) -> str:
        if producer is None or (producer.activation == "linear") == self._from_logits:
            return ""
        what = (
            "layer without activation" if producer.activation == "linear" else producer.activation
        )
        return f"y_pred comes from a {what}" + (f" ({producer.layer})" if producer.layer else "")

    def _found_in_values(self, y_pred: Any) -> str:
        if self._num_values_seen >= _CALLS_WITH_VALUES:
            return ""
        values = known_values(y_pred)
        if values is None or values.ndim != 2 or not values.size or not np.isfinite(values).all():
            return ""
        self._num_values_seen += 1
        low, high = values.min(), values.max()
        is_within = low >= 0 and high <= 1
        if not self._from_logits:
            is_outside = low < -_TOLERANCE or high > 1 + _TOLERANCE
            return f"y_pred has values from {low:.3g} to {high:.3g}" if is_outside else ""
        if not is_within or low == high or not ((values > 0) & (values < 1)).any():
            return ""
        if _are_distributions(values):
            return f"the rows of y_pred add up to 1, with values from {low:.3g} to {high:.3g}"
        if values.shape[1] >= _FEWEST_CLASSES and values.size >= _FEWEST_VALUES:
            return f"all values of y_pred are within [0, 1], from {low:.3g} to {high:.3g}"
        return ""


def _are_distributions(values: np.ndarray) -> bool:
    """Whether there are four different rows or more, each with a sum of 1."""
    differ = bool(np.ptp(values, axis=0).any())
    return len(values) >= 4 and differ and bool((abs(values.sum(axis=1) - 1) < _TOLERANCE).all())
