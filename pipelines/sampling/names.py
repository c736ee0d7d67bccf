"""The names of the samplers, in the order of `SAMPLERS`, for programs without TensorFlow yet."""

NAMES = ("uniform", "class_aware", "class_cycle")
