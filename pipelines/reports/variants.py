"""Variants of runs that are compared, and tables of their scores and differences."""

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from dbl_tf import metrics
from dbl_tf.messages import first_few
from dbl_tf.metrics import TOTAL_AND_GROUPS
from pipelines.differences import PairedDifference
from pipelines.reports import published

# Settings that do not change what a run learns, or that only number its repetitions.
_NOT_SETTINGS = {
    "seed", "held_out", "run_dir", "cache_dir", "export", "checkpoint_every", "strategy",
    "check_images", "rebalance",
}  # fmt: skip
# Settings that follow from the method, where it was chosen.
_OF_METHOD = ("sampler", "epochs")
# The settings of a run by name, and the content of its `metrics.json`.
Run = tuple[Mapping[str, Any], Mapping[str, Any]]

SYMBOLS = {"alpha": "α", "beta": "β", "mu": "μ", "lambda_": "λ", "kappa": "κ"}


def run_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Returns a row for each run with its method, seed, directory and metrics.

    Returns:
        Rows with "method", "seed", "held_out" (what took the place of the test split), "run_dir",
        the mAP as "total", "head", "medium" and "tail", and the other metrics by heading and group.
        Values are fractions of 1; None if not defined.
    """
    rows = []
    for config, scores in runs:
        row = {name: config.get(name) for name in ("method", "seed", "held_out", "run_dir")}
        for column in columns():
            row[column.name] = _none_for_nan(column.read(scores))
        rows.append(row)
    return rows


def variant_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Returns a row for each variant with its label, its number of runs and its metrics.

    Returns:
        Rows with "variant", "runs", the mAP as "total", "head", "medium" and "tail", and the other
        metrics by heading and group. These columns hold means; their names with " sd" appended hold
        the sample standard deviations over runs and, for mAP, with " published" appended the
        published values. Fractions of 1 are in percent; None if there is no value.
    """
    rows = []
    for variant in variants_of(runs)[0]:
        known = variant.published()
        row: dict[str, Any] = {"variant": variant.label, "runs": len(variant.scores)}
        for column in columns():
            factor = 100 if column.metric.percent else 1
            row[column.name] = _none_for_nan(factor * column.mean(variant))
            row[f"{column.name} sd"] = _none_for_nan(factor * column.deviation(variant))
            if column in MAP_COLUMNS:
                row[f"{column.name} published"] = known and known[column.position]
        rows.append(row)
    return rows


def format_table(runs: Sequence[Run]) -> str:
    """Formats the metrics of all variants: a table for each metric by group, one for the others.

    A variant for which there are published values is followed by a row of them.
    """
    variants = variants_of(runs)[0]
    by_group: dict[str, list[Column]] = {}
    for column in columns():
        by_group.setdefault(column.metric.heading_with_unit if column.group else "", []).append(
            column
        )
    width = max(len("  published"), *(len(variant.label) for variant in variants))
    lines = []
    for corner, members in by_group.items():
        heads = [column.group or column.metric.heading_with_unit for column in members]
        lines.append(f"{corner:{width}}  runs" + "".join(f"{head:>16}" for head in heads))
        for variant in variants:
            cells = "".join(f"{column.text(variant):>16}" for column in members)
            lines.append(f"{variant.label:{width}}{len(variant.scores):6,}{cells}")
            known = variant.published()
            if known and members[0] in MAP_COLUMNS:
                cells = "".join(f"{cell:>16}" for cell in (f"{value:.2f}" for value in known))
                lines.append(f"{'  published':{width}}{'':6}{cells}")
    if len(variants) > 1:
        lines += ["", f"{'mAP, points behind the best':{width}}"]
        lines += [f"  {sentence}" for sentence in sentences(variants)]
    return "\n".join(lines)


def difference_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Returns a row for each variant, but the one of the highest mAP, with its distance from it.

    Returns:
        Rows with "variant", "best", "pairs" (the seeds or folds that both have), and for "total",
        "head", "medium" and "tail" the mean paired difference of mAP to the best in percent, with
        " se" appended its standard error, and with " significant" appended whether a paired t test
        at 5 % tells it from 0. None if not defined.
    """
    variants = variants_of(runs)[0]
    best = best_of(variants)
    rows = []
    for variant in variants:
        if variant is best:
            continue
        row: dict[str, Any] = {"variant": variant.label, "best": best.label}
        row["pairs"] = MAP_COLUMNS[0].difference(variant, best).num_pairs
        for column in MAP_COLUMNS:
            difference = column.difference(variant, best)
            row[column.group] = _none_for_nan(100 * difference.mean)
            row[f"{column.group} se"] = _none_for_nan(100 * difference.standard_error)
            row[f"{column.group} significant"] = difference.is_significant
        rows.append(row)
    return rows


def _none_for_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


@dataclasses.dataclass(frozen=True)
class Variant:
    """Runs that differ only in their seed and in the part of the data on which they are judged.

    Attributes:
        label: the settings that distinguish the variant from the others.
        config: the settings of its first run.
        scores: the scores of each run.
        repetitions: the seed of each run, and what took the place of the test split (None if it is
            judged on that).
    """

    label: str
    config: Mapping[str, Any]
    scores: list[Mapping[str, Any]]
    repetitions: list[tuple[int | None, str | None]]

    def average_precision(self) -> np.ndarray:
        """Returns the mean by class, (C,), over the runs in which the class is tested."""
        values = np.array([metrics.AVERAGE_PRECISION.read(s) for s in self.scores])
        known = ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            return np.where(known, values, 0).sum(axis=0) / known.sum(axis=0)

    def published(self) -> tuple[float, float, float, float] | None:
        """Returns the published mAP on the test split, if the runs are judged on it."""
        if self.config.get("held_out") is not None:
            return None
        return published.mean_average_precision(self.config)


@dataclasses.dataclass(frozen=True)
class Column:
    """One number that a comparison shows for each run and variant.

    Attributes:
        metric: a metric over groups or over the split.
        group: "total" or the name of a group; empty for a metric over the split.
    """

    metric: metrics.Metric
    group: str = ""

    @property
    def position(self) -> int:
        """The position of the number among the values of the metric."""
        return TOTAL_AND_GROUPS.index(self.group) if self.group else 0

    @property
    def name(self) -> str:
        """The name of the column in CSV files, which is just the group for mAP."""
        if self.metric is metrics.MEAN_AVERAGE_PRECISION:
            return self.group
        return f"{self.metric.heading} {self.group}".rstrip()

    def read(self, scores: Mapping[str, Any]) -> float:
        """Reads the number from the content of a `metrics.json`."""
        return float(self.metric.read(scores)[self.position])

    def mean(self, variant: Variant) -> float:
        """Returns the mean over runs."""
        return float(np.mean([self.read(scores) for scores in variant.scores]))

    def difference(self, variant: Variant, other: Variant) -> PairedDifference:
        """Compares two variants by fold, or by seed where they are judged on one part alone."""

        def by_pair(of: Variant) -> dict[Hashable, float]:
            values: dict[Hashable, list[float]] = {}
            for (seed, part), scores in zip(of.repetitions, of.scores, strict=True):
                values.setdefault(part if has_folds else seed, []).append(self.read(scores))
            return {key: float(np.mean(values)) for key, values in values.items()}

        has_folds = len({part for _, part in other.repetitions}) > 1
        return PairedDifference.of(by_pair(variant), by_pair(other))

    def deviation(self, variant: Variant) -> float:
        """Returns the sample standard deviation over runs; NaN for a single run."""
        values = [self.read(scores) for scores in variant.scores]
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan

    def text(self, variant: Variant) -> str:
        """Formats the mean with its deviation."""
        return self.metric.text(self.mean(variant), self.deviation(variant))

    def merit(self, variant: Variant) -> float:
        """Returns the mean, negated if lower values are better."""
        return self.mean(variant) if self.metric.higher_is_better else -self.mean(variant)


MAP_COLUMNS = [Column(metrics.MEAN_AVERAGE_PRECISION, group) for group in TOTAL_AND_GROUPS]


def columns() -> list[Column]:
    """Returns the columns of all metrics that have a heading and are not by class."""
    return [
        Column(metric, group)
        for metric in metrics.METRICS
        if metric.heading and metric.over != "class"
        for group in (TOTAL_AND_GROUPS if metric.over == "group" else ("",))
    ]


def check_comparable(runs: Sequence[Run]) -> None:
    """Raises a ValueError unless there are at least two runs, of equal classes and test images."""
    if len(runs) < 2:
        raise ValueError(f"a comparison needs at least two runs, got {len(runs)}")

    def data_of(scores: Mapping[str, Any]) -> dict[str, tuple]:
        return {
            name: (entry["group"], entry["test_count"])
            for name, entry in scores["per_class"].items()
        }

    first, first_scores = runs[0]
    expected = {first.get("held_out"): data_of(first_scores)}
    for config, scores in runs[1:]:
        found, part = data_of(scores), config.get("held_out")
        pair = f"the runs {first.get('run_dir')} and {config.get('run_dir')}"
        if _number_of_parts(part) != _number_of_parts(first.get("held_out")):
            raise ValueError(
                f"{pair} cannot be compared: one is judged on {first.get('held_out') or 'test'}, "
                f"the other on {part or 'test'}"
            )
        if list(found) != list(first_scores["per_class"]):
            raise ValueError(
                f"{pair} cannot be compared: they have different labels, "
                f"{first_few(list(first_scores['per_class']))} in one, {first_few(list(found))} in "
                "the other"
            )
        for name, (group, count) in expected.setdefault(part, found).items():
            if found[name] != (group, count):
                raise ValueError(
                    f"{pair} cannot be compared: the label {name!r} is {group} with {count} test "
                    f"images in one, {found[name][0]} with {found[name][1]} in the other"
                )


def _number_of_parts(held_out: str | None) -> str:
    """What distinguishes "test" (None), "val" and folds, of which all have one number."""
    return str(held_out).rpartition("/")[2]


def variants_of(
    runs: Sequence[Run],
) -> tuple[list[Variant], list[str]]:
    """Returns variants in the order of their first runs, and the settings in which they differ."""
    configs = [_with_choices(config) for config, _ in runs]
    fields = [f for f in dict.fromkeys(f for c in configs for f in c) if f not in _NOT_SETTINGS]
    values = {f: [repr(config.get(f)) for config in configs] for f in fields}
    differing = [f for f in fields if len(set(values[f])) > 1]
    parts = [config.get("held_out") for config in configs]
    differing = [f for f in differing if not _follows_from_part(f, differing, values, parts)]
    naming = differing
    if "method" in differing:
        # A setting that follows from the method, such as its sampler, does not need to be named.
        naming = ["method"] + [
            f
            for f in differing
            if f != "method"
            and len(set(zip(values["method"], values[f], strict=True))) > len(set(values["method"]))
        ]
    grouped: dict[tuple, list[int]] = {}
    for k in range(len(runs)):
        grouped.setdefault(tuple(values[f][k] for f in differing), []).append(k)
    variants = []
    for members in grouped.values():
        repetitions = [(configs[k].get("seed"), parts[k]) for k in members]
        repeated = [each for each in set(repetitions) if repetitions.count(each) > 1]
        if repeated:
            directories = [str(configs[k].get("run_dir")) for k in members]
            raise ValueError(
                f"{', '.join(directories)}: runs of equal settings must have different seeds, but "
                f"seed {repeated[0][0]} occurs more than once"
            )
        config = configs[members[0]]
        words = [
            str(config[f]) if f == "method" else f"{SYMBOLS.get(f, f)} = {text_of(config.get(f))}"
            for f in naming
        ]
        label = ", ".join(words) or str(config.get("method", "all runs"))
        variants.append(Variant(label, config, [runs[k][1] for k in members], repetitions))
    return variants, differing


def _with_choices(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns settings in which what cross-validation chose for the run is "auto"."""
    chosen = list(config.get("chosen") or ())
    if "method" in chosen:
        chosen += [name for name in _OF_METHOD if config.get(name) is not None]
    return {**config, **dict.fromkeys(chosen, "auto"), "chosen": None}


def _follows_from_part(
    field: str,
    differing: Sequence[str],
    values: Mapping[str, Sequence[str]],
    parts: Sequence[str | None],
) -> bool:
    """Whether runs of equal settings differ in a field because they are judged on other folds.

    The number of steps is such a field, where it follows from the number of training examples.
    """
    others = list(zip(*(values[f] for f in differing if f != field), strict=True)) or [()] * len(
        parts
    )
    own = values[field]
    varies = len(set(zip(others, own, strict=True))) > len(set(others))
    by_part = set(zip(others, parts, strict=True))
    return (
        varies
        and len(set(zip(others, parts, own, strict=True))) == len(by_part)
        and (len(by_part) > len(set(others)))
    )


def text_of(value: object) -> str:
    """Formats the value of a setting."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def best_of(variants: Sequence[Variant]) -> Variant:
    """Returns the variant of the highest mAP."""
    return max(variants, key=lambda v: np.nan_to_num(MAP_COLUMNS[0].mean(v), nan=-1.0))


def sentences(variants: Sequence[Variant]) -> list[str]:
    """Says of each variant how far it is behind the best, and whether that can be told from 0."""
    best = best_of(variants)
    sentences = [f"{best.label}: the highest mean"]
    for variant in variants:
        if variant is not best:
            difference = MAP_COLUMNS[0].difference(variant, best)
            sentences.append(f"{variant.label}: {distance(difference)}; {verdict(difference)}")
    return sentences


def distance(difference: PairedDifference) -> str:
    """Formats a difference to the best, in points, with its standard error."""
    if math.isnan(difference.mean):
        return "–"
    error = difference.standard_error
    points = f"{-100 * difference.mean:z.2f}".replace("-", "−")
    return points + ("" if math.isnan(error) else f" ± {100 * error:.2f}")


def verdict(difference: PairedDifference) -> str:
    """Says whether a difference to the best can be told from 0."""
    if difference.num_pairs < 2:
        return "not distinguishable by one run of each"
    return "worse" if difference.is_significant else "not distinguishable"
