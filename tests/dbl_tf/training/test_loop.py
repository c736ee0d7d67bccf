import contextlib
import csv

import keras
import numpy as np
import pytest
import tensorflow as tf

from dbl_tf import metrics, models, training
from dbl_tf.optimizers import CoupledDecaySGD, WarmupStepDecay

STEPS, STEPS_PER_EPOCH = 11, 4


def make_batches(first_step, share=None):
    """Endless batches, each a function of its step."""

    def batch(step):
        seed = tf.stack([tf.constant(7, tf.int64), step])
        features = tf.random.stateless_normal((16, 6), seed)
        return features, tf.cast(features[:, :3] > 0.3, tf.float32)

    return tf.data.Dataset.range(first_step, 2**40).map(batch)


def make_network(learning_rate=0.1, loss_scaling=False, stock_dropout=0.1, xla=False):
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((6,)),
            # Keras's own dropout, so that the state of random generators is tested too.
            keras.layers.Dropout(stock_dropout, seed=3),
            *models.build_head(6, 3, seed=5).layers[1:],
        ]
    )
    optimizer = CoupledDecaySGD(WarmupStepDecay(learning_rate, 3, [8]))
    network.compile(
        keras.optimizers.LossScaleOptimizer(optimizer) if loss_scaling else optimizer,
        keras.losses.BinaryCrossentropy(from_logits=True),
        jit_compile=xla,
    )
    return network


class KilledError(Exception):
    pass


class KillAt(keras.callbacks.Callback):
    def __init__(self, step):
        super().__init__()
        self.remaining = step

    def on_train_batch_begin(self, batch, logs=None):
        self.remaining -= 1
        if self.remaining < 0:
            raise KilledError


class KillAfterEpoch(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        raise KilledError


def fit(directory, network, **arguments):
    directory.mkdir(exist_ok=True)
    training.fit(
        network,
        make_batches,
        steps=STEPS,
        steps_per_epoch=STEPS_PER_EPOCH,
        checkpoints=training.Checkpoints(directory / "checkpoints"),
        history_path=directory / "history.csv",
        verbose=0,
        **arguments,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    network, directory = make_network(), tmp_path_factory.mktemp("whole")
    fit(directory, network)
    return network.get_weights(), history(directory)


@pytest.fixture
def uninterrupted(whole):
    return whole[0]


def history(directory):
    with open(directory / "history.csv", newline="") as file:
        return [(int(row["epoch"]), float(row["loss"])) for row in csv.DictReader(file)]


@pytest.mark.parametrize("every", [None, 3])
@pytest.mark.parametrize("step", [2, 6, 9])
def test_a_run_that_was_killed_ends_with_the_weights_of_one_that_was_not(
    tmp_path, whole, every, step
):
    with pytest.raises(KilledError):
        fit(tmp_path, make_network(), callbacks=[KillAt(step)], checkpoint_every=every)
    resumed = make_network()
    fit(tmp_path, resumed, checkpoint_every=every)
    for a, b in zip(whole[0], resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert history(tmp_path) == whole[1]
    assert [epoch for epoch, _ in whole[1]] == [0, 1, 2]
    assert training.Checkpoints(tmp_path / "checkpoints").steps()[-1] == STEPS


def test_a_killed_run_with_loss_scaling_continues(tmp_path):
    whole = make_network(loss_scaling=True)
    fit(tmp_path / "whole", whole)
    with pytest.raises(KilledError):
        network = make_network(loss_scaling=True)
        fit(tmp_path, network, callbacks=[KillAt(6)], checkpoint_every=3)
    resumed = make_network(loss_scaling=True)
    fit(tmp_path, resumed, checkpoint_every=3)
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_finished_run_trains_no_further(tmp_path, uninterrupted):
    fit(tmp_path, make_network())
    network = make_network()
    fit(tmp_path, network, callbacks=[KillAt(0)])
    for a, b in zip(uninterrupted, network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, uninterrupted, caplog):
    fit(tmp_path, make_network())
    checkpoints = training.Checkpoints(tmp_path / "checkpoints")
    newest = checkpoints.path(STEPS)
    newest.write_bytes(newest.read_bytes()[:-200])
    resumed = make_network()
    fit(tmp_path, resumed)
    assert any("step-00000011.npz" in record.getMessage() for record in caplog.records)
    for a, b in zip(uninterrupted, resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_a_whole_checkpoint_nothing_is_trained(tmp_path):
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    (directory / "step-00000004.npz").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"no checkpoint can be used: .*step-00000004\.npz"):
        fit(tmp_path, make_network())


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    fit(tmp_path, make_network(), checkpoint_every=1)
    assert training.Checkpoints(tmp_path / "checkpoints").steps() == [10, 11]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path):
    network = make_network()

    def poisoned(first_step, share):
        return (
            make_batches(first_step)
            .enumerate(first_step)
            .map(lambda step, batch: (batch[0] / tf.cast(step != 6, tf.float32), batch[1]))
        )

    with pytest.raises(FloatingPointError, match=r"nan at step 7: .*last checkpoint is of step 4"):
        training.fit(
            network,
            poisoned,
            steps=STEPS,
            steps_per_epoch=STEPS_PER_EPOCH,
            checkpoints=training.Checkpoints(tmp_path / "checkpoints"),
            verbose=0,
        )


def test_val_map_is_in_the_logs_before_other_callbacks_read_them(tmp_path):
    features, labels = next(iter(make_batches(100)))
    seen = []
    network = make_network()
    fit(
        tmp_path,
        network,
        callbacks=[
            training.MeanAveragePrecisionCallback(
                tf.data.Dataset.from_tensor_slices(features).batch(5), labels.numpy()
            ),
            keras.callbacks.LambdaCallback(on_epoch_end=lambda _, logs: seen.append(dict(logs))),
        ],
    )
    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_map"]) for row in rows] == [logs["val_map"] for logs in seen]
    expected = metrics.mean_average_precision(labels.numpy(), network.predict(features, verbose=0))
    assert seen[-1]["val_map"] == pytest.approx(expected["total"], abs=1e-12)


def test_one_and_two_replicas_train_alike_and_as_keras_fit_does(mirrored, tmp_path):
    weights = {}
    for name, strategy in {"one": None, "two": mirrored}.items():
        with strategy.scope() if strategy else contextlib.nullcontext():
            network = make_network(stock_dropout=0.0)
        fit(tmp_path / name, network)
        weights[name] = network.get_weights()
    network = make_network(stock_dropout=0.0)
    network.fit(make_batches(0), steps_per_epoch=STEPS, verbose=0, shuffle=False)
    for one, two, keras_fit in zip(*weights.values(), network.get_weights(), strict=True):
        np.testing.assert_allclose(one, keras_fit, rtol=0, atol=1e-6)
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)


def test_a_compiled_step_trains_alike(tmp_path):
    plain, compiled = make_network(stock_dropout=0.0), make_network(stock_dropout=0.0, xla=True)
    for network in (plain, compiled):  # XLA draws other masks
        next(layer for layer in network.layers if layer.name == "neck_dropout").rate = 0.0
    fit(tmp_path / "plain", plain)
    fit(tmp_path / "compiled", compiled)
    for a, b in zip(plain.get_weights(), compiled.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_a_compiled_step_of_several_replicas_is_refused(mirrored, tmp_path):
    with mirrored.scope():
        network = make_network(xla=True)
    with pytest.raises(ValueError, match="jit_compile=True trains on one device, not under Mirr"):
        fit(tmp_path, network)


def test_the_tensorboard_log_holds_every_epoch_once(tmp_path):
    log = tmp_path / "tensorboard"
    # Killed in the middle of an epoch, and where an epoch is logged and its checkpoint is not
    # written.
    for kill in (KillAt(6), KillAfterEpoch()):
        with pytest.raises(KilledError):
            board = training.TensorBoard(str(log), write_graph=False)
            fit(tmp_path, make_network(), callbacks=[board, kill], checkpoint_every=3)
    path = sorted((log / "train").iterdir())[-1]
    path.write_bytes(path.read_bytes()[:-3])
    fit(
        tmp_path,
        make_network(),
        callbacks=[training.TensorBoard(str(log), write_graph=False)],
        checkpoint_every=3,
    )
    logged = []
    for path in sorted((log / "train").iterdir()):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            logged += [
                (event.step, float(tf.make_ndarray(value.tensor)))
                for value in event.summary.value
                if value.tag == "epoch_loss"
            ]
    assert [epoch for epoch, _ in logged] == [0, 1, 2]
    for (_, loss), (_, expected) in zip(logged, history(tmp_path), strict=True):
        assert loss == pytest.approx(expected, rel=1e-6)


def test_strategies():
    assert training.make_strategy("one_device").num_replicas_in_sync == 1
    assert training.make_strategy("mirrored").num_replicas_in_sync == 2  # logical CPU devices
    assert training.make_strategy("auto").num_replicas_in_sync == 1
    with pytest.raises(ValueError, match="strategy must be one of auto, one_device, mirrored"):
        training.make_strategy("cluster")
