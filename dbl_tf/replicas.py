"""What a computation knows of the other replicas of its step.

Only TensorFlow's strategies split a batch before the loss sees it. Keras's JAX backend distributes
arrays that stay whole for the program, and PyTorch is used in one process.
"""

from typing import Any

import keras
from keras import ops


def this_replica() -> tuple[Any, int]:
    """Returns the number of this replica, and how many replicas run the step."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:
            return context.replica_id_in_sync_group, context.num_replicas_in_sync
    return 0, 1


def gather(tensor: Any) -> Any:
    """Stacks the tensors that the R replicas of a step pass, in their order.

    The gradient of a sum of functions, one of each replica, is what it would be in one process.

    Args:
        tensor: a floating-point tensor of finite numbers, of the same shape on all replicas.

    Returns:
        The tensors of all replicas, shape (R, …).
    """
    replica, num_replicas = this_replica()
    if num_replicas == 1:
        return ops.expand_dims(tensor, 0)
    import tensorflow as tf

    # The gradient of TensorFlow's sum over replicas is such a sum again; that of its `all_gather`
    # depends on the strategy.
    shape = (num_replicas, *[1] * len(tensor.shape))
    place = tf.reshape(tf.one_hot(replica, num_replicas, dtype=tensor.dtype), shape)
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, place * tensor[None])
