import numpy as np
import pytest
import scipy.sparse

from dbl_tf import LabelStatistics, losses, metrics
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
        read_image=lambda i: np.full((40, 60, 3), i % 256, np.uint8),
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
        "loss_gradient_positives", "loss_gradient_negatives", "precision_recall_head",
        "training_loss", "training_val_map",
    }  # fmt: skip
    assert page.tags.count("svg") == len(files)
    assert not list(tmp_path.glob("**/*.incomplete*"))


def test_numbers_are_those_of_the_scores(write):
    arguments = full_arguments()
    page, scores = write(**arguments), arguments["scores"]
    for name, entry in scores["per_class"].items():
        row = page.row(name)
        assert row[1:4] == [entry["group"], str(entry["train_count"]), str(entry["test_count"])]
        at = entry["at_threshold"]
        shown = [entry["ap"], at["precision"], at["recall"], at["f1"]]
        assert row[4:8] == [f"{100 * v:.2f}" for v in shown]
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
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, *added))
    run = make_run()
    page, rates = write(**run), run["labels"].mean(axis=0)
    headings = page.row("label")
    for name, rate in zip(("person", "dog", "kite"), rates, strict=True):
        assert page.row(name)[headings.index("rate %")] == f"{100 * rate:.2f}"
    assert f"{rates.mean():.3f}mean rate, all (3 labels)" in page.text
    assert "rate: how often it is" in page.text


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


def test_hostile_names_are_text(write, hostile):
    run = make_run(names=("person", hostile, "</style><img src=http://x>"))
    run["image_names"] = [hostile] * len(run["labels"])
    config = {"method": hostile, "dataset": hostile, "note": "<td onclick=x>"}
    page = write(**full_arguments(**run) | {"config": config})
    assert hostile.replace("\x00", "\ufffd") in "".join(page.words)
    assert page.row("note")[1] == "<td onclick=x>"


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
    assert page.row("kite")[4:8] == ["–"] * 4
    assert "Labels without test images, which are left out of the means: kite." in page.text
    assert "chosen on train" in page.text and "nan" not in page.text.lower()


def test_one_class_and_sparse_labels(write):
    run = make_run(names=("person",))
    run["labels"] = scipy.sparse.csr_array(run["labels"])
    run["train_labels"] = scipy.sparse.csr_array(run["train_labels"])
    page = write(**full_arguments(**run))
    assert page.row("person")[1] == "head"
    assert "(1 label)" in page.text and "Found worst" not in page.text


def test_nothing_to_find_at_all(write):
    run = make_run()
    run["labels"][:] = False
    run["scores"] = score(run["labels"], run["probabilities"], run["statistics"], run["thresholds"])
    page = write(**run)
    assert "Found best" not in page.text and "nan" not in page.text.lower()


def test_worst_images_are_those_furthest_on_the_wrong_side():
    labels = np.array([[1, 0], [1, 0], [0, 1], [0, 0]], bool)
    probabilities = np.array([[0.9, 0.1], [0.4, 0.1], [0.99, 0.01], [0.5, 0.4]])
    positions, error = run_page.mistakes(labels, probabilities, np.array([0.5, 0.5]))
    # Image 0 is right; 3 is wrong by the tie at the threshold alone.
    assert positions.tolist() == [2, 1, 3]
    assert error[0] == pytest.approx(np.log(99) + np.log(99))
    assert error[1] == pytest.approx(np.log(0.6 / 0.4))
    assert 0 < error[2] < 1e-6


def test_worst_images_show_what_was_missed(write):
    run = make_run()
    asked = []

    def read_image(position):
        asked.append(position)
        return np.zeros((30, 50, 3), np.uint8)

    page = write(**run | {"read_image": read_image})
    worst, _ = run_page.mistakes(run["labels"], run["probabilities"], run["thresholds"])
    assert asked == worst[: run_page.MAX_WORST_IMAGES].tolist()
    assert page.tags.count("img") == len(asked)
    assert f"images/{asked[0]}.jpg" in page.text and "missed:" in page.text


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
        write(**run | {"read_image": lambda i: np.zeros((2, 2, 3))})


def test_many_classes_stay_readable(write, tmp_path):
    names = [f"category {i}" for i in range(1203)]
    arguments = full_arguments(**make_run(num_train=3000, num_test=300, names=names))
    page = write(**arguments)
    assert (tmp_path / "report.html").stat().st_size < 1_500_000
    assert page.tags.count("tr") < 250
    assert "of 1,203 labels" in page.text
