"""Data sets in record files: their layout, their writer and their reader."""

EXAMPLES_PER_SHARD = 2048
