"""Distribution strategies by name, and what the machines of a cluster agree on."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker")


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The distribution strategy of this name.

    Args:
        name: "one_device", the first GPU or else the CPU; "mirrored", every local GPU, or the CPU
            where there is none; "multi_worker", every GPU of the machines that `TF_CONFIG` names,
            of which each runs the same program; "auto", "mirrored" where there are several GPUs,
            else "one_device".

    Raises:
        ValueError: an unknown name, or "multi_worker" without a cluster in `TF_CONFIG`.
    """
    if name == "multi_worker":
        try:
            cluster = json.loads(os.environ.get("TF_CONFIG") or "{}")
        except json.JSONDecodeError as error:
            raise ValueError(f"TF_CONFIG is no JSON: {error}") from None
        if not (isinstance(cluster, dict) and {"cluster", "task"} <= set(cluster)):
            raise ValueError(
                "strategy multi_worker needs TF_CONFIG, which names all machines and which of them "
                'this is: {"cluster": {"worker": ["host0:port", "host1:port"]}, "task": {"type": '
                f'"worker", "index": 0}}}}; found {os.environ.get("TF_CONFIG")!r}'
            )
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
    """Whether this process is the one of its cluster that writes files; true where it is alone."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    if "chief" in resolver.cluster_spec().as_dict():
        return resolver.task_type == "chief"
    return resolver.task_id == 0


def wait_for_all(strategy: tf.distribute.Strategy) -> None:
    """Returns once every process of the cluster has come here.

    A process that ended while another still works would be taken for a lost one.
    """

    def one_each() -> Any:
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.ones(()))

    with reraise_lost_worker(strategy, lambda: "while it was waited for"):
        strategy.run(tf.function(one_each))


def check_same_on_all(strategy: tf.distribute.Strategy, number: int, message: str) -> None:
    """Refuses machines of a cluster of which one has another number.

    Args:
        strategy: of the training; nothing is done where it has one machine alone.
        number: of this machine, below 2^53.
        message: what is wrong where they differ.

    Raises:
        ValueError: the message and all numbers.
        LostWorkerError: another machine cannot be reached.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return

    def of_each() -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        own = tf.one_hot(
            context.replica_id_in_sync_group,
            context.num_replicas_in_sync,
            on_value=tf.constant(number, tf.float64),
            dtype=tf.float64,
        )
        return context.all_reduce(tf.distribute.ReduceOp.SUM, own)

    with reraise_lost_worker(strategy, lambda: "before the first step"):
        of_all = strategy.run(tf.function(of_each))
    numbers = strategy.experimental_local_results(of_all)[0].numpy()
    if (numbers != number).any():
        found = sorted({int(other) for other in numbers})
        raise ValueError(f"{message}: this one has {number}, all have {found}")


class LostWorkerError(RuntimeError):
    """Another process of the cluster has ended or cannot be reached."""


@contextlib.contextmanager
def reraise_lost_worker(
    strategy: tf.distribute.Strategy, when: Callable[[], str]
) -> Iterator[None]:
    """Turns the failure of a collective into a `LostWorkerError` that says when."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            raise
        raise LostWorkerError(
            f"another machine of the cluster was lost {when()}. Start the same command on all "
            f"machines to continue ({error.message.splitlines()[0]})"
        ) from error
