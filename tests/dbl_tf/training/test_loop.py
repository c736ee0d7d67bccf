import contextlib
import csv
import http.server
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from training_batches import make_batches

from dbl_tf import metrics, models, training
from dbl_tf.optimizers import CoupledDecaySGD, WarmupStepDecay
from dbl_tf.training import loop, preemption
from dbl_tf.training.checkpoints import load_arrays, load_numbers, save_arrays

STEPS, STEPS_PER_EPOCH = 11, 4


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


@pytest.mark.parametrize("step", [2, STEPS_PER_EPOCH])
def test_a_directory_that_is_removed_ends_the_training(tmp_path, step):
    directory = tmp_path / "run"

    def remove(batch, logs):
        if batch + 1 == step:
            shutil.rmtree(directory)

    removing = keras.callbacks.LambdaCallback(on_train_batch_end=remove)
    with pytest.raises(FileNotFoundError, match=f"{re.escape(str(directory))}/"):
        fit(directory, make_network(), callbacks=[removing], checkpoint_every=1)
    assert not directory.exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    network, directory = make_network(), tmp_path_factory.mktemp("whole")
    fit(directory, network)
    return network.get_weights(), history(directory)


@pytest.fixture
def uninterrupted(whole):
    return whole[0]


def history(directory):
    """Epochs and losses; of the other columns, `images_per_second` depends on the machine."""
    with open(directory / "history.csv", newline="") as file:
        return [(int(row["epoch"]), float(row["loss"])) for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("step", "every", "steps_per_call"),
    [(2, None, 1), (6, None, 1), (9, None, 1), (2, 3, 1), (6, 3, 1), (9, 3, 1), (5, 3, 2)],
)
def test_a_run_that_was_killed_ends_with_the_weights_of_one_that_was_not(
    tmp_path, whole, every, step, steps_per_call
):
    how = {"checkpoint_every": every, "steps_per_call": steps_per_call}
    with pytest.raises(KilledError):
        fit(tmp_path, make_network(), callbacks=[KillAt(step)], **how)
    resumed = make_network()
    fit(tmp_path, resumed, **how)
    for a, b in zip(whole[0], resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert history(tmp_path) == whole[1]
    assert [epoch for epoch, _ in whole[1]] == [0, 1, 2]
    assert training.Checkpoints(tmp_path / "checkpoints").steps()[-1] == STEPS


def test_a_history_has_the_rate_and_the_speed_of_each_epoch_and_goes_on_from_an_older_one(
    whole, tmp_path
):
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    network = make_network()
    network.optimizer.learning_rate = rate
    with pytest.raises(KilledError):
        fit(tmp_path, network, callbacks=[KillAt(6)])  # of an earlier version, without columns
    with open(tmp_path / "history.csv", newline="") as file:
        first = next(csv.DictReader(file))
    (tmp_path / "history.csv").write_text(f"epoch,loss\n0,{first['loss']}\n")
    network = make_network()
    network.optimizer.learning_rate = rate
    fit(tmp_path, network, batch_size=16)
    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["learning_rate"] == rows[0]["images_per_second"] == ""
    for row in rows[1:]:
        after = min((int(row["epoch"]) + 1) * STEPS_PER_EPOCH, STEPS)
        assert float(row["learning_rate"]) == pytest.approx(0.1 * 0.5**after)
        assert 0 < float(row["images_per_second"]) < math.inf
    assert len(rows) == len(whole[1])


def test_a_training_goes_on_after_its_history_was_removed_and_stopped_again(whole, tmp_path):
    for epochs in (1, 2):  # each start trains one epoch to its end, and is stopped in the next
        with pytest.raises(KilledError):
            fit(tmp_path, make_network(), callbacks=[KillAt(STEPS_PER_EPOCH + 1)])
        if epochs == 1:
            (tmp_path / "history.csv").unlink()  # as the message of a damaged one says
    fit(tmp_path, make_network())
    rows = training.read_history(tmp_path / "history.csv")
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert [row["loss"] for row in rows] == ["", *(str(loss) for _, loss in whole[1][1:])]


def test_a_training_prints_a_line_for_each_epoch_in_a_file(tmp_path, capsys):
    scored = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: logs.update(val_map=0.25)
    )
    training.fit(
        make_network(),
        make_batches,
        steps=STEPS,
        steps_per_epoch=STEPS_PER_EPOCH,
        checkpoints=None,
        history_path=tmp_path / "history.csv",
        callbacks=[scored],
        batch_size=16,
        name="the head",
    )
    lines = capsys.readouterr().out.splitlines()
    for (epoch, loss), line in zip(history(tmp_path), lines, strict=True):
        step = min((epoch + 1) * STEPS_PER_EPOCH, STEPS)
        left = ", about \\d+ s left of the head" if step < STEPS else ""
        assert re.fullmatch(
            f"the head, epoch {epoch + 1} of 3, step {step} of {STEPS}: loss {loss:.4g}, "
            f"val_map 0.2500, [\\d.,]+ images/s{left}",
            line,
        ), line


def test_one_network_after_another_trains_without_a_warning_of_retracing(tmp_path, caplog):
    tf.get_logger().addHandler(caplog.handler)
    try:
        for number in range(6):
            training.fit(
                make_network(),
                make_batches,
                steps=1,
                steps_per_epoch=1,
                checkpoints=training.Checkpoints(tmp_path / str(number)),
                verbose=0,
            )
    finally:
        tf.get_logger().removeHandler(caplog.handler)
    assert "retracing" not in caplog.text


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


def test_a_training_whose_checkpoints_were_removed_says_that_it_starts_again(
    tmp_path, whole, caplog
):
    with pytest.raises(KilledError):
        fit(tmp_path, make_network(), callbacks=[KillAt(2 * STEPS_PER_EPOCH + 1)])
    assert not caplog.records
    shutil.rmtree(tmp_path / "checkpoints")
    network = make_network()
    fit(tmp_path, network)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/history.csv has 2 epochs, but there is no checkpoint in {tmp_path}/checkpoints"
        " to continue from: the training starts again from step 0"
    ]
    for a, b in zip(whole[0], network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert history(tmp_path) == whole[1]


def test_without_a_whole_checkpoint_nothing_is_trained(tmp_path):
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    (directory / "step-00000004.npz").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"no checkpoint .*step-00000004\.npz.*remove .*/checkp"):
        fit(tmp_path, make_network())


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    fit(tmp_path, make_network(), checkpoint_every=1)
    assert training.Checkpoints(tmp_path / "checkpoints").steps() == [10, 11]


@pytest.mark.parametrize("steps_per_call", [3, 100])
def test_steps_that_are_dispatched_together_train_the_same(tmp_path, whole, steps_per_call):
    calls = []
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: calls.append(batch)
    )
    network = make_network()
    fit(tmp_path, network, steps_per_call=steps_per_call, callbacks=[callback])
    for a, b in zip(whole[0], network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert history(tmp_path) == whole[1]
    # The last step of each call, within epochs of 4, 4 and 3 steps.
    assert calls == ([2, 3, 2, 3, 2] if steps_per_call == 3 else [3, 3, 2])


def test_a_short_run_needs_no_checkpoints(whole):
    network = make_network()
    training.fit(
        network,
        make_batches,
        steps=STEPS,
        steps_per_epoch=STEPS_PER_EPOCH,
        checkpoints=None,
        verbose=0,
    )
    for a, b in zip(whole[0], network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def poisoned_from(step):
    """Batches that give finite losses before this step, counted from 1, and NaN from it on."""

    def poison(number, batch):
        return batch[0] / tf.cast(number < step - 1, tf.float32), batch[1]

    return lambda first_step, share: make_batches(first_step).enumerate(first_step).map(poison)


@pytest.fixture
def reads_seldom(monkeypatch):
    """Losses are read where they have to be, and not for the sake of the callbacks."""
    monkeypatch.setattr(loop, "_SECONDS_BETWEEN_READINGS", float("inf"))


@pytest.mark.parametrize(
    ("kind", "step", "every", "last_checkpoint"),
    [
        ("one_device", 1, None, 0),
        ("one_device", 7, None, 4),
        ("one_device", 8, 4, 4),
        ("one_device", 11, 5, 10),
        ("mirrored", 7, 2, 6),
        ("xla", 7, 2, 6),
    ],
)
def test_the_first_loss_that_is_not_finite_is_named_though_it_is_read_later(
    kind, step, every, last_checkpoint, tmp_path, request, reads_seldom
):
    strategy = request.getfixturevalue("mirrored") if kind == "mirrored" else None
    with strategy.scope() if strategy else contextlib.nullcontext():
        network = make_network(stock_dropout=0.0, xla=kind == "xla")
    checkpoints = training.Checkpoints(tmp_path / "checkpoints")
    message = rf"nan at step {step}: .*; the last checkpoint is of step {last_checkpoint}\."
    with pytest.raises(FloatingPointError, match=message):
        training.fit(
            network,
            poisoned_from(step),
            steps=STEPS,
            steps_per_epoch=STEPS_PER_EPOCH,
            checkpoints=checkpoints,
            checkpoint_every=every,
            history_path=tmp_path / "history.csv",
            verbose=0,
        )
    assert max(checkpoints.steps(), default=0) == last_checkpoint
    if step > STEPS_PER_EPOCH:
        assert len(history(tmp_path)) == (step - 1) // STEPS_PER_EPOCH
    # What was written is good: with finite batches, the run goes on to its end.
    fit(tmp_path, make_network(stock_dropout=0.0))
    assert np.isfinite([loss for _, loss in history(tmp_path)]).all()


def test_a_loss_that_is_not_finite_is_named_where_the_batches_end_or_a_callback_stops(
    tmp_path, reads_seldom
):
    class StopAt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 2

    for name, batches, callbacks in (
        ("ended", lambda *start: poisoned_from(2)(*start).take(3), []),
        ("stopped", poisoned_from(2), [StopAt()]),
    ):
        with pytest.raises(FloatingPointError, match="nan at step 2: "):
            training.fit(
                make_network(),
                batches,
                steps=STEPS,
                steps_per_epoch=STEPS_PER_EPOCH,
                checkpoints=training.Checkpoints(tmp_path / name),
                callbacks=callbacks,
                verbose=0,
            )


def test_a_state_that_is_not_finite_is_not_written(tmp_path):
    """The loss of a step is computed before its update, which here overflows."""
    with pytest.raises(
        FloatingPointError,
        match=r"neck/kernel, .* are not finite after step 4; the last checkpoint is of step 2\.",
    ):
        fit(tmp_path, make_network(), checkpoint_every=2, callbacks=[PoisonWeights(after=4)])
    assert training.Checkpoints(tmp_path / "checkpoints").steps() == [2]
    resumed = make_network()
    fit(tmp_path, resumed)
    assert all(np.isfinite(weight).all() for weight in resumed.get_weights())


class PoisonWeights(keras.callbacks.Callback):
    def __init__(self, after):
        super().__init__()
        self.after = after

    def on_train_batch_end(self, batch, logs=None):
        self.after -= 1
        if self.after == 0:
            for weight in self.model.trainable_weights:
                weight.assign(weight * np.inf)


class CountBegun(keras.callbacks.Callback):
    """Counts the steps that the loop has begun, for another thread that waits for them."""

    def __init__(self):
        super().__init__()
        self.begun = 0
        self.changed = threading.Condition()

    def on_train_batch_begin(self, batch, logs=None):
        with self.changed:
            self.begun += 1
            self.changed.notify_all()

    def wait_for(self, number):
        with self.changed:
            if not self.changed.wait_for(lambda: self.begun >= number, timeout=600):
                raise TimeoutError(f"the loop waits for a step, and has begun {self.begun} alone")


@pytest.fixture
def asynchronous():
    """Operations run behind Python, on the CPU as otherwise on a GPU."""
    tf.config.experimental.set_synchronous_execution(False)
    yield
    tf.config.experimental.set_synchronous_execution(True)


@pytest.mark.parametrize("checkpoint_every", [None, 7])
def test_steps_are_dispatched_without_waiting_for_those_before(
    checkpoint_every, tmp_path, reads_seldom, asynchronous
):
    steps, steps_per_epoch, ahead = 40, 20, 4
    counter = CountBegun()

    def batches_that_wait(first_step, share):
        """The batch of a step comes when the loop has begun later steps, up to the next reading."""

        def wait(step, *batch):
            # The first loss of an epoch is read at once; the pipeline makes batches in advance.
            if step % steps_per_epoch and step < steps:
                readings = [steps_per_epoch * (int(step) // steps_per_epoch + 1)]
                if checkpoint_every:
                    readings.append(checkpoint_every * (int(step) // checkpoint_every + 1))
                counter.wait_for(min(int(step) + 1 + ahead, *readings))
            return step

        return (
            make_batches(first_step)
            .enumerate(first_step)
            .map(lambda step, batch: (tf.py_function(wait, [step], tf.int64), batch))
            .map(lambda step, batch: batch)
        )

    training.fit(
        make_network(),
        batches_that_wait,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        checkpoints=training.Checkpoints(tmp_path / "checkpoints"),
        checkpoint_every=checkpoint_every,
        callbacks=[counter],
        verbose=0,
    )
    assert counter.begun == steps


def test_the_losses_are_added_in_the_order_of_the_steps_however_they_are_read(
    tmp_path, monkeypatch
):
    """Compared with each loss as it is read at once, and added in Python."""
    step_losses = []
    make_train_step = loop.make_train_step

    def recording(model, strategy, iterator):
        train_step = make_train_step(model, strategy, iterator)

        def step(iterator, num_steps):
            losses = train_step(iterator, num_steps)
            step_losses.extend(losses.numpy())
            return losses

        return step

    monkeypatch.setattr(loop, "make_train_step", recording)
    monkeypatch.setattr(loop, "_MOST_UNREAD", 3)

    seen = []
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(logs["loss"])
    )
    for seconds in (0.0, float("inf")):
        step_losses.clear()
        seen.clear()
        monkeypatch.setattr(loop, "_SECONDS_BETWEEN_READINGS", seconds)
        directory = tmp_path / str(seconds)
        fit(directory, make_network(), checkpoint_every=3, callbacks=[callback])
        losses = [float(loss) for loss in step_losses]
        assert len(losses) == STEPS and len(set(losses)) == STEPS
        epochs = [losses[:4], losses[4:8], losses[8:]]
        assert [loss for _, loss in history(directory)] == [sum(e) / len(e) for e in epochs]
        means = [sum(e[: i + 1]) / (i + 1) for e in epochs for i in range(len(e))]
        if seconds == 0.0:
            assert seen == means
        else:  # read at the first step of an epoch, with three unread, for checkpoints, at its end
            known = [0, 0, 2, 3, 4, 5, 5, 7, 8, 8, 10]
            assert seen == [means[step] for step in known]
        with np.load(directory / "checkpoints" / "step-00000009.npz") as file:
            assert file["loss_sum"] == losses[8]


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


class SignalAt(keras.callbacks.Callback):
    def __init__(self, number, step):
        super().__init__()
        self.number, self.remaining = number, step

    def on_train_batch_begin(self, batch, logs=None):
        self.remaining -= 1
        if self.remaining == 0:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [3, STEPS_PER_EPOCH, 6, STEPS])
def test_a_signal_finishes_the_step_and_the_training_continues_exactly(
    tmp_path, whole, number, step
):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(training.StoppedError, match=f"stopped at step {step} of {STEPS}; ") as info:
        fit(tmp_path, make_network(), callbacks=[SignalAt(number, step)])
    assert info.value.status == 128 + number
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert training.Checkpoints(tmp_path / "checkpoints").steps()[-1] == step
    resumed = make_network()
    fit(tmp_path, resumed)
    for a, b in zip(whole[0], resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert history(tmp_path) == whole[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_callback_that_raises_nothing_is_not_lost(number, capsys):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.unraisablehook
    kept = Referenced()
    reference = weakref.ref(kept, lambda _: signal.raise_signal(number))
    with pytest.raises(SystemExit) as info, training.exiting_when_stopped("train"):
        del kept
        assert reference() is None
        time.sleep(60)
    assert info.value.code == 128 + number
    assert capsys.readouterr().err == "train: stopped; the same command continues\n"
    after = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.unraisablehook
    assert after == handlers


def test_a_signal_in_whose_place_native_code_puts_its_own_error_still_stops(capsys):
    with pytest.raises(SystemExit) as info, training.exiting_when_stopped("train"):
        try:
            signal.raise_signal(signal.SIGTERM)
        except training.StoppedError as stopped:
            raise RuntimeError("MISMATCH of exception types") from stopped
    assert info.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "train: stopped; the same command continues\n"


class Referenced:
    """An object to which there can be weak references."""


class MetadataServer(http.server.BaseHTTPRequestHandler):
    answers, headers_seen = [], []

    def do_GET(self):
        self.headers_seen.append((self.path, self.headers["Metadata-Flavor"]))
        status, text = self.answers.pop(0)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        """Prints nothing."""


def test_maintenance_that_ends_the_machine_stops_the_training(tmp_path, whole, monkeypatch, capsys):
    end = "TERMINATE_ON_HOST_MAINTENANCE"
    MetadataServer.answers[:] = [(200, "NONE"), (503, ""), (503, ""), (200, end)]
    with http.server.HTTPServer(("localhost", 0), MetadataServer) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        monkeypatch.setenv(preemption.ADDRESS_VARIABLE, f"localhost:{server.server_port}")
        monkeypatch.setattr(preemption, "_SECONDS_BETWEEN_QUESTIONS", 0.01)
        pause = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, **__: time.sleep(0.2))
        try:
            with pytest.raises(training.StoppedError) as info:
                fit(tmp_path, make_network(), callbacks=[pause])
        finally:
            server.shutdown()
            serving.join()
    assert info.value.status == 128 + signal.SIGTERM
    asked = ("/computeMetadata/v1/instance/maintenance-event", "Google")
    assert MetadataServer.headers_seen == 4 * [asked]
    said = capsys.readouterr().err
    assert said.count("the metadata server does not say") == 1
    assert "Compute Engine is about to end this machine" in said
    resumed = make_network()
    monkeypatch.delenv(preemption.ADDRESS_VARIABLE)
    fit(tmp_path, resumed)
    for a, b in zip(whole[0], resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_flipped_bit_of_a_checkpoint_is_believed_or_ends_in_another_error(tmp_path):
    path = tmp_path / "checkpoint.npz"
    values = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array(7, np.int64)]
    save_arrays(path, values, loss_sum=2.5)
    content = path.read_bytes()
    refused = 0
    for bit in range(0, 8 * len(content), 3):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            read = load_arrays(path), load_numbers(path, ["loss_sum"])
        except ValueError as error:
            assert str(error).startswith(f"{path} is damaged: ") and "pickle" not in str(error)
            refused += 1
        else:
            assert read[1] == {"loss_sum": 2.5}
            if [array.shape for array in read[0]] != [(2, 3), ()]:
                continue  # `Checkpoints` and `KeepBest` compare the shapes with the model
            for a, b in zip(values, read[0], strict=True):
                np.testing.assert_array_equal(a, b)
    assert refused > len(content)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x93NUMPY", b"PK"])
def test_what_is_no_checkpoint_is_named_without_advice_to_trust_it(content, tmp_path):
    (tmp_path / "step-00000004.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"step-00000004\.npz is damaged: it is no arch") as info:
        training.Checkpoints(tmp_path).restore(make_network())
    assert "pickle" not in str(info.value) and "\n" not in str(info.value)


def undigested(text):
    """A history without its digests, as earlier versions wrote it."""
    return "".join(f"{line.rpartition(',')[0]}\n" for line in text.splitlines())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "line 1 does not name columns"),
        (lambda text: text.replace("epoch", "when", 1), "line 1 does not name columns"),
        (lambda text: text.replace("\n0,", "\n1,"), "line 2 was changed since it was written"),
        (lambda text: text.replace("0.", "1.", 1), "line 2 was changed since it was written"),
        (lambda text: undigested(text).replace("\n0,", "\n1,"), "of epoch '1' where 0 should"),
        (lambda text: undigested(text).replace("0.", "x.", 1), "column learning_rate: 'x"),
        (lambda text: text[: text.rindex(",")], "line 2 has 3 values for 4 columns"),
        (lambda text: text.replace("0.", "0,", 1), "line 2 has 5 values for 4 columns"),
        (lambda text: text.splitlines(True)[0], "0 rows of the 1 epochs that are finished"),
        (lambda text: "\0\x7f" + text, "line 1 does not name columns|NUL"),
    ],
)
def test_a_history_that_was_changed_is_refused_in_one_line(change, message, tmp_path):
    with pytest.raises(KilledError):
        fit(tmp_path, make_network(), callbacks=[KillAt(STEPS_PER_EPOCH + 1)])
    path = tmp_path / "history.csv"
    text = path.read_text()
    path.write_text(change(text))
    with pytest.raises(ValueError, match=message) as info:
        fit(tmp_path, make_network())
    assert str(path) in str(info.value) and "\n" not in str(info.value)
