"""The formats of record files, for programs without TensorFlow yet."""

# The first is read by position, and the second as a stream.
FORMATS = ("array_record", "tfrecord")
