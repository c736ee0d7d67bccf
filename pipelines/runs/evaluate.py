"""Scores a trained run or an exported model on a test split."""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dbl_tf import metrics, models, prediction, serving, terminal
from dbl_tf.calibration import Calibration
from dbl_tf.lock import Lock
from dbl_tf.messages import one_line
from dbl_tf.statistics import LabelStatistics
from pipelines import inputs
from pipelines.examples import Examples, LabelledData
from pipelines.runs import network_inputs, report
from pipelines.runs import scores as run_scores
from pipelines.runs.config import DataConfig, ResolvedConfig
from pipelines.runs.directory import check_data, check_finished
from pipelines.runs.network_inputs import BATCH_SIZE, NetworkInputs
from pipelines.runs.origin import Origin
from pipelines.runs.predictions import write_predictions
from pipelines.runs.scores import EvaluationResult, Thresholds

PredictLogits = Callable[[Examples], np.ndarray]


def evaluate_run(run_dir: str, output_dir: str | None = None) -> dict[str, Any]:
    """Scores a finished run on its test split.

    Args:
        run_dir: a directory that `train_and_evaluate` wrote.
        output_dir: the directory for `metrics.json`, `predictions.csv` and the report; `run_dir` if
            None.

    Returns:
        The content of `metrics.json`.

    Raises:
        ValueError: the directory does not hold a finished run, or its data have changed.
        OSError: the results would go into `run_dir`, and another process is writing to it.
    """
    directory = pathlib.Path(run_dir)
    check_finished(directory, ("statistics.json", "model.keras", "thresholds.json"))
    output = pathlib.Path(output_dir or run_dir)
    with Lock(directory) as lock:
        if output.resolve() == directory.resolve():
            lock.acquire()
        return _evaluate_run(directory, output)


def _evaluate_run(directory: pathlib.Path, output_dir: pathlib.Path) -> dict[str, Any]:
    config = ResolvedConfig.load(directory / "config.json")
    statistics = LabelStatistics.load(directory / "statistics.json")
    data = config.load_data()
    if data.class_names != statistics.class_names:
        raise ValueError(
            f"the classes of {config.dataset} are not those that the run in {directory} has learned"
        )
    check_data(directory, {"test": data.splits["test"]}, content=config.loading.check_content)
    num_classes = len(data.class_names)
    thresholds = Thresholds.load(directory / "thresholds.json", data.class_names)
    path = directory / "calibration.json"
    calibration = Calibration.load(path) if path.exists() else Calibration.identity(num_classes)
    if len(calibration.offsets) != num_classes:
        raise ValueError(
            f"{path} holds offsets of {len(calibration.offsets)} classes, and the model has "
            f"{num_classes}"
        )
    history = report.read_history(directory)
    model = models.load(directory / "model.keras")
    logits_of = network_predictor(
        model, network_inputs.of_data(config.image_size, config.full_decoding)
    )
    result = score_test(
        logits_of(data.splits["test"]),
        calibration,
        data,
        statistics,
        thresholds,
        output_dir,
    )
    report.write_of_run(
        result,
        output_dir,
        config=config,
        train=data.splits["train"],
        history=history,
        accepted_changes=origin.accepted_changes if (origin := Origin.load(directory)) else (),
    )
    return result.scores


def evaluate_saved_model(path: str, config: DataConfig, output_dir: str) -> dict[str, Any]:
    """Scores an exported model on the test split of any data that have its classes.

    Args:
        path: the version directory of a SavedModel that `dbl_tf.serving.export` wrote.
        config: the configuration of the data, whose classes may be some of the model's, in any
            order.
        output_dir: the directory for `metrics.json`, `predictions.csv` and the report.

    Returns:
        The content of `metrics.json`.

    Raises:
        ValueError: there is no such model, or it does not know some of the labels.
    """
    model = SavedModel(path)
    data = config.load_data(splits=("test",)).with_classes(model.class_names)
    result = score_probabilities(
        model.predict(data.splits["test"]), data, model.statistics, model.thresholds, output_dir
    )
    report.write(result, output_dir, title=f"{path} on {config.data_name}")
    return result.scores


class SavedModel:
    """An exported model with its classes, thresholds and statistics.

    Args:
        path: the version directory, such as `runs/…/saved_model/1`.

    Attributes:
        class_names: the C classes.
        thresholds: the thresholds of the decisions.
        statistics: the statistics of the training labels.
        num_features: the number of features that the model takes, which its signature tells; None
            for images.

    Raises:
        ValueError: there is no such model.
    """

    def __init__(self, path: str):
        details = pathlib.Path(path, serving.DETAILS_FILE)
        if not details.exists():
            raise ValueError(
                f"{path} is not a model that this project exported: there is no {details}. Give "
                "the version directory, such as saved_model/1"
            )
        content = serving.DETAILS.read(details)
        self.class_names = tuple(content.class_names)
        self.thresholds = Thresholds(
            np.array(content.thresholds, np.float64), content.thresholds_from
        )
        if len(content.thresholds) != len(self.class_names):
            raise ValueError(
                f"{details} has {len(content.thresholds)} thresholds for its "
                f"{len(self.class_names)} classes; {serving.DETAILS.remedy}"
            )
        statistics_path = details.with_name(serving.STATISTICS_FILE.name)
        self.statistics = LabelStatistics.load(statistics_path)
        if self.class_names != self.statistics.class_names:
            raise ValueError(f"{details} and {statistics_path} have other class_names")
        try:
            self._loaded = tf.saved_model.load(path)  # holds the variables of its signatures
        except (tf.errors.OpError, OSError, ValueError) as error:
            raise ValueError(
                f"{path} holds a model that is damaged: {one_line(error):.200}; "
                "restore it, or export it again"
            ) from error
        self._serve = self._loaded.signatures["serving_default"]
        self._input, spec = next(iter(self._serve.structured_input_signature[1].items()))
        self.num_features = spec.shape[-1] if self._input == "features" else None
        num_outputs = self._serve.structured_outputs["probabilities"].shape[-1]
        if num_outputs not in (None, len(self.class_names)):
            raise ValueError(
                f"{details} names {len(self.class_names)} classes, and the model beside it has "
                f"{num_outputs}"
            )

    def check_inputs(self, num_features: int | None) -> None:
        """Refuses data that the model does not take.

        Args:
            num_features: the number of features of the examples; None for images.

        Raises:
            ValueError: the model takes images and the data are features, or the other way round, or
                it takes another number of features.
        """
        if num_features != self.num_features:
            takes, has = (
                "images" if number is None else f"{number} features"
                for number in (self.num_features, num_features)
            )
            raise ValueError(f"the model takes {takes}, and the data are {has}")

    def predict(self, examples: Examples) -> np.ndarray:
        """Returns the probabilities of all examples, float32 (N, C), in their order.

        Raises:
            UnreadableImageError: an image cannot be read; the message names it.
            ValueError: the model has no result for an example, or see `check_inputs`.
        """
        features = examples.features
        self.check_inputs(None if features is None else features.num_features)
        if features is not None:
            batches = inputs.evaluation_features(features, BATCH_SIZE)
        else:
            batches = examples.encoded().batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE)
        with network_inputs.naming_unreadable(examples):
            probabilities, errors = self._predict(batches, len(examples))
        for name, error in zip(examples.names, errors, strict=True):
            if error and features is not None:
                raise ValueError(f"the model has no result for the features of {name}: {error}")
            if error:
                raise inputs.UnreadableImageError(f"image {name} cannot be read: {error}")
        return probabilities

    def predict_encoded(self, encoded: Sequence[bytes]) -> tuple[np.ndarray, list[str]]:
        """Returns the probabilities (B, C) and the B errors of a batch of encoded images.

        Raises:
            ValueError: the model takes features.
        """
        self.check_inputs(None)
        return self._answer(tf.constant(list(encoded), tf.string, (len(encoded),)))

    def _answer(self, batch: tf.Tensor) -> tuple[np.ndarray, list[str]]:
        answer = self._serve(**{self._input: batch})
        return answer["probabilities"].numpy(), [e.decode() for e in answer["error"].numpy()]

    def _predict(self, batches: tf.data.Dataset, num_examples: int) -> tuple[np.ndarray, list[str]]:
        probabilities: list[np.ndarray] = []
        errors: list[str] = []
        with terminal.Counter("predicting", num_examples, "examples") as counter:
            for batch in batches:
                of_batch, errors_of_batch = self._answer(batch)
                probabilities.append(of_batch)
                errors += errors_of_batch
                counter.advance(len(batch))
        return np.concatenate(probabilities), errors


def network_predictor(model: keras.Model, inputs_of_model: NetworkInputs) -> PredictLogits:
    """Returns a function that predicts the logits of examples with a network."""

    def predict(examples: Examples) -> np.ndarray:
        with inputs_of_model.naming_unreadable(examples):
            return prediction.predict_finite_logits(model, inputs_of_model.batches(examples))

    return predict


def score_test(
    logits: np.ndarray,
    calibration: Calibration,
    data: LabelledData,
    statistics: LabelStatistics,
    thresholds: Thresholds,
    output_dir: str | os.PathLike,
) -> EvaluationResult:
    """Scores logits of the test split; writes `predictions.csv` and `metrics.json`.

    The scores of the probabilities are written as calibrated, as σ(z) and as those of the
    prevalence alone.
    """
    labels = data.splits["test"].targets.toarray()
    probabilities = calibration(logits)
    scores = run_scores.score(labels, probabilities, statistics, thresholds)
    prevalence = np.broadcast_to(statistics.priors, labels.shape)
    plain = Calibration.identity(labels.shape[1])(logits)
    scores["calibration"] = {
        "fitted_on": calibration.fitted_on,
        "slope": calibration.slope,
        "before": metrics.probability_scores(labels, plain),
        "after": scores["probabilities"],
        "prevalence": metrics.probability_scores(labels, prevalence),
    }
    return _write(scores, probabilities, data, statistics, thresholds, output_dir)


def score_probabilities(
    probabilities: np.ndarray,
    data: LabelledData,
    statistics: LabelStatistics,
    thresholds: Thresholds,
    output_dir: str | os.PathLike,
) -> EvaluationResult:
    """Scores probabilities of the test split; writes `predictions.csv` and `metrics.json`."""
    labels = data.splits["test"].targets.toarray()
    scores = run_scores.score(labels, probabilities, statistics, thresholds)
    return _write(scores, probabilities, data, statistics, thresholds, output_dir)


def _write(
    scores: dict[str, Any],
    probabilities: np.ndarray,
    data: LabelledData,
    statistics: LabelStatistics,
    thresholds: Thresholds,
    output_dir: str | os.PathLike,
) -> EvaluationResult:
    test = data.splits["test"]
    output = pathlib.Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    write_predictions(test.names, probabilities, data.class_names, output / "predictions.csv")
    run_scores.write_scores(scores, output / "metrics.json")
    return EvaluationResult(test, data.class_names, statistics, probabilities, thresholds, scores)
