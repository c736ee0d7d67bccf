r"""Compares ways to take the training steps of a head on features.

    python -m benchmarks.head_steps --examples=FILE.npz

A step of so small a network takes less time than dispatching it, and waiting for its loss takes
longer still. `training.fit` dispatches many steps at once and reads their losses together; this is
compared with steps that are dispatched one by one, their losses read together or each at once, and
with Keras's own `model.fit`. All train the same network on the same batches from the pipeline, and
are timed in turns. Each turn begins with a new pipeline, whose first steps are not counted.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import flags

from benchmarks import measuring

_READ, _UNREAD = "one by one, each loss read", "one by one, losses read together"
_TOGETHER, _KERAS = "many in a call", "Keras's model.fit"
NAMES = (_READ, _UNREAD, _TOGETHER, _KERAS)


def define_flags() -> list[flags.FlagHolder]:
    """Defines the flags of the program."""
    return [
        flags.DEFINE_string("examples", None, "Features and labels, as .npz.", required=True),
        flags.DEFINE_string("method", "db_focal", "Method that is trained."),
        flags.DEFINE_integer("batch_size", 32, "Examples in a batch.", lower_bound=1),
        flags.DEFINE_integer("calls", 20, "Calls of a timing, of 50 steps each.", lower_bound=1),
        flags.DEFINE_integer("rounds", 5, "Timings of each.", lower_bound=1),
    ]


def measure(examples: str, method: str, batch_size: int, calls: int, rounds: int) -> dict[str, Any]:
    """Times every way to take the same number of steps."""
    from pipelines.runs.config import RunConfig
    from pipelines.runs.heads import STEPS_PER_CALL

    head = _Head(
        RunConfig.of(
            dataset="features",
            examples=examples,
            method=method,
            batch_size=batch_size,
            steps=1_000_000,
            clamp_counts=True,
        )
    )
    num_steps = calls * STEPS_PER_CALL
    opened: dict[str, Iterator] = {}

    def several(steps_per_call: int, read_each: bool) -> Callable[[], None]:
        def take() -> None:
            pending = []
            for _ in range(num_steps // steps_per_call):
                losses = head.step(opened["batches"], steps_per_call)
                pending.append(losses.numpy() if read_each else losses)
            _check_finite(np.concatenate([np.asarray(losses) for losses in pending]))

        return take

    candidates = {
        _READ: several(1, True),
        _UNREAD: several(1, False),
        _TOGETHER: several(STEPS_PER_CALL, False),
        _KERAS: lambda: head.fit_by_keras(num_steps),
    }

    def before(name: str) -> None:
        opened.clear()  # the pipeline of another turn ends here
        if name != _KERAS:
            opened["batches"] = head.open()
            head.step(opened["batches"], STEPS_PER_CALL if name == _TOGETHER else 1).numpy()

    timings = measuring.in_turns(candidates, rounds=rounds, before=before)
    opened.clear()
    return {
        "steps": num_steps,
        "steps_per_second": {
            name: measuring.quartiles([num_steps / value for value in values])
            for name, values in timings.seconds.items()
        },
        "time": {
            name: measuring.ratio(timings.seconds[name], timings.seconds[_TOGETHER])
            for name in NAMES
        },
        "cpu_time": {
            name: measuring.ratio(timings.cpu_seconds[name], timings.cpu_seconds[_TOGETHER])
            for name in NAMES
        },
    }


class _Head:
    """Head, compiled step and batches of a configuration, as a run has them."""

    def __init__(self, asked: Any):
        import keras
        import tensorflow as tf

        from dbl_tf.statistics import LabelStatistics
        from dbl_tf.training import loop
        from pipelines.runs import build, network_inputs, resolution

        data = asked.load_data()
        config = resolution.resolve(asked, data)
        train = data.splits["train"]
        statistics = LabelStatistics.from_labels(train.targets, data.class_names)
        features = network_inputs.given_features(train)
        keras.utils.set_random_seed(config.seed)
        _, self._model = build.build_networks(
            config, statistics, num_features=features.num_features, load_weights=False
        )
        self._model.compile(
            build.make_optimizer(config, build.make_plan(config, statistics)),
            build.make_loss(config, statistics),
            jit_compile=False,
        )
        self._model.optimizer.build(self._model.trainable_variables)
        self._batches = build.make_feature_batches(config, train, statistics, features)
        self._strategy = tf.distribute.get_strategy()
        self._distributed = loop.distributed_batches
        self.step = loop.make_train_step(self._model, self._strategy, self.open())

    def open(self) -> Iterator:
        """Returns the batches from the first step on."""
        return iter(self._distributed(self._strategy, self._batches, 0))

    def fit_by_keras(self, num_steps: int) -> None:
        """Takes as many steps by `model.fit`, and checks the mean of their losses."""
        from dbl_tf.training import ALL_ROWS

        history = self._model.fit(
            self._batches(0, ALL_ROWS), epochs=1, steps_per_epoch=num_steps, verbose=0
        )
        _check_finite(np.array(history.history["loss"]))


def _check_finite(losses: np.ndarray) -> None:
    if not np.isfinite(losses).all():
        raise ValueError("a loss is not finite: the figures would be of no training")


def describe(result: dict[str, Any]) -> str:
    """Formats the figures as a table."""
    header = ["", "steps/s", "time beside many in a call", "CPU time"]
    rows = [
        [
            name,
            measuring.show(result["steps_per_second"][name], digits=0),
            measuring.show(result["time"][name]),
            measuring.show(result["cpu_time"][name]),
        ]
        for name in NAMES
    ]
    return measuring.table(header, rows)


if __name__ == "__main__":
    measuring.run("head_steps", define_flags, measure, describe)
