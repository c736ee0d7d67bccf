"""Samplers, which choose the examples of each batch by position or from a stream of records."""

from pipelines.sampling.indices import (
    NAMES,
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
