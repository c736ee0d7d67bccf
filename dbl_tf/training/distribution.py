"""Distribution strategies by name, and agreement among the machines of a cluster."""

import numpy as np
import tensorflow as tf

from dbl_tf.names import STRATEGIES
from dbl_tf.training.cluster import Cluster, reraise_lost_worker, wait_for_the_others


def make_strategy(name: str) -> tf.distribute.Strategy:
    """Creates the distribution strategy of this name.

    Args:
        name: one of `STRATEGIES`. "one_device" uses the first GPU, or the CPU if there is none;
            "mirrored" uses every local GPU, or the CPU if there is none; "multi_worker" uses every
            GPU of the machines that `TF_CONFIG` names, each of which runs the same program; "auto"
            is "mirrored" if there are several GPUs, else "one_device".

    Raises:
        ValueError: the name is unknown; or "multi_worker" finds no cluster in `TF_CONFIG`, or see
            `wait_for_the_others`.
    """
    if name == "multi_worker":
        cluster = Cluster.from_environment()
        wait_for_the_others(cluster)
        return tf.distribute.MultiWorkerMirroredStrategy()
    gpus = tf.config.list_logical_devices("GPU")
    if name == "auto":
        name = "mirrored" if len(gpus) > 1 else "one_device"
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy("GPU:0" if gpus else "CPU:0")
    if name == "mirrored":
        devices = gpus or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}; got {name!r}")


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one of its cluster that writes files; true for a single one."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    if "chief" in resolver.cluster_spec().as_dict():
        return resolver.task_type == "chief"
    return resolver.task_id == 0


def wait_for_all(strategy: tf.distribute.Strategy) -> None:
    """Returns once every process of the cluster has called it; at once for a single process.

    A process that ended while another one still works would be taken for a lost one.

    Raises:
        LostWorkerError: another machine cannot be reached.
    """
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        with reraise_lost_worker(strategy, lambda: "before it had finished"):
            _number_of_each_replica(strategy, 0)


def check_same_on_all(strategy: tf.distribute.Strategy, number: int, message: str) -> None:
    """Checks that all machines of a cluster have the same number.

    Args:
        strategy: the strategy of the training. A single machine always passes.
        number: the number of this machine, below 2^53.
        message: what is wrong if the numbers differ.

    Raises:
        ValueError: the numbers differ. The error holds the message and all numbers.
        LostWorkerError: another machine cannot be reached.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return
    with reraise_lost_worker(strategy, lambda: "before the first step"):
        numbers = _number_of_each_replica(strategy, number)
    if (numbers != number).any():
        found = sorted({int(other) for other in numbers})
        raise ValueError(f"{message} ({number} on this machine, {found} on all)")


def _number_of_each_replica(
    strategy: tf.distribute.MultiWorkerMirroredStrategy, number: int
) -> np.ndarray:
    """What each replica of the cluster was called with, float64 (replicas,), in their order."""
    of_all = strategy.run(_gather, args=(tf.constant(number, tf.float64),))
    return strategy.experimental_local_results(of_all)[0].numpy()


@tf.function
def _gather(own: tf.Tensor) -> tf.Tensor:
    context = tf.distribute.get_replica_context()
    in_its_place = tf.one_hot(
        context.replica_id_in_sync_group,
        context.num_replicas_in_sync,
        on_value=own,
        dtype=tf.float64,
    )
    return context.all_reduce(tf.distribute.ReduceOp.SUM, in_its_place)
