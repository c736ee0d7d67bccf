"""Data sets in record files: their layout, their writer and their reader."""

# The first is read by position, and the second as a stream.
FORMATS = ("array_record", "tfrecord")
EXAMPLES_PER_SHARD = 2048
