"""Samplers, which choose the examples of each batch by position or from a stream of records."""

from typing import TYPE_CHECKING

from dbl_tf import lazy
from pipelines.sampling.names import NAMES

if TYPE_CHECKING:
    from pipelines.sampling.indices import (
        SAMPLERS,
        STREAM_SAMPLERS,
        RejectionTable,
        class_aware_indices,
        class_cycle_indices,
        draws_per_epoch,
        steps_per_epoch,
        uniform_indices,
    )
    from pipelines.sampling.streams import SHUFFLE_BUFFER, class_aware_stream, uniform_stream

__all__ = [
    "NAMES",
    "SAMPLERS",
    "SHUFFLE_BUFFER",
    "STREAM_SAMPLERS",
    "RejectionTable",
    "class_aware_indices",
    "class_aware_stream",
    "class_cycle_indices",
    "draws_per_epoch",
    "steps_per_epoch",
    "uniform_indices",
    "uniform_stream",
]

__getattr__, __dir__ = lazy.attributes(
    __name__,
    {
        "indices": [
            "SAMPLERS",
            "STREAM_SAMPLERS",
            "RejectionTable",
            "class_aware_indices",
            "class_cycle_indices",
            "draws_per_epoch",
            "steps_per_epoch",
            "uniform_indices",
        ],
        "permutation": [],
        "streams": ["SHUFFLE_BUFFER", "class_aware_stream", "uniform_stream"],
    },
)
