"""Checks whether a run could be trained, and shows how its data were understood."""

import contextlib
import sys
from collections.abc import Iterator

from dbl_tf import training
from dbl_tf.statistics import LabelStatistics
from pipelines import data_summary, locations
from pipelines.datasets.image_checks import BadImagesError
from pipelines.examples import LabelledData
from pipelines.runs import build, resolution, tracking
from pipelines.runs.config import ConfigError, RunConfig


def check(asked: RunConfig) -> None:
    """Loads and checks the data of a run, and prints a summary of them.

    Nothing is trained, and nothing is written but the cache, in which the images that passed are
    remembered for the training.

    Raises:
        ValueError: the run could not be trained; the message says why. Where the data could be
            read, their summary has been printed.
        OSError: a file cannot be read.
    """
    asked.check_files()
    tracking.check(asked)
    build.check_backbone(asked)
    try:
        # What loading prints, such as how far it is, is not part of the summary.
        with contextlib.redirect_stdout(sys.stderr):
            data = asked.load_data()
            summary = data_summary.summarize(data)
    except BadImagesError as error:
        if error.data is not None:
            print(data_summary.summarize(error.data, compare_images=False), flush=True)
        raise
    print(summary, flush=True)
    if reasons := _reasons(asked, data):
        raise ConfigError("\n".join(reasons))


def _reasons(asked: RunConfig, data: LabelledData) -> list[str]:
    """Returns why `train_and_evaluate` would refuse the run before its first step."""
    train = data.splits["train"]
    statistics = LabelStatistics.from_labels(train.targets, data.class_names)
    reasons: list[str] = []
    with _noting(reasons):
        locations.check_output_folder(asked.directory, "--run_dir")
    with _noting(reasons):
        build.check_classes(asked, statistics)
    with _noting(reasons):
        if _trains_on_one_device(asked):
            asked = resolution.with_default_method(asked, data)
        if not asked.left_to_choice():
            config = resolution.resolve(asked, data)
            build.check_loss(config, statistics)
            build.check_sampler(config, train)
    return reasons


def _trains_on_one_device(asked: RunConfig) -> bool:
    # A cluster is not to be set up for a look at the data.
    several = asked.strategy == "multi_worker"
    return not several and training.make_strategy(asked.strategy).num_replicas_in_sync == 1


@contextlib.contextmanager
def _noting(reasons: list[str]) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        reasons.append(str(error))
