"""Compares two exported models on the same test split: which labels and which images change."""

import concurrent.futures
import csv
import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dbl_tf import atomic, label_values, metrics
from dbl_tf.cores import usable_cores
from dbl_tf.messages import first_few
from dbl_tf.statistics import LabelStatistics
from pipelines.examples import Examples, LabelledData
from pipelines.reports import against as page
from pipelines.reports import text
from pipelines.runs import evaluate, labeling, report
from pipelines.runs.config import DataConfig, ResolvedConfig

PAGE, SCORES = "against.html", "against.json"
LABELS, IMAGES = "against_labels.csv", "against_images.csv"
_MOST_RESAMPLES, _FEWEST_RESAMPLES = 1000, 100
# Draws of an example for a label that the resamples may cost together, which is minutes.
_MOST_DRAWS = 2e10
# The weights of so many examples are in memory at a time.
_WEIGHTS_PER_BLOCK = 8_000_000
_INTERVAL = (0.025, 0.975)
_CHANGE_COLUMNS = (
    "image",
    "label",
    "change",
    "data",
    "harm",
    "old_probability",
    "old_threshold",
    "new_probability",
    "new_threshold",
)


@dataclasses.dataclass(frozen=True)
class Side:
    """What one of two models says of N examples and the C labels that both know.

    Attributes:
        path: the version directory of the model.
        probabilities: the probabilities, (N, C).
        thresholds: its thresholds, (C,).
    """

    path: str
    probabilities: np.ndarray
    thresholds: np.ndarray

    @property
    def given(self) -> np.ndarray:
        """Whether each example is given each label, bool (N, C)."""
        return self.probabilities >= self.thresholds


def compare_run(run_dir: str, old: str, output_dir: str | None) -> str:
    """Compares the exported model of a run with another on the test split of the run.

    Args:
        run_dir: a finished run.
        old: the other model; see `compare`.
        output_dir: see `compare`; `run_dir` if None.

    Raises:
        ValueError: see `compare`; or `run_dir` holds no run.
    """
    path = pathlib.Path(run_dir, "config.json")
    if not path.exists():
        raise ValueError(f"{run_dir} holds no run: there is no config.json in it")
    return compare(run_dir, old, ResolvedConfig.load(path), output_dir or run_dir)


def compare(new: str, old: str, config: DataConfig, output_dir: str) -> str:
    """Compares two models on the test split of data, and writes what differs.

    `output_dir` gets `against.html`, a page; `against.json`, its numbers; `against_labels.csv`, a
    row for each label; and `against_images.csv`, a row for each decision that changes.

    Args:
        new: the model that is judged, as `labeling.find_model` takes it.
        old: the model with which it is compared, in the same form.
        config: the configuration of the data.
        output_dir: the directory of the results.

    Returns:
        What the comparison tells, in a few lines.

    Raises:
        ValueError: a model does not exist or does not take the data; or the models have no label in
            common, or none of those of the data.
    """
    paths = [labeling.find_model(path) for path in (new, old)]
    if os.path.realpath(paths[0]) == os.path.realpath(paths[1]):
        raise ValueError(f"{new} and {old} are the same model, {paths[0]}")
    models = [evaluate.SavedModel(path) for path in paths]
    data = config.load_data(splits=("test",))
    names = _common_labels(models, data)
    test = data.splits["test"]
    for model in models:
        features = test.features
        model.check_inputs(None if features is None else features.num_features)
    sides = [_side(model, path, names, test) for model, path in zip(models, paths, strict=True)]
    columns = [data.class_names.index(name) for name in names]
    labels = test.targets[:, columns].toarray()
    content = contrast(names, models[0].statistics, labels, sides[0], sides[1])
    content["only_new"], content["only_old"] = (
        [name for name in one.class_names if name not in set(other.class_names)]
        for one, other in (models, models[::-1])
    )
    content["not_compared"] = [name for name in data.class_names if name not in set(names)]
    content["not_in_data"] = [
        name
        for name in models[0].class_names
        if name in set(models[1].class_names) and name not in set(data.class_names)
    ]
    output = pathlib.Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    changes = changed_decisions(names, test.names, labels, sides[0], sides[1])
    label_rows = _label_rows(content)
    _write_csv(label_rows, list(label_rows[0]), output / LABELS)
    _write_csv(changes, _CHANGE_COLUMNS, output / IMAGES)
    with atomic.replacing(output / SCORES) as tmp_path:
        tmp_path.write_text(
            json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False), encoding="utf-8"
        )
    sentences = page.write_against(
        output / PAGE,
        content=content,
        changes=changes,
        files=(LABELS, IMAGES),
        image_names=test.names,
        read_images=report.images_reader(test) if test.features is None else None,
    )
    return "\n".join([*sentences, f"page: {output / PAGE}"])


def _common_labels(models: Sequence[evaluate.SavedModel], data: LabelledData) -> tuple[str, ...]:
    """Returns the labels of the data that both models know, in the order of the first."""
    new, old = models
    common = set(new.class_names) & set(old.class_names)
    if not common:
        raise ValueError(
            "the two models have no label in common: one knows "
            f"{first_few(new.class_names)}, the other {first_few(old.class_names)}"
        )
    names = tuple(n for n in new.class_names if n in common and n in data.class_names)
    if not names:
        raise ValueError(
            f"the models have in common {first_few(sorted(common))}, and the data none of these: "
            f"they have {first_few(data.class_names)}"
        )
    return names


def _side(model: evaluate.SavedModel, path: str, names: Sequence[str], test: Examples) -> Side:
    columns = [model.class_names.index(name) for name in names]
    return Side(path, model.predict(test)[:, columns], model.thresholds.values[columns])


def contrast(
    names: Sequence[str], statistics: LabelStatistics, labels: np.ndarray, new: Side, old: Side
) -> dict[str, Any]:
    """Returns what differs between two models, as types of JSON.

    Args:
        names: the names of the C labels.
        statistics: the statistics with which the new model was trained.
        labels: the labels, bool (N, C), or int8 with −1 for unknown ones.
        new: the new model.
        old: the old model.
    """
    known = ~label_values.is_unknown(labels)
    has = np.asarray(labels) == 1
    averages = [metrics.average_precision(labels, side.probabilities) for side in (new, old)]
    resampled = resampled_differences(labels, new.probabilities, old.probabilities)
    differences = averages[0] - averages[1]
    given = [side.given & known for side in (new, old)]
    scores = [
        metrics.precision_recall_f1(labels, side.probabilities, side.thresholds)
        for side in (new, old)
    ]
    kinds = _kinds(has, given[0] & ~given[1], given[1] & ~given[0])
    group_of = {i: group for group, members in statistics.groups.items() for i in members}
    of_model = {name: i for i, name in enumerate(statistics.class_names)}
    per_label = {}
    for i, name in enumerate(names):
        own = resampled[:, i]
        per_label[name] = {
            "group": group_of[of_model[name]],
            "train_count": int(statistics.class_counts[of_model[name]]),
            "test_count": int(has[:, i].sum()),
            "ap": {"new": _number(averages[0][i]), "old": _number(averages[1][i])},
            "ap_difference": _number(differences[i]),
            "interval": _interval(own),
            "f1": {"new": float(scores[0]["f1"][i]), "old": float(scores[1]["f1"][i])},
            "given": {"new": int(given[0][:, i].sum()), "old": int(given[1][:, i].sum())},
            **{kind: int(chosen[:, i].sum()) for kind, chosen in kinds.items()},
        }
    with np.errstate(invalid="ignore"):
        means = np.nanmean(resampled, axis=1) if len(names) else resampled[:, 0]
    return {
        "new": new.path,
        "old": old.path,
        "num_images": len(labels),
        "num_resamples": len(resampled),
        "mAP": {
            "new": _number(np.nanmean(averages[0])) if has.any() else None,
            "old": _number(np.nanmean(averages[1])) if has.any() else None,
            "difference": _number(np.nanmean(differences)) if has.any() else None,
            "interval": _interval(means),
        },
        "decisions": {
            which: {
                "given": int(of_side.sum()),
                "right": int((of_side & has).sum()),
                "missed": int((has & ~of_side).sum()),
                "micro_f1": of_scores["micro_f1"],
                "macro_f1": of_scores["macro_f1"],
            }
            for which, of_side, of_scores in zip(("new", "old"), given, scores, strict=True)
        },
        "changes": {
            **{kind: int(chosen.sum()) for kind, chosen in kinds.items()},
            "images": int((given[0] != given[1]).any(axis=1).sum()),
        },
        "per_label": per_label,
    }


def _kinds(has: np.ndarray, gained: np.ndarray, lost: np.ndarray) -> dict[str, np.ndarray]:
    """The four kinds of changed decisions, bool (N, C) each."""
    return {
        "gained_right": gained & has,
        "gained_wrong": gained & ~has,
        "lost_right": lost & has,
        "lost_wrong": lost & ~has,
    }


def resampled_differences(
    labels: np.ndarray,
    new: np.ndarray,
    old: np.ndarray,
    *,
    num_resamples: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Returns the differences of average precision, new − old, on resamples of the examples.

    In each resample an example counts as often as a Poisson number of mean 1 says, the same for
    both models and all labels, so that what they have in common does not widen the intervals.

    Args:
        labels: the labels, bool (N, C), or int8 with −1 for unknown ones, which are left out.
        new: the probabilities of the new model, (N, C).
        old: those of the old one.
        num_resamples: the number R of resamples; by default as many of 100 to 1 000 as take
            minutes.
        seed: the seed of the resamples.

    Returns:
        The differences, float64 (R, C); NaN where a resample has no positive.
    """
    num_examples, num_labels = new.shape
    if num_resamples is None:
        bearable = _MOST_DRAWS / max(1, num_examples * num_labels)
        num_resamples = int(np.clip(bearable, _FEWEST_RESAMPLES, _MOST_RESAMPLES))
    per_block = max(1, min(num_resamples, _WEIGHTS_PER_BLOCK // max(1, num_examples)))
    random = np.random.default_rng(seed)
    found = np.empty((num_resamples, num_labels))
    with concurrent.futures.ThreadPoolExecutor(usable_cores()) as executor:
        for start in range(0, num_resamples, per_block):
            size = min(per_block, num_resamples - start)
            weights = random.poisson(1.0, (num_examples, size)).astype(np.float32)

            def of_label(i: int, weights: np.ndarray = weights) -> np.ndarray:
                values = labels[:, i]
                rows = np.flatnonzero(~label_values.is_unknown(values))
                has = values[rows] == 1
                mine, theirs = (
                    _weighted_average_precision(has, side[rows, i], weights, rows)
                    for side in (new, old)
                )
                return mine - theirs

            for i, difference in enumerate(executor.map(of_label, range(num_labels))):
                found[start : start + size, i] = difference
    return found


def _weighted_average_precision(
    has: np.ndarray, scores: np.ndarray, weights: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Average precision with weights of the examples, for each of several sets of weights.

    Args:
        has: which examples are positives, bool (n,).
        scores: the scores, (n,).
        weights: the weights of all examples, (N, R).
        rows: the rows of the n examples among them.

    Returns:
        The average precision, float64 (R,); NaN where all positives have weight 0.
    """
    if not has.any():
        return np.full(weights.shape[1], np.nan)
    # Examples below the last positive cannot be passed on the way to it.
    reached = np.flatnonzero(scores >= scores[has].min())
    order = reached[np.argsort(-scores[reached], kind="stable")]
    ranked, positive = scores[order], has[order]
    # The thresholds that matter are the distinct scores of positives, from the highest on.
    thresholds = np.unique(ranked[positive])[::-1]
    ends = np.searchsorted(-ranked, -thresholds, side="right")
    starts = np.concatenate([[0], ends[:-1]])
    of_ranked = weights[rows[order]]
    accepted = np.add.reduceat(of_ranked, starts, axis=0, dtype=np.float64).cumsum(axis=0)
    at = np.flatnonzero(positive)
    hits = np.add.reduceat(of_ranked[at], np.searchsorted(at, starts), axis=0, dtype=np.float64)
    found = hits.cumsum(axis=0)
    precision = np.divide(found, accepted, out=np.zeros_like(found), where=accepted > 0)
    with np.errstate(invalid="ignore"):
        return (hits * precision).sum(axis=0) / found[-1]


def changed_decisions(
    names: Sequence[str], image_names: Sequence[str], labels: np.ndarray, new: Side, old: Side
) -> list[dict[str, Any]]:
    """Returns a row for each label that an example is given by one model alone.

    Rows are in the order of the examples, whose "position" they hold. "harm" is 1 for what gets
    worse, a wrong label that is gained or a right one that is lost, and −1 for what gets better.
    """
    differs = (new.given != old.given) & ~label_values.is_unknown(labels)
    rows = []
    for k, i in np.argwhere(differs):
        gained, has = bool(new.given[k, i]), bool(labels[k, i] == 1)
        rows.append(
            {
                "position": int(k),
                "image": image_names[k],
                "label": names[i],
                "change": "gained" if gained else "lost",
                "data": "has it" if has else "has it not",
                "harm": -1 if gained == has else 1,
                "old_probability": _short(old.probabilities[k, i]),
                "old_threshold": _short(old.thresholds[i]),
                "new_probability": _short(new.probabilities[k, i]),
                "new_threshold": _short(new.thresholds[i]),
            }
        )
    return rows


def _label_rows(content: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, found in content["per_label"].items():
        low, high = found["interval"] or (None, None)
        rows.append(
            {
                "label": name,
                "group": found["group"],
                "train_count": found["train_count"],
                "test_count": found["test_count"],
                "ap_new": found["ap"]["new"],
                "ap_old": found["ap"]["old"],
                "ap_difference": found["ap_difference"],
                "interval_from": low,
                "interval_to": high,
                "f1_new": found["f1"]["new"],
                "f1_old": found["f1"]["old"],
                **{kind: found[kind] for kind in page.KINDS},
            }
        )
    return rows


def _write_csv(rows: Sequence[dict[str, Any]], heads: Sequence[str], path: pathlib.Path) -> None:
    with (
        atomic.replacing(path) as tmp_path,
        open(tmp_path, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(heads)
        writer.writerows([text.inert(row[name]) for name in heads] for row in rows)


def _interval(values: np.ndarray) -> list[float] | None:
    known = values[~np.isnan(values)]
    return np.quantile(known, _INTERVAL).tolist() if len(known) else None


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
