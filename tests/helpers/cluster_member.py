"""One process of a cluster that trains a small network; started by `test_cluster.py`."""

import pathlib
import sys
import time

import keras
import numpy as np
import tensorflow as tf

import dbl_tf
from dbl_tf import models, training
from dbl_tf.optimizers import CoupledDecaySGD, WarmupStepDecay

GO_ON = "go_on"
BATCH_SIZE, NUM_FEATURES = 16, 6
CLASS_COUNTS, NUM_EXAMPLES = [40, 9, 3], 64


def batches(step: int, share: training.Share) -> tf.data.Dataset:
    """Rows of the share of endless batches, each a function of its step."""
    size = BATCH_SIZE // share.count
    rows = slice(share.index * size, (share.index + 1) * size)

    def batch(step):
        features = tf.random.stateless_normal((BATCH_SIZE, NUM_FEATURES), tf.stack([7, step]))
        labels = tf.cast(features[:, :3] > 0.3, tf.float32)
        weights = dbl_tf.weighting.rebalanced_weights(labels, CLASS_COUNTS)
        return features[rows], labels[rows], weights[rows]

    return tf.data.Dataset.range(step, 2**40).map(batch)


def train(
    strategy: tf.distribute.Strategy,
    run_dir: pathlib.Path,
    steps: int,
    pause: float,
    nan_step: int | None = None,
    hold_at: int | None = None,
) -> None:
    """Trains and leaves the weights of the chief in `weights.npz`.

    Args:
        strategy: of this process.
        run_dir: receives the checkpoints and the weights.
        steps: to train in all.
        pause: seconds that the chief waits after each step.
        nan_step: the step, counted from 1, whose features are not finite.
        hold_at: the step, counted from 1, after which the chief waits for the file `GO_ON` to
            appear in `run_dir`, before it writes the checkpoint of the step.
    """
    keras.utils.set_random_seed(0)
    with strategy.scope():
        network = models.build_head(NUM_FEATURES, len(CLASS_COUNTS), seed=5)
        network.compile(
            CoupledDecaySGD(WarmupStepDecay(0.1, 3, [8]), global_clipnorm=0.05),
            dbl_tf.DistributionBalancedLoss(CLASS_COUNTS, NUM_EXAMPLES, rebalance="sample_weight"),
            jit_compile=False,
        )

    def poisoned(first_step: int, share: training.Share) -> tf.data.Dataset:
        def poison(step, batch):
            features, *others = batch
            return features / tf.cast(step + 1 != nan_step, tf.float32), *others

        good = batches(first_step, share)
        return good.enumerate(first_step).map(poison)

    def after_step(batch: int, logs: dict[str, float]) -> None:
        time.sleep(pause)
        while (
            network.optimizer.iterations.value.numpy() == hold_at and not (run_dir / GO_ON).exists()
        ):
            time.sleep(0.02)

    training.fit(
        network,
        batches if nan_step is None else poisoned,
        steps=steps,
        steps_per_epoch=5,
        checkpoints=training.Checkpoints(run_dir / "checkpoints"),
        checkpoint_every=1 if nan_step is None else None,
        callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=after_step)],
        verbose=0,
    )
    if training.is_chief(strategy):
        np.savez(run_dir / "weights.npz", *network.get_weights())
    training.wait_for_all(strategy)


if __name__ == "__main__":
    with training.exiting_when_stopped("cluster_member"):
        train(
            training.make_strategy("multi_worker"),
            pathlib.Path(sys.argv[1]),
            int(sys.argv[2]),
            float(sys.argv[3]),
            int(sys.argv[4]) or None,
            int(sys.argv[5]) or None,
        )
