import csv
import re
import xml.etree.ElementTree

import numpy as np
import pytest
import scipy.sparse

from dbl_tf import LabelStatistics, losses, metrics
from pipelines.reports import pictures
from pipelines.reports import run as run_page
from pipelines.runs import scores as run_scores


def make_run(num_train=400, num_test=60, names=("person", "dog", "kite"), seed=0):
    rng = np.random.default_rng(seed)
    share = np.geomspace(0.5, 0.02, len(names))
    train, test = (
        rng.random((num_train, len(names))) < share,
        rng.random((num_test, len(names))) < share,
    )
    train[0] = True
    statistics = LabelStatistics.from_labels(train, names)
    probabilities = np.clip(rng.random(test.shape) * 0.7 + 0.25 * test, 0, 1).astype(np.float32)
    thresholds = np.full(len(names), 0.6)
    return dict(
        statistics=statistics,
        labels=test,
        probabilities=probabilities,
        thresholds=thresholds,
        scores=score(test, probabilities, statistics, thresholds),
        image_names=[f"images/{i}.jpg" for i in range(num_test)],
        read_images=lambda chosen: (np.full((40, 60, 3), i % 256, np.uint8) for i in chosen),
        train_labels=train,
    )


def score(labels, probabilities, statistics, thresholds, chosen_on="val"):
    thresholds = run_scores.Thresholds(thresholds, chosen_on)
    return run_scores.score(labels, probabilities, statistics, thresholds)


@pytest.fixture
def write(tmp_path, read_page):
    def write(**arguments):
        run_page.write_run_report(tmp_path / "report.html", title="My run", **arguments)
        return read_page(tmp_path / "report.html")

    return write


def full_arguments(**changes):
    run = {**make_run(), **changes}
    statistics = run["statistics"]
    loss = losses.DistributionBalancedLoss(
        statistics.class_counts, statistics.num_examples, rebalance=None
    )
    return dict(
        config={"method": "db_focal", "dataset": "table", "beta": 10.0},
        history={"epoch": [0, 1], "loss": [0.5, 0.25], "val_map": [0.1, 0.3]},
        loss=loss.call,
        observed_counts=np.arange(statistics.num_classes) + 1,
        num_draws=100,
        **run,
    )


def test_run_report_is_self_contained_and_has_every_figure(write, tmp_path):
    page = write(**full_arguments())
    files = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert files >= {
        "average_precision", "class_shares", "conditional_probability", "within_class_variance",
        "loss_gradient_positives", "loss_gradient_negatives", "precision_recall_head", "confusion",
        "training_loss", "training_val_map",
    }  # fmt: skip
    assert set(page.data["charts"]) - files == {"curve"}
    assert not list(tmp_path.glob("**/*.incomplete*"))


def test_numbers_are_those_of_the_scores(write):
    arguments = full_arguments()
    page, scores = write(**arguments), arguments["scores"]
    for name, entry in scores["per_class"].items():
        row, at = page.table("labels", name), entry["at_threshold"]
        assert row["group"] == entry["group"]
        assert (row["train images"], row["test images"]) == (
            entry["train_count"],
            entry["test_count"],
        )
        shown = [row[heading] for heading in ("AP %", "precision %", "recall %", "F1 %")]
        values = [entry["ap"], at["precision"], at["recall"], at["f1"]]
        assert shown == [round(100 * value, 2) for value in values]
        assert row["guessing %"] == round(100 * entry["test_count"] / 60, 2)
        assert row["from"] <= row["AP %"] <= row["to"]
    for value in scores["mAP"].values():
        assert ("–" if value is None else f"{100 * value:.1f} %") in page.text
    given = arguments["probabilities"] >= arguments["thresholds"]
    hits = (given & arguments["labels"]).sum()
    assert f"the model gives {given.sum()} labels" in page.text
    assert f"of which {100 * hits / given.sum():.1f} % are right" in page.text
    for average in ("micro", "macro"):
        shown = f"{100 * scores['F1'][f'{average}_at_threshold']:.1f} %{average} F1:"
        assert shown in page.text
    share = 100 * arguments["statistics"].priors.min()
    assert f"kite, is on {share:.1f} % of the training images and was on 3.0 %" in page.text


def test_every_metric_of_the_list_is_on_the_page(write, monkeypatch):
    added = (
        metrics.Metric(
            ("rate",), "class", lambda e: e.labels.mean(axis=0), "how often it is", heading="rate"
        ),
        metrics.Metric(
            ("mean_rate",),
            "group",
            lambda e: e.mean_by_group(e.labels.mean(axis=0)),
            "mean of the rates",
            heading="mean rate",
            percent=False,
            digits=3,
        ),
    )
    for module in (metrics.evaluation, metrics):
        monkeypatch.setattr(module, "METRICS", (*metrics.METRICS, *added))
    run = make_run()
    page, rates = write(**run), run["labels"].mean(axis=0)
    for name, rate in zip(("person", "dog", "kite"), rates, strict=True):
        assert page.table("labels", name)["rate %"] == round(100 * rate, 2)
    assert f"{rates.mean():.3f}mean rate, all (3 labels)" in page.text
    titles = {column["heading"]: column["title"] for column in page.data["tables"]["labels"]}
    assert titles["rate %"] == "how often it is"


def test_further_scores_are_in_small_tables(write):
    run = make_run()
    page, scores = write(**run), run["scores"]
    names = ["CP", "CR", "CF1", "OP", "OR", "OF1"]
    assert page.row("") == ["", *(f"{name} %" for name in names)]
    for row, key in (
        ("at threshold 0.5", "at_0.5"),
        ("the 3 highest labels of each image", "top_3"),
    ):
        found = scores["decisions"][key]
        assert page.row(row) == [row, *(f"{100 * found[name]:.2f}" for name in names)]
    found = scores["ranking"]
    shown = [
        f"{found['ranking_loss']:.4f}",
        f"{found['coverage']:.2f}",
        f"{found['micro_AUC']:.4f}",
    ]
    assert page.row("ranking") == ["ranking", *shown]
    means = [scores["AUC"][name] for name in metrics.TOTAL_AND_GROUPS]
    assert page.row("macro AUC")[1:] == ["–" if v is None else f"{v:.4f}" for v in means]
    assert "OF1: F1 of all decisions together; ranking loss: share of" in page.text


@pytest.mark.parametrize("name", ["two_way", "zlpr"])
def test_a_loss_of_examples_has_no_gradient_to_draw_and_the_page_says_so(write, name):
    config = {"method": name, "dataset": "table"}
    page = write(**full_arguments() | {"config": config, "loss": None})
    assert "It has no gradient by the logit of a label alone" in page.text
    assert "Not shown" not in page.text


HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "</style><img src=http://x onerror=alert(1)>",
    "\"' onmouseover=alert(1) x='",
    "{{ 7 * 7 }}{% raw %}",
    "=cmd|' /C calc'!A0",
    " @SUM(1)",
    "\uff1d1+1",
    "right\u202eleft\u2066\x00\x1b[31m",
    "\ud800 half",
    "x" * 5000,
    "ديسمبر",
)


def test_hostile_names_are_text(write, tmp_path):
    run = make_run(names=("person", *HOSTILE))
    run["image_names"] = [HOSTILE[i % len(HOSTILE)] for i in range(len(run["labels"]))]
    config = {"method": HOSTILE[0], "dataset": HOSTILE[1], "note": "<td onclick=x>"}
    page = write(**full_arguments(**run) | {"config": config, "made_by": {HOSTILE[2]: HOSTILE[3]}})
    assert page.row("note")[1] == "<td onclick=x>" and page.tags.count("script") == 3
    shown = page.data["tables"]["labels"][0]["values"]
    assert shown[1:5] == list(HOSTILE[:4])
    assert shown[9] == "right\ufffdleft\ufffd\ufffd\ufffd[31m" and shown[10] == "\ufffd half"
    assert max(map(len, shown)) == 200 and "\u202e" not in page.source
    for figure in (tmp_path / "figures").glob("*.svg"):
        tags = {element.tag for element in xml.etree.ElementTree.parse(figure).iter()}
        assert "script" not in {tag.rpartition("}")[2] for tag in tags}
    with open(tmp_path / run_page.SUSPECTS, newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    names = [cell for cell in cells if not cell.replace(".", "").replace("e-", "").isdigit()]
    assert not [name for name in names if re.match(r"\s*[=+@\uff1d-]", name)]
    assert "'=cmd|' /C calc'!A0" in names and "' @SUM(1)" in names


def test_names_that_look_alike_once_cleaned_stay_apart(write):
    page = write(**make_run(names=("a\u202eb", "a\u202db", "a\ufffdb")))
    assert page.data["tables"]["labels"][0]["values"] == [
        "a\ufffdb", "a\ufffdb (2)", "a\ufffdb (3)"
    ]  # fmt: skip


def test_an_exported_model_knows_less_and_the_page_says_so(write, tmp_path):
    run = make_run()
    del run["train_labels"]
    page = write(**run)
    assert "Not shown" in page.text and "training curves" in page.text
    assert not (tmp_path / "figures" / "training_loss.svg").exists()


def test_classes_without_test_images_and_empty_groups(write):
    run = make_run(num_train=90)  # nothing reaches 100 examples
    run["labels"][:, 2] = False
    run["scores"] = score(
        run["labels"], run["probabilities"], run["statistics"], run["thresholds"], "train"
    )
    assert run["scores"]["mAP"]["head"] is None
    page = write(**run)
    row = page.table("labels", "kite")
    assert [row[h] for h in ("AP %", "from", "precision %", "recall %", "F1 %")] == [None] * 5
    assert "Labels without test images, which are left out of the means: kite." in page.text
    assert "mAP, all (2 labels; 1 without test images left out)" in page.text
    assert "fewer than 20 training images (1 label; 1 without test images left out)" in page.text
    assert "chosen on train" in page.text and "nan" not in page.text.lower()


def test_a_label_whose_probabilities_are_off_is_remarked_on(write):
    run, rng = make_run(num_test=400), np.random.default_rng(0)
    truth = rng.beta(2, 3, run["labels"].shape)
    run["labels"] = rng.random(truth.shape) < truth

    def page_of(probabilities, **calibration):
        run["probabilities"] = probabilities.astype(np.float32)
        run["scores"] = score(
            *(run[n] for n in ("labels", "probabilities", "statistics", "thresholds"))
        )
        return write(**run | {"scores": run["scores"] | calibration})

    page = page_of(truth)
    assert "do not come true" not in page.text and not any(page.data["flags"]["unreliable"])
    off = np.c_[truth[:, 0], 0.2 * truth[:, 1], truth[:, 2]]
    page = page_of(off, calibration={"fitted_on": "val"})
    share, mean = run["labels"][:, 1].mean(), off[:, 1].mean()
    said = f"dog is off by {100 * (share - mean):.0f} points (on average {100 * mean:.0f} % where "
    assert f"{said}{100 * share:.0f} % of the images have it). Ranking" in page.text
    assert page.data["flags"]["unreliable"] == [False, True, False]
    assert (
        "Do not read the probabilities of this label as shares: they were calibrated on val"
        in page.text
    )


def test_one_class_and_sparse_labels(write):
    run = make_run(names=("person",))
    run["labels"] = scipy.sparse.csr_array(run["labels"])
    run["train_labels"] = scipy.sparse.csr_array(run["train_labels"])
    page = write(**full_arguments(**run))
    assert page.table("labels", "person")["group"] == "head"
    assert "(1 label)" in page.text and "Found worst" not in page.text


def test_nothing_to_find_at_all(write):
    run = make_run()
    run["labels"][:] = False
    run["scores"] = score(run["labels"], run["probabilities"], run["statistics"], run["thresholds"])
    page = write(**run)
    assert "Found best" not in page.text and "nan" not in page.text.lower()


def test_what_is_shown_of_a_label_is_what_the_model_did(write):
    run = make_run()
    asked = []

    def read_images(positions):
        asked.extend(positions)
        return [np.zeros((300, 500, 3), np.uint8) for _ in positions]

    page = write(**run | {"read_images": read_images})
    labels, probabilities = run["labels"], run["probabilities"]
    given = probabilities >= run["thresholds"]
    images = page.data["images"]
    assert images["names"] == [f"images/{i}.jpg" for i in asked]
    assert all(p.startswith("data:image/jpeg;base64,") for p in images["pictures"])
    for column in range(3):
        finds, misses, alarms = page.data["kinds"][column]
        for pairs, chosen, sign in (
            (finds, labels & given, -1),
            (misses, labels & ~given, 1),
            (alarms, ~labels & given, -1),
        ):
            own = np.flatnonzero(chosen[:, column])
            own = own[np.argsort(sign * probabilities[own, column], kind="stable")][:4]
            assert [asked[at] for at, _ in pairs] == own.tolist()
            assert [p for _, p in pairs] == pytest.approx(probabilities[own, column], rel=0.01)
    for at, said in enumerate(images["said"]):
        truth, accepted = labels[asked[at]], given[asked[at]]
        kinds = {c: 0 if truth[c] and accepted[c] else 1 if truth[c] else 2 for c, _, _ in said}
        assert {c: kind for c, kind, _ in said} == kinds
        assert set(kinds) == set(np.flatnonzero(truth | accepted))


def test_the_points_of_a_curve_are_those_of_the_scores(write):
    arguments = full_arguments()
    page, scores = write(**arguments), arguments["scores"]
    for entry, curve in zip(scores["per_class"].values(), page.data["curves"], strict=True):
        expected, own = entry["at_threshold"], curve["own"]
        right, given = curve["right"][own], curve["given"][own]
        assert curve["thresholds"][own] == expected["threshold"]
        assert right / given == pytest.approx(expected["precision"])
        assert right / entry["test_count"] == pytest.approx(expected["recall"])


def test_the_chosen_point_is_that_of_the_threshold_whatever_its_digits(write):
    run, rng = make_run(), np.random.default_rng(3)
    for _ in range(6):
        # Thresholds are chosen among the probabilities.
        chosen = np.array([rng.choice(run["probabilities"][:, i]) for i in range(3)], np.float64)
        scores = score(run["labels"], run["probabilities"], run["statistics"], chosen)
        page = write(**run | {"thresholds": chosen, "scores": scores})
        for i, curve in enumerate(page.data["curves"]):
            accepted = run["probabilities"][:, i] >= chosen[i]
            own = curve["own"]
            assert curve["given"][own] == accepted.sum()
            assert curve["right"][own] == (accepted & run["labels"][:, i]).sum()


def test_thumbnails_are_small_and_keep_the_first_of_the_worst(write, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PICTURES", 5)
    run = make_run()
    page = write(**run)
    images = page.data["images"]
    assert len(images["pictures"]) == 5 < len(images["names"])
    # Those have pictures, in the order in which a stream of images is read.
    assert sorted(page.data["galleries"]["worst"][:5]) == [0, 1, 2, 3, 4]


def test_arguments_that_do_not_fit_are_refused(write):
    run = make_run()
    with pytest.raises(ValueError, match=r"60 image names and 3 classes .* \(59, 3\)"):
        write(**run | {"labels": run["labels"][1:]})
    with pytest.raises(ValueError, match="thresholds must be of shape"):
        write(**run | {"thresholds": np.zeros(2)})
    with pytest.raises(ValueError, match="together"):
        write(**run, observed_counts=[1, 2, 3])
    with pytest.raises(
        ValueError, match=r"uint8 \(H, W, 3\), returned float64 \(2, 2, 3\) for images/"
    ):
        write(**run | {"read_images": lambda chosen: [np.zeros((2, 2, 3)) for _ in chosen]})


def test_many_classes_stay_readable(write, tmp_path):
    names = [f"category {i}" for i in range(1203)]
    arguments = full_arguments(**make_run(num_train=3000, num_test=300, names=names))
    page = write(**arguments | {"read_images": None})
    assert (tmp_path / "report.html").stat().st_size < 4_000_000
    assert page.tags.count("tr") < 250  # the script makes the rows that are looked at
    assert len(page.data["tables"]["labels"][0]["values"]) == 1203
    assert "learned 1,203 labels from 3,000 images" in page.text
    said = re.sub(r"category \d+|ECCV 2020|20\d\d-\d\d-\d\d", "", page.text)
    assert re.findall(r"(?<![\d.,])\d{4,}", said) == []  # thousands are separated
