import json
import re

import numpy as np
import pytest

from dbl_tf import methods, metrics
from pipelines.differences import PairedDifference
from pipelines.reports import comparison, variants


def scores_of(total, names=("person", "dog", "kite"), groups=("head", "medium", "tail"), aps=None):
    aps = aps or [total] * len(names)
    by_group = {g: float(np.mean([a for a, h in zip(aps, groups, strict=True) if h == g]))
                for g in set(groups)}  # fmt: skip
    return {
        "mAP": {
            "total": float(np.mean(aps)),
            **{g: by_group.get(g) for g in ("head", "medium", "tail")},
        },
        "num_test_examples": 50,
        "per_class": {
            name: {"ap": ap, "train_count": 200 // 8**i, "test_count": 9, "group": group}
            for i, (name, ap, group) in enumerate(zip(names, aps, groups, strict=True))
        },
    }


def config_of(method="db", seed=0, **more):
    return {"method": method, "seed": seed, "run_dir": f"{method}-{seed}-{more}",
            "dataset": "table", "backbone": "ResNet50", **more}  # fmt: skip


@pytest.fixture
def compare(tmp_path, read_page):
    def compare(runs):
        comparison.write_comparison(tmp_path / "comparison.html", title="Compared", runs=runs)
        return read_page(tmp_path / "comparison.html")

    return compare


def test_comparison_shows_mean_and_deviation_over_seeds(compare, tmp_path):
    runs = [
        (config_of("erm", sampler="uniform"), scores_of(0.5, aps=[0.8, 0.5, 0.2])),
        (config_of("db", 0, sampler="class_aware"), scores_of(0.6, aps=[0.7, 0.6, 0.5])),
        (config_of("db", 1, sampler="class_aware"), scores_of(0.6, aps=[0.7, 0.7, 0.4])),
    ]
    page = compare(runs)
    # These scores are of a version that did not measure F1.
    assert page.row("erm")[1:] == ["1", "50.00", "80.00", "50.00", "20.00", "–", "–"]
    deviation = 100 * np.std([0.4, 0.5], ddof=1)
    row = page.row("db")
    assert row[1] == "2" and row[2] == "60.00 ± 0.00"
    assert row[5] == f"45.00 ± {deviation:.2f}"
    assert "Best on tail labels: db with 45.0 ± 7.1 %, then erm with 20.0 %" in page.text
    assert "kite +25.0 points" in page.text and "person −10.0 points" in page.text
    # The sampler follows from the method, so it is not part of the name and is listed below.
    assert ["db", "db", "class_aware"] in page.rows
    assert (tmp_path / "figures" / "comparison_gain_1.svg").exists()


def test_comparison_shows_the_published_values(compare):
    runs = [(config_of(m, dataset="voc_mlt"), scores_of(v)) for m, v in (("erm", 0.6), ("db", 0.7))]
    page = compare(runs)
    assert page.row("db, published")[2:6] == ["78.65", "73.16", "84.11", "78.66"]
    assert page.row("ltml")[1:] == ["81.44", "75.68", "85.53", "82.69"]


def test_comparison_over_one_number_plots_it(compare, tmp_path):
    runs = [(config_of(beta=b), scores_of(v)) for b, v in ((10.0, 0.6), (1.0, 0.4), (5.0, 0.5))]
    page = compare(runs)
    assert page.row("β = 5")[2] == "50.00"
    assert (tmp_path / "figures" / "comparison_map_by_beta_1.svg").exists()
    drawn = page.chart("comparison_map_by_beta_1")
    shown = [(row["value"], row["mean"]) for row in drawn if row["labels"] == "total"]
    assert shown == [(1, pytest.approx(0.4)), (5, pytest.approx(0.5)), (10, pytest.approx(0.6))]


def test_comparison_says_what_its_methods_are(compare):
    runs = [(config_of("erm"), scores_of(0.5)), (config_of("own_way"), scores_of(0.6))]
    text = compare(runs).text
    assert f"erm: {methods.METHODS['erm'].summary}" in text
    assert "own_way:" not in text


def test_comparison_of_hostile_names_and_undefined_scores(compare, hostile):
    names, groups = (hostile, "<td>"), ("head", "head")
    runs = [
        (config_of(hostile), scores_of(0.5, names, groups)),
        (config_of("<td>"), scores_of(0.6, names, groups)),
    ]
    for _, scores in runs:
        scores["per_class"]["<td>"]["ap"] = None
    page = compare(runs)
    assert page.row("<td>")[2:] == ["60.00", "60.00", "–", "–", "–", "–"]
    assert "nan" not in page.text.lower()


def test_runs_that_cannot_be_compared_are_refused(compare):
    one, other = scores_of(0.5), scores_of(0.5, names=("a", "b", "c"))
    with pytest.raises(ValueError, match="at least two"):
        compare([(config_of(), one)])
    with pytest.raises(ValueError, match="different labels, person, dog, kite in one, a, b, c in"):
        compare([(config_of("db"), one), (config_of("erm"), other)])
    with pytest.raises(ValueError, match="seed 0 occurs more than once"):
        compare([(config_of(), one), (config_of(), one)])
    moved = json.loads(json.dumps(one))
    moved["per_class"]["dog"]["test_count"] = 8
    with pytest.raises(ValueError, match="label 'dog' is medium with 9 test images in one"):
        compare([(config_of("db"), one), (config_of("erm"), moved)])


def test_an_empty_group_has_no_number_in_text_and_tables(tmp_path):
    names, groups = ("dog", "kite"), ("medium", "tail")
    runs = [
        (config_of(method, seed), scores_of(value, names, groups))
        for method, value in (("erm", 0.5), ("db", 0.625))
        for seed in (0, 1)
    ]
    assert runs[0][1]["mAP"]["head"] is None
    heading, *rows = variants.format_table(runs).splitlines()[:3]
    assert heading.split() == ["mAP", "%", "runs", "total", "head", "medium", "tail"]
    values = [re.split(r"\s{2,}", row)[2:] for row in rows]
    assert values == [
        ["50.00 ± 0.00", "–", "50.00 ± 0.00", "50.00 ± 0.00"],
        ["62.50 ± 0.00", "–", "62.50 ± 0.00", "62.50 ± 0.00"],
    ]
    for row in variants.variant_rows(runs):
        assert row["head"] is row["head sd"] is row["total published"] is None
        assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert [row["head"] for row in variants.run_rows(runs)] == [None] * 4


def test_every_metric_of_the_list_is_compared(compare, monkeypatch):
    added = metrics.Metric(
        ("miss",),
        "split",
        lambda e: float((e.labels != (e.scores >= e.thresholds)).mean()),
        "share of wrong decisions",
        heading="miss",
        higher_is_better=False,
    )
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, added))
    runs = [
        (config_of(method), scores_of(0.5) | {"miss": miss, "F1": {"micro_at_threshold": 0.25}})
        for method, miss in (("erm", 0.125), ("db", 0.0625))
    ]
    assert [row["miss"] for row in variants.run_rows(runs)] == [0.125, 0.0625]
    rows = variants.variant_rows(runs)
    assert [(row["miss"], row["micro F1"]) for row in rows] == [(12.5, 25.0), (6.25, 25.0)]
    lines = [line.split() for line in variants.format_table(runs).splitlines()]
    assert lines[3:6] == [
        ["runs", "micro", "F1", "%", "macro", "F1", "%", "miss", "%"],
        ["erm", "1", "25.00", "–", "12.50"],
        ["db", "1", "25.00", "–", "6.25"],
    ]
    page = compare(runs)
    assert page.row("db")[-1] == "6.25" and "miss: share of wrong decisions" in page.text


def test_labels_without_test_images_are_not_counted_into_the_means(compare):
    runs = []
    for method in ("erm", "db"):
        for fold, untested in enumerate((["kite"], ["kite", "dog"])):
            scores = scores_of(0.5)
            for name in untested:
                scores["per_class"][name] |= {"ap": None, "test_count": 0}
            runs.append((config_of(method, held_out=f"{fold + 1}/2"), scores))
    expected = "1 to 2 with test images: 1 head, 0 to 1 medium, 0 tail; 1 to 2 without test images"
    assert f"{expected} left out" in compare(runs).text
    page = compare([(config_of(method), scores_of(0.5)) for method in ("erm", "db")])
    assert "the 3 with test images: 1 head, 1 medium, 1 tail. mAP:" in page.text


def test_equal_variants_are_nothing_apart_and_thousands_are_separated():
    pairs = {0: 0.5, 1: 0.6}
    assert variants.distance(PairedDifference.of(pairs, pairs)) == "0.00 ± 0.00"
    metric = metrics.Metric((), "split", None, "", percent=False)
    assert metric.text(12345.678, 1234.5) == "12,345.68 ± 1,234.50"


def test_gains_of_labels_are_a_table_of_points(compare):
    runs = [
        (config_of("erm"), scores_of(0.5, aps=[0.8, 0.5, 0.2])),
        (config_of("db"), scores_of(0.6, aps=[0.7, 0.6, 0.5])),
    ]
    page = compare(runs)
    rows = {name: page.table("gains", name) for name in ("person", "dog", "kite")}
    assert [row["db: gain"] for row in rows.values()] == [-10, 10, 30]
    assert [row["erm: AP %"] for row in rows.values()] == [80, 50, 20]
    drawn = {row["label"]: row["gain"] for row in page.chart("comparison_gain_1")}
    assert drawn == pytest.approx({"person": -10, "dog": 10, "kite": 30})
    assert "deviation over runs to each side" not in page.text  # there is one seed


def test_pages_of_runs_are_linked_where_they_are(compare, tmp_path):
    (tmp_path / "runs" / "a b#c").mkdir(parents=True)
    (tmp_path / "runs" / "a b#c" / "report.html").touch()
    runs = [
        (config_of("erm") | {"run_dir": str(tmp_path / "runs" / "a b#c")}, scores_of(0.5)),
        (config_of("db") | {"run_dir": str(tmp_path / "gone")}, scores_of(0.6)),
    ]
    page = compare(runs)
    assert re.findall(r'<a href="([^"]*report[^"]*)"', page.source) == [
        "./runs/a%20b%23c/report.html"
    ]
    assert page.row("backbone") == ["backbone", "ResNet50"]  # all runs have it in common


def folds_of(method, totals, seeds=(0,), **more):
    """Runs of a method on each of several folds, whose number of training examples differs."""
    return [
        (
            config_of(
                method, seed, held_out=f"{k + 1}/{len(totals)}", **{"steps": 100 + k, **more}
            ),
            scores_of(total + 0.01 * seed),
        )
        for seed in seeds
        for k, total in enumerate(totals)
    ]


def test_folds_are_paired_and_say_what_can_be_told_apart(compare):
    erm, db, rs = [0.5, 0.6, 0.4, 0.5], [0.55, 0.66, 0.44, 0.55], [0.56, 0.5, 0.58, 0.54]
    runs = [*folds_of("erm", erm), *folds_of("db", db), *folds_of("rs", rs)]
    rows = {row["variant"]: row for row in variants.difference_rows(runs)}
    assert set(rows) == {"erm", "rs"} and rows["erm"]["best"] == "db"
    behind = 100 * (np.array(erm) - db)
    assert rows["erm"]["pairs"] == 4
    assert rows["erm"]["total"] == pytest.approx(behind.mean())
    assert rows["erm"]["total se"] == pytest.approx(behind.std(ddof=1) / 2)
    assert rows["erm"]["total significant"] and not rows["rs"]["total significant"]
    text = variants.format_table(runs)
    assert "db: the highest mean" in text
    assert f"erm: 5.00 ± {behind.std(ddof=1) / 2:.2f}; worse" in text
    assert re.search(r"rs: 0\.50 ± .*; not distinguishable", text)
    page = compare(runs)
    assert "each tested on each of the same 4 folds of the training split" in page.text
    assert ["rs", "4"] in [row[:2] for row in page.rows]
    assert any(row[0] == "erm" and row[-1] == "worse" for row in page.rows)
    # The number of steps follows from the fold, and is no setting that differs.
    assert not any("steps" in row for row in page.rows if row[0] in ("variant", "setting"))


def test_seeds_of_a_fold_count_as_one_pair():
    runs = folds_of("erm", [0.5, 0.7], seeds=(0, 1)) + folds_of("db", [0.6, 0.9], seeds=(0, 1))
    (row,) = variants.difference_rows(runs)
    assert (row["pairs"], row["total"]) == (2, pytest.approx(-15))
    assert row["total se"] == pytest.approx(100 * np.std([0.1, 0.2], ddof=1) / np.sqrt(2))


def test_single_runs_are_not_told_apart():
    runs = [(config_of("erm"), scores_of(0.1)), (config_of("db"), scores_of(0.9))]
    (row,) = variants.difference_rows(runs)
    assert row["total"] == pytest.approx(-80) and row["total se"] is None
    assert not row["total significant"]
    text = variants.format_table(runs)
    assert "erm: 80.00; not distinguishable by one run of each" in text


def test_steps_that_were_asked_for_are_a_setting_on_folds_too():
    runs = []
    for steps in (10, 20):
        of_steps = folds_of("db", [0.5, 0.6])
        runs += [({**config, "steps": steps}, scores) for config, scores in of_steps]
    assert [row["variant"] for row in variants.variant_rows(runs)] == ["steps = 10", "steps = 20"]


def test_what_was_chosen_is_one_variant():
    chosen = {"chosen": ["method", "learning_rate"]}
    runs = [
        (config_of("erm", 0, sampler="uniform", learning_rate=0.1), scores_of(0.5)),
        (config_of("erm", 1, sampler="uniform", learning_rate=0.1), scores_of(0.5)),
        (config_of("erm", 0, sampler="uniform", learning_rate=0.3, **chosen), scores_of(0.6)),
        (config_of("rs", 1, sampler="class_aware", learning_rate=0.1, **chosen), scores_of(0.7)),
    ]
    rows = {row["variant"]: row for row in variants.variant_rows(runs)}
    assert {name: row["runs"] for name, row in rows.items()} == {"erm": 2, "auto": 2}
    assert rows["auto"]["total"] == pytest.approx(65)


def test_a_class_is_averaged_over_the_folds_that_test_it(compare):
    runs = folds_of("erm", [0.5, 0.7]) + folds_of("db", [0.6, 0.8])
    for config, scores in runs:
        if config["held_out"] == "1/2":
            scores["per_class"]["kite"]["ap"] = None
    page = compare(runs)
    assert "kite +10.0 points" in page.text


def test_runs_on_test_and_on_folds_are_refused_together(compare):
    runs = [(config_of("erm"), scores_of(0.5)), *folds_of("db", [0.5, 0.6])]
    with pytest.raises(ValueError, match="one is judged on test, the other on 1/2"):
        compare(runs)
    with pytest.raises(ValueError, match="one is judged on 1/2, the other on 1/3"):
        compare([*folds_of("erm", [0.5, 0.6]), *folds_of("db", [0.5, 0.6, 0.5])])


def test_published_values_are_of_the_test_split_alone():
    runs = folds_of("erm", [0.5, 0.6], dataset="voc_mlt")
    assert variants.variant_rows(runs)[0]["total published"] is None
