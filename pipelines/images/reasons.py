"""Why an image could not be read, in words."""

import ast
import os
import re

import tensorflow as tf


def reason_of(error: tf.errors.OpError) -> str:
    """Returns the reason that an error of reading or decoding gives, in one line.

    The message of the error also names operations and devices.
    """
    # By `tf.debugging.Assert`, whose data are the reason.
    if asserted := re.search(r"Summarized data: b(['\"])(.*)\1", error.message):
        return os.fsdecode(ast.literal_eval(f"b{asserted[1]}{asserted[2]}{asserted[1]}"))
    if in_graph := re.search(r"assertion failed: \[(.*)\]$", error.message, re.MULTILINE):
        return in_graph[1]
    reason = re.sub(r"\{\{.*?\}\}|\[Op:.*?\]", " ", error.message)
    return " ".join(reason.split()).removesuffix(" name:")  # the name of the op, removed
