"""The model card: what a trained model was made of, how good it is, and where it ends."""

from collections.abc import Sequence
from typing import Any

from dbl_tf import methods, metrics, serving
from dbl_tf.calibration import Calibration
from dbl_tf.messages import printable
from pipelines import images
from pipelines.examples import LabelledData
from pipelines.runs.config import ResolvedConfig
from pipelines.runs.scores import EvaluationResult

# The mean over fewer test images than this says little of a label.
_FEW = 10


def model_card(
    config: ResolvedConfig,
    data: LabelledData,
    result: EvaluationResult,
    calibration: Calibration,
) -> str:
    """Returns the text of the card in Markdown.

    Args:
        config: the configuration of the run.
        data: its data.
        result: the predictions of the test split and their scores.
        calibration: the map from logits to probabilities.
    """
    parts = [
        f"# Model card: {_cell(config.data_name)}, {config.method}",
        _purpose(config, result),
        "## Data",
        _data(config, data, result),
        "## Training",
        _training(config),
        "## Scores on the test split",
        _scores(result),
        "## Limits",
        _limits(config, data, result, calibration),
        "## Labels and thresholds",
        _labels(result),
    ]
    return "\n\n".join(parts) + "\n"


def _purpose(config: ResolvedConfig, result: EvaluationResult) -> str:
    if config.image_size is None:
        takes = "the features of an example"
    else:
        takes = f"an image, seen at {config.image_size} × {config.image_size} pixels"
    return (
        f"A multi-label classifier: it maps {takes}, to a probability for each of "
        f"{len(result.class_names):,} labels, which are independent of each other. "
        f"`{serving.DETAILS_FILE.name}` holds the labels in the order of the probabilities, and "
        "their thresholds."
    )


def _data(config: ResolvedConfig, data: LabelledData, result: EvaluationResult) -> str:
    kind = "images" if config.image_size else "examples"
    rows = [
        [name, len(part), int(part.labels.sum()), part.num_unlabeled]
        for name, part in data.splits.items()
    ]
    counts = result.statistics.class_counts
    return (
        f"Source: `--dataset={config.dataset}`, {_cell(config.data_name)}.\n\n"
        + _table(["split", kind, "labels given", f"{kind} without a label"], rows)
        + f"\n\nA label has {counts.min():,} to {counts.max():,} training {kind}; "
        f"{counts.max() / max(counts.min(), 1):,.0f} times as many for the most frequent as for "
        "the rarest."
    )


def _training(config: ResolvedConfig) -> str:
    length = f"{config.steps:,} steps" if config.epochs is None else f"{config.epochs:,} epochs"
    lines = [
        f"Method: `{config.method}`, {methods.get(config.method).summary}; {config.sampler} "
        "sampler.",
        f"{length} of {config.batch_size:,}, {config.optimizer} at {config.learning_rate:.3g}, "
        f"seed {config.seed}.",
    ]
    if config.image_size is not None:
        trained = "the head alone" if config.freeze_backbone else "all layers"
        if config.frozen_layers and not config.freeze_backbone:
            trained = f"all layers but {', '.join(config.frozen_layers)}"
        weights = config.init_from or config.backbone_weights
        lines.insert(
            1, f"Network: {config.backbone}, initial weights {_cell(weights)}; {trained} trained."
        )
    return _list(lines)


def _scores(result: EvaluationResult) -> str:
    tested = metrics.num_classes_by_group(result.scores)
    untested = metrics.num_classes_by_group(result.scores, tested=False)
    rows = [["tested labels", *tested.values()]]
    if untested["total"]:
        rows.append(["untested labels", *untested.values()])
    rows += [
        [metric.heading_with_unit, *map(metric.text, metric.read(result.scores))]
        for metric in metrics.METRICS
        if metric.heading and metric.over == "group"
    ]
    of_split = [
        [metric.heading_with_unit, metric.description, metric.text(metric.read(result.scores)[0])]
        for metric in metrics.METRICS
        if metric.heading and metric.over == "split"
    ]
    return (
        f"{result.scores['num_test_examples']:,} test examples. The groups are by training "
        "examples of a label; means are over the labels that test examples have.\n\n"
        + _table(["", *tested], rows)
        + "\n\n"
        + _table(["", "what it is", "value"], of_split)
    )


def _limits(
    config: ResolvedConfig,
    data: LabelledData,
    result: EvaluationResult,
    calibration: Calibration,
) -> str:
    lines = []
    untested = result.scores["classes_without_test_positives"]
    if untested:
        lines.append(
            f"Nothing is known of these labels, which no test example has: {_names(untested)}."
        )
    tested = [
        (name, entry["test_count"])
        for name, entry in result.scores["per_class"].items()
        if 0 < entry["test_count"] < _FEW
    ]
    if tested:
        lines.append(
            f"The scores of these labels rest on fewer than {_FEW} test examples each: "
            f"{_names([name for name, _ in tested])}."
        )
    if calibration.fitted_on == "none":
        lines.append(
            "The probabilities are the sigmoid of the logits and have not been calibrated: they "
            "rank images, and are not shares."
        )
    else:
        lines.append(
            f"The probabilities are calibrated on {calibration.fitted_on}: they hold for images "
            "in which the labels are as frequent as there."
        )
    lines.append(
        f"The thresholds, chosen on {result.thresholds.chosen_on}, are those with the best F1 of "
        "each label; where a miss and a false alarm differ in cost, choose others."
    )
    if config.image_size is not None:
        lines.append(
            "Images of another kind than those of the training, such as drawings for photographs, "
            "get probabilities too, and these mean nothing."
        )
        lines.append(
            f"Details that are lost at {config.image_size} × {config.image_size} pixels are not "
            f"seen. Images of more than {images.MAX_PIXELS:,} pixels are refused."
        )
    num_unlabeled = data.splits["train"].num_unlabeled
    if num_unlabeled:
        lines.append(
            f"{num_unlabeled:,} training examples have no label, and count as examples of none."
        )
    if num_unknown := data.splits["train"].num_unknown:
        lines.append(
            f"{num_unknown:,} labels of training examples are not known, and were left out of it."
        )
    return _list(lines)


def _labels(result: EvaluationResult) -> str:
    shown = [m for m in metrics.METRICS if m.heading and m.over == "class"]
    texts = zip(*([m.text(v) for v in m.read(result.scores)] for m in shown), strict=True)
    rows = [
        [
            _cell(name),
            entry["group"],
            entry["train_count"],
            entry["test_count"],
            f"{entry['at_threshold']['threshold']:.4g}",
            *values,
        ]
        for (name, entry), values in zip(result.scores["per_class"].items(), texts, strict=True)
    ]
    head = ["label", "group", "train", "test", "threshold", *(m.heading_with_unit for m in shown)]
    return _table(head, rows)


def _names(names: list[str]) -> str:
    return ", ".join(_cell(name) for name in names)


def _list(lines: list[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines: list[Sequence[Any]] = [head, ["---"] * len(head), *rows]
    texts = ([f"{c:,}" if isinstance(c, int) else str(c) for c in cells] for cells in lines)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in texts)


def _cell(text: str) -> str:
    """Returns a name such that it is neither Markdown nor the end of a cell or line."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in printable(text))
