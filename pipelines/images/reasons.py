"""Why an image could not be read, in words."""

import re

import tensorflow as tf


def reason_of(error: Exception) -> str:
    """Returns the reason that an error of reading or decoding gives, in one line.

    Args:
        error: an error of TensorFlow, whose message also names operations and devices, or any other
            one.
    """
    if not isinstance(error, tf.errors.OpError):
        return " ".join(str(error).split())
    asserted = re.search(r"Summarized data: b(['\"])(.*)\1", error.message)
    if asserted:  # by `tf.debugging.Assert`, whose data are the reason
        return asserted[2]
    reason = re.sub(r"\{\{.*?\}\}|\[Op:.*?\]", " ", error.message)
    return " ".join(reason.split()).removesuffix(" name:")  # the name of the op, removed
