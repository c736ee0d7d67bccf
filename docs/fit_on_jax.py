"""Trains with `keras.Model.fit` on Keras's JAX backend: `python docs/fit_on_jax.py`.

Needs JAX (`pip install jax`) or, with `KERAS_BACKEND=torch`, PyTorch.
TensorFlow only makes the batches, in `tf.data`; network, loss and optimizer run on the backend.
"""

import argparse
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
import tensorflow as tf

import dbl_tf
from dbl_tf import models
from pipelines import images, inputs, sampling
from pipelines.datasets import digits_mlt

IMAGE_SIZE, BATCH_SIZE = 32, 32


def main() -> None:
    """Trains on the scenes of digits and prints the scores of the test split."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps_per_epoch", type=int, default=50)
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    # TensorFlow would take the memory of a GPU, which the backend needs.
    tf.config.set_visible_devices([], "GPU")

    data = digits_mlt.compose()
    train, test = data.splits["train"], data.splits["test"]
    statistics = dbl_tf.LabelStatistics.from_labels(train.labels, data.class_names)
    loss = dbl_tf.DistributionBalancedLoss(
        statistics.class_counts, statistics.num_examples, rebalance="sample_weight"
    )

    def weighting(labels: tf.Tensor) -> tf.Tensor:
        """r̂ of a batch, inside tf.data: the sample weights that the loss waits for."""
        return dbl_tf.weighting.rebalanced_weights(
            labels, statistics.class_counts, loss.alpha, loss.beta, loss.mu
        )

    batches = inputs.training_batches(  # endless: (images, labels, weights)
        train,
        sampling.class_aware_indices(train.labels, BATCH_SIZE, seed=0),
        image_size=IMAGE_SIZE,
        seed=0,
        augmentation=images.Augmentation(flip_probability=data.flip_probability),
        weighting=weighting,
    )

    backbone = models.build_backbone("small_resnet", IMAGE_SIZE)
    head = models.build_head(backbone.output_shape[-1], len(data.class_names))
    network = models.join(backbone, head)
    network.compile(keras.optimizers.Adam(), loss)
    print(f"training on the {keras.backend.backend()} backend", flush=True)
    network.fit(
        batches,
        epochs=options.epochs,
        steps_per_epoch=options.steps_per_epoch,
        shuffle=False,  # the batches are drawn at random
        verbose=2,
    )

    logits = network.predict(
        inputs.evaluation_batches(test, image_size=IMAGE_SIZE, batch_size=250), verbose=0
    )
    labels, groups = test.labels.toarray(), statistics.groups
    # Logits rank as probabilities do. Equal scores give each class its share of the examples.
    for name, scores in (("trained", logits), ("by chance", np.zeros_like(logits))):
        mean_ap = dbl_tf.metrics.mean_average_precision(labels, scores, groups)
        print(f"mAP {name}:", ", ".join(f"{g} {100 * ap:.2f} %" for g, ap in mean_ap.items()))


if __name__ == "__main__":
    main()
