"""Distribution strategies by name, and agreement among the machines of a cluster."""

import time

import numpy as np
import tensorflow as tf

from dbl_tf.names import STRATEGIES
from dbl_tf.training.cluster import Cluster, reraise_lost_worker, wait_for_the_others

# Machines ask each other about this often whether one of them was told to stop.
_SECONDS_BETWEEN_QUESTIONS = 0.1


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


class CommonStop:
    """The step after which all machines stop, once any of them has received a signal.

    All of them must stop after the same step, since no machine can take a step alone. So they ask
    each other at steps on which they agree: at first after every step, and then after as many as
    take a tenth of a second on the slowest machine.

    Args:
        strategy: the strategy of the training. A single machine stops when it likes.

    Attributes:
        signal: the number of the signal for which all stop; None while there is none.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self.signal: int | None = None
        self._strategy = strategy
        self._asked_at: tuple[int, float] | None = None
        self._interval = 1

    def is_due(self, step: int, own_signal: int | None, *, is_last: bool) -> bool:
        """Whether to stop after this number of steps. All machines must call it after each step.

        Args:
            step: the number of steps that are trained.
            own_signal: the number of the signal that this machine has received, if any.
            is_last: whether this is the last step, after which nobody asks again.

        Raises:
            tf.errors.OpError: another machine cannot be reached.
        """
        if not isinstance(self._strategy, tf.distribute.MultiWorkerMirroredStrategy):
            self.signal = own_signal
        elif is_last or self._asked_at is None or step >= self._asked_at[0] + self._interval:
            self._ask(self._strategy, step, own_signal)
        return self.signal is not None

    def _ask(
        self,
        strategy: tf.distribute.MultiWorkerMirroredStrategy,
        step: int,
        own_signal: int | None,
    ) -> None:
        self.signal = int(_number_of_each_replica(strategy, own_signal or 0).max()) or None
        now = time.monotonic()
        own_seconds = 0.0 if self._asked_at is None else now - self._asked_at[1]
        seconds = _number_of_each_replica(strategy, own_seconds).max()
        if self._asked_at is not None and seconds < _SECONDS_BETWEEN_QUESTIONS:
            self._interval *= 2
        elif seconds > 2 * _SECONDS_BETWEEN_QUESTIONS:
            self._interval = max(1, self._interval // 2)
        self._asked_at = step, now


def _number_of_each_replica(
    strategy: tf.distribute.MultiWorkerMirroredStrategy, number: float
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
