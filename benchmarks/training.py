r"""Compares training steps per second with the input pipeline and on one batch in memory.

    python -m benchmarks.training --examples=FILE.csv --backbone=ResNet50 --image_size=224
    python -m benchmarks.training --examples=FILE.csv --backbone=MobileNet --image_size=128 \
        --backbone_options=alpha=0.75

The step is the one of `dbl_tf.training.fit`, with the model, the optimizer, the loss and the
batches that `train.py` makes from the same flags; only logging, progress and checkpoints are left
out. DB-Focal (`db_focal`) is compared with binary cross-entropy and the same re-sampling (`rs`).
Everything is timed in turns. Each turn of a pipeline begins with a new one, whose first steps are
not counted, so that none keeps running while another is timed.
"""

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import flags

from benchmarks import measuring

METHODS = ("db_focal", "rs")
_INPUTS = ("pipeline", "in memory")
# The first steps after another network was at work are slower, whatever feeds them.
_UNCOUNTED_STEPS = 4


def define_flags() -> list[flags.FlagHolder]:
    """Defines the flags of the program."""
    return [
        flags.DEFINE_string("examples", None, "Table of photographs.", required=True),
        flags.DEFINE_string("backbone", "ResNet50", "The network below the head."),
        flags.DEFINE_string("backbone_options", "", "Its arguments, name=value,name=value."),
        flags.DEFINE_integer("image_size", 224, "Side of the images.", lower_bound=1),
        flags.DEFINE_integer("batch_size", 32, "Images in a batch.", lower_bound=1),
        flags.DEFINE_integer("steps", 10, "Steps of a timing.", lower_bound=1),
        flags.DEFINE_integer("rounds", 5, "Timings of each.", lower_bound=1),
    ]


def measure(
    examples: str,
    backbone: str,
    backbone_options: str,
    image_size: int,
    batch_size: int,
    steps: int,
    rounds: int,
) -> dict[str, Any]:
    """Times both methods, with the pipeline and without."""
    from pipelines.runs import config

    runs = {}
    with tempfile.TemporaryDirectory() as scratch:
        for method in METHODS:
            settings = config.RunConfig.of(
                dataset="table",
                examples=examples,
                check_images="header",
                cache_dir=scratch,
                method=method,
                backbone=backbone,
                backbone_options=config.parse_options(backbone_options),
                backbone_weights="none",
                image_size=image_size,
                batch_size=batch_size,
                steps=1_000_000,
            )
            runs[method] = _Run(settings)
        candidates, opened = {}, {}
        for method, run in runs.items():
            for source in _INPUTS:
                candidates[f"{method}, {source}"] = _stepping(run, opened, steps)

        def before(name: str) -> None:
            method, source = name.split(", ")
            opened.clear()  # the pipeline of another turn ends here
            run = runs[method]
            opened["batches"] = run.from_pipeline() if source == "pipeline" else run.from_memory()
            for _ in range(_UNCOUNTED_STEPS):
                run.step(opened["batches"])

        timings = measuring.in_turns(candidates, rounds=rounds, before=before)
        opened.clear()
    seconds, cpu_seconds = timings.seconds, timings.cpu_seconds
    bce, db = (f"{method}, in memory" for method in reversed(METHODS))

    def beside_memory(of_each: dict[str, list[float]]) -> dict[str, dict[str, float]]:
        return {
            method: measuring.ratio(of_each[f"{method}, in memory"], of_each[f"{method}, pipeline"])
            for method in METHODS
        }

    return {
        "steps_per_second": {
            name: measuring.quartiles([steps / value for value in values])
            for name, values in seconds.items()
        },
        "pipeline_beside_memory": beside_memory(seconds),
        "pipeline_beside_memory_by_cpu": beside_memory(cpu_seconds),
        "db_focal_time_beside_bce": measuring.ratio(seconds[db], seconds[bce]),
        "db_focal_cpu_time_beside_bce": measuring.ratio(cpu_seconds[db], cpu_seconds[bce]),
    }


def _stepping(run: "_Run", opened: dict[str, Iterator], steps: int) -> Callable[[], None]:
    def take_steps() -> None:
        for _ in range(steps):
            run.step(opened["batches"])

    return take_steps


class _Run:
    """Model, compiled step and batches of a configuration, as a run has them."""

    def __init__(self, asked: Any):
        import keras

        from dbl_tf import models, training
        from dbl_tf.statistics import LabelStatistics
        from dbl_tf.training import loop
        from pipelines.runs import build, resolution

        self._strategy = training.make_strategy(asked.strategy)
        data = asked.load_data()
        settings = resolution.resolve(asked, data)
        statistics = LabelStatistics.from_labels(data.splits["train"].labels, data.class_names)
        build.check_classes(settings, statistics)
        plan = build.make_plan(settings, statistics)
        keras.utils.set_random_seed(settings.seed)
        with self._strategy.scope():
            model = models.join(*build.build_networks(settings, statistics))
            model.compile(
                build.make_optimizer(settings, plan),
                build.make_loss(settings, statistics),
                jit_compile=False,
            )
            model.optimizer.build(model.trainable_variables)
        self._batches = build.make_image_batches(settings, data, statistics)
        # What `fit` itself uses: it would trace the step anew each time it is called.
        self._distributed = loop.distributed_batches
        self._step = loop.make_train_step(model, self._strategy, self.from_memory())

    def from_pipeline(self) -> Iterator:
        """A new pipeline."""
        return iter(self._distributed(self._strategy, self._batches, 0))

    def from_memory(self) -> Iterator:
        """One batch, over and over."""
        import tensorflow as tf

        from dbl_tf.training import ALL_ROWS

        batch = next(iter(self._batches(0, ALL_ROWS)))
        held = tf.data.Dataset.from_tensors(batch).repeat()
        return iter(self._distributed(self._strategy, lambda step, share: held, 0))

    def step(self, batches: Iterator) -> None:
        """Trains a step; waits for its loss, as `fit` does."""
        loss = float(self._step(batches, 1)[0])
        if not np.isfinite(loss):
            raise ValueError(f"the loss is {loss}: the figures would be of no training")


def describe(result: dict[str, Any]) -> str:
    """Formats the figures as a table."""
    rows = [
        [name, measuring.show(rate, digits=3)] for name, rate in result["steps_per_second"].items()
    ]
    lines = [measuring.table(["", "steps/s"], rows), ""]
    for method, figures in result["pipeline_beside_memory"].items():
        by_cpu = measuring.show(result["pipeline_beside_memory_by_cpu"][method])
        lines.append(
            f"{method}: the pipeline reaches {measuring.show(figures)} of memory's steps by the "
            f"clock, {by_cpu} by CPU time"
        )
    lines.append(
        f"a step of db_focal takes {measuring.show(result['db_focal_time_beside_bce'])} of one of "
        f"rs by the clock, {measuring.show(result['db_focal_cpu_time_beside_bce'])} by CPU time"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    measuring.run("training", define_flags, measure, describe)
