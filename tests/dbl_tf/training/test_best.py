"""The best weights of a run, and the moving average of its weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from training_batches import make_batches

from dbl_tf import metrics, models, training
from dbl_tf.optimizers import CoupledDecaySGD, DecoupledDecayAdam, warmup_cosine

STEPS, STEPS_PER_EPOCH = 24, 4
MAKERS = {"sgd": CoupledDecaySGD, "adamw": DecoupledDecayAdam}


class KilledError(Exception):
    pass


class Kill(keras.callbacks.Callback):
    """Raises before a step, or at the end of an epoch, both counted from 0."""

    def __init__(self, step=None, epoch=None):
        super().__init__()
        self.step, self.epoch = step, epoch

    def on_train_batch_begin(self, batch, logs=None):
        if self.step is not None:
            self.step -= 1
            if self.step < 0:
                raise KilledError

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KilledError


class Scores(keras.callbacks.Callback):
    """A score for each epoch, in place of one that is measured."""

    def __init__(self, scores):
        super().__init__()
        self.scores, self.weights = scores, {}

    def on_epoch_end(self, epoch, logs):
        logs["val_map"] = self.scores[epoch]
        with training.averaged_weights(self.model):
            self.weights[epoch] = self.model.get_weights()


def make_network(optimizer="sgd", ema=None):
    keras.utils.set_random_seed(0)
    network = models.build_head(6, 3, seed=5)
    average = {} if ema is None else {"use_ema": True, "ema_momentum": ema}
    network.compile(
        MAKERS[optimizer](warmup_cosine(0.1, 3, STEPS), **average),
        keras.losses.BinaryCrossentropy(from_logits=True),
        jit_compile=False,
    )
    return network


def fit(directory, network, callbacks, steps=STEPS, **how):
    directory.mkdir(exist_ok=True)
    training.fit(
        network,
        make_batches,
        steps=steps,
        steps_per_epoch=STEPS_PER_EPOCH,
        checkpoints=training.Checkpoints(directory / "checkpoints"),
        callbacks=callbacks,
        verbose=0,
        **how,
    )


def assert_equal(weights, others):
    for a, b in zip(weights, others, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize(
    ("scores", "best"),
    [([1, 3, 2, 3, 0, 1], 1), ([6, 5, 4, 3, 2, 1], 0), ([np.nan, 1, np.nan, 2, 0, 1], 3)],
)
def test_the_weights_of_the_best_epoch_are_kept(tmp_path, scores, best, ema):
    network, scored = make_network(ema=ema), Scores(scores)
    keep = training.KeepBest(tmp_path / "best.npz")
    fit(tmp_path, network, [scored, keep])
    assert sorted(scored.weights) == list(range(6))
    assert keep.restore(network) == best
    assert_equal(network.get_weights(), scored.weights[best])


def test_where_no_score_is_a_number_the_last_weights_are_kept(tmp_path):
    network = make_network()
    keep = training.KeepBest(tmp_path / "best.npz")
    fit(tmp_path, network, [Scores([np.nan] * 6), keep])
    last = network.get_weights()
    assert keep.restore(network) == 5
    assert_equal(network.get_weights(), last)


@pytest.mark.parametrize(("patience", "epochs"), [(1, 3), (2, 6), (None, 6)])
def test_the_training_stops_when_no_epoch_was_better_for_a_while(tmp_path, patience, epochs):
    scored = Scores([1, 2, 1, 3, 2, 2])
    keep = training.KeepBest(tmp_path / "best.npz", patience=patience)
    fit(tmp_path, make_network(), [scored, keep])
    assert len(scored.weights) == epochs
    # The same command goes no further.
    again = Scores([9] * 6)
    fit(tmp_path, make_network(), [again, training.KeepBest(keep.path, patience=patience)])
    assert not again.weights


@pytest.mark.parametrize("kill", [{"step": 2}, {"step": 9}, {"epoch": 2}, {"epoch": 3}])
@pytest.mark.parametrize(("optimizer", "ema"), [("sgd", 0.9), ("adamw", None), ("adamw", 0.99)])
def test_a_killed_run_ends_with_the_same_best_weights_and_averages(tmp_path, optimizer, ema, kill):
    scores = [1, 2, 5, 3, 4, 2]

    def run(directory, network, *callbacks, **how):
        keep = training.KeepBest(directory / "best.npz")
        fit(directory, network, [Scores(scores), keep, *callbacks], checkpoint_every=3, **how)
        return keep

    whole = make_network(optimizer, ema)
    kept = run(tmp_path / "whole", whole)
    with pytest.raises(KilledError):
        run(tmp_path / "killed", make_network(optimizer, ema), Kill(**kill))
    resumed = make_network(optimizer, ema)
    kept_too = run(tmp_path / "killed", resumed, steps_per_call=2)
    assert_equal(whole.get_weights(), resumed.get_weights())
    for network, keep in ((whole, kept), (resumed, kept_too)):
        training.use_averages(network)
        keep.averages = network.get_weights()
        keep.restored = (keep.restore(network), network.get_weights())
    assert_equal(kept.averages, kept_too.averages)
    assert kept.restored[0] == kept_too.restored[0] == 2
    assert_equal(kept.restored[1], kept_too.restored[1])


def test_the_average_is_that_of_the_weights_after_each_step():
    network, weights = make_network(ema=0.8), []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: weights.append(
            [keras.ops.convert_to_numpy(v) for v in network.trainable_variables]
        )
    )
    training.fit(
        network,
        make_batches,
        steps=STEPS,
        steps_per_epoch=STEPS_PER_EPOCH,
        checkpoints=None,
        callbacks=[record],
        verbose=0,
    )
    expected = [w.astype(np.float64) for w in weights[0]]
    for step in weights[1:]:
        expected = [0.8 * a + 0.2 * w for a, w in zip(expected, step, strict=True)]
    with training.averaged_weights(network):
        for variable, value in zip(network.trainable_variables, expected, strict=True):
            np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5, atol=1e-6)
    assert_equal([v.numpy() for v in network.trainable_variables], weights[-1])


def test_val_map_is_that_of_the_average():
    network = make_network(ema=0.95)
    features = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    labels = (features[:, :3] > 0.3).astype(int)
    batches = tf.data.Dataset.from_tensor_slices(features).batch(16)
    seen = []
    training.fit(
        network,
        make_batches,
        steps=STEPS_PER_EPOCH,
        steps_per_epoch=STEPS_PER_EPOCH,
        checkpoints=None,
        callbacks=[
            training.MeanAveragePrecisionCallback(batches, labels),
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: seen.append(logs["val_map"])
            ),
        ],
        verbose=0,
    )
    plain = metrics.mean_average_precision(labels, network(features).numpy())["total"]
    training.use_averages(network)
    average = metrics.mean_average_precision(labels, network(features).numpy())["total"]
    assert seen == [pytest.approx(average, abs=1e-12)]
    assert plain != pytest.approx(average, abs=1e-6)


def test_best_weights_that_are_damaged_are_named(tmp_path):
    network = make_network()
    keep = training.KeepBest(tmp_path / "best.npz")
    fit(tmp_path, network, [Scores([1] * 6), keep], steps=4)
    keep.path.write_bytes(keep.path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"best weights, .*best\.npz, cannot be read"):
        keep.restore(network)
    with pytest.raises(ValueError, match=r"best weights, .*best\.npz, cannot be read"):
        fit(tmp_path, make_network(), [Scores([1] * 6), training.KeepBest(keep.path)])
    keep.path.unlink()
    with pytest.raises(ValueError, match=r"best\.npz, cannot be read: .*No such file"):
        fit(tmp_path, make_network(), [Scores([1] * 6), training.KeepBest(keep.path)])
