import html
import html.parser
import json
import re

import numpy as np
import pytest
import scipy.sparse

from dbl_tf import LabelStatistics, losses, methods
from pipelines.reports import comparison, published
from pipelines.reports import run as run_page
from pipelines.runs import scores as run_scores

HOSTILE = '<script>alert("x")</script>&\'\x00'
VOID = {"meta", "img", "br"}


class Page(html.parser.HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.open, self.rows, self.words, self.addresses = [], [], [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "data", "action", "srcset", "xlink:href"):
                self.addresses.append(value)
            assert not name.startswith("on")
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if "style" in self.open or "svg" in self.open:
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def row(self, first):
        return next(row for row in self.rows if row and row[0] == first)


def check_self_contained(page):
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert "script" not in page.tags and "link" not in page.tags and "@import" not in page.source
    assert "url(" not in page.source


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
        scores=run_scores.score(test, probabilities, statistics, thresholds, "val"),
        image_names=[f"images/{i}.jpg" for i in range(num_test)],
        read_image=lambda i: np.full((40, 60, 3), i % 256, np.uint8),
        train_labels=train,
    )


def write(tmp_path, **arguments):
    run_page.write_run_report(tmp_path / "report.html", title="My run", **arguments)
    return Page(tmp_path / "report.html")


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


def test_run_report_is_self_contained_and_has_every_figure(tmp_path):
    page = write(tmp_path, **full_arguments())
    check_self_contained(page)
    files = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert files >= {
        "average_precision", "class_shares", "conditional_probability", "within_class_variance",
        "loss_gradient_positives", "loss_gradient_negatives", "precision_recall_head",
        "training_loss", "training_val_map",
    }  # fmt: skip
    assert page.tags.count("svg") == len(files)
    assert not list(tmp_path.glob("**/*.incomplete*"))


def test_numbers_are_those_of_the_scores(tmp_path):
    arguments = full_arguments()
    page, scores = write(tmp_path, **arguments), arguments["scores"]
    for name, entry in scores["per_class"].items():
        row = page.row(name)
        assert row[1:4] == [entry["group"], str(entry["train_count"]), str(entry["test_count"])]
        at = entry["at_threshold"]
        shown = [entry["ap"], at["precision"], at["recall"], at["f1"]]
        assert row[4:8] == [f"{100 * v:.2f}" for v in shown]
    for value in scores["mAP"].values():
        assert ("–" if value is None else f"{100 * value:.1f} %") in page.text
    predicted = arguments["probabilities"] >= arguments["thresholds"]
    hits = (predicted & arguments["labels"]).sum()
    assert f"it gives {predicted.sum()} tags" in page.text
    assert f"of which {100 * hits / predicted.sum():.1f} % are right" in page.text
    share = 100 * arguments["statistics"].priors.min()
    assert f"kite, is in {share:.1f} % of the data and was in 3.0 %" in page.text


def test_hostile_names_are_text(tmp_path):
    run = make_run(names=("person", HOSTILE, "</style><img src=http://x>"))
    run["image_names"] = [HOSTILE] * len(run["labels"])
    config = {"method": HOSTILE, "dataset": HOSTILE, "note": "<td onclick=x>"}
    page = write(tmp_path, **full_arguments(**run) | {"config": config})
    check_self_contained(page)
    assert HOSTILE.replace("\x00", "\ufffd") in "".join(page.words)
    assert page.row("note")[1] == "<td onclick=x>"


def test_an_exported_model_knows_less_and_the_page_says_so(tmp_path):
    run = make_run()
    del run["train_labels"]
    page = write(tmp_path, **run)
    check_self_contained(page)
    assert "Not shown" in page.text and "training curves" in page.text
    assert not (tmp_path / "figures" / "training_loss.svg").exists()


def test_classes_without_test_images_and_empty_groups(tmp_path):
    run = make_run(num_train=90)  # nothing reaches 100 examples
    run["labels"][:, 2] = False
    run["scores"] = run_scores.score(
        run["labels"], run["probabilities"], run["statistics"], run["thresholds"], "train"
    )
    assert run["scores"]["mAP"]["head"] is None
    page = write(tmp_path, **run)
    assert page.row("kite")[4:8] == ["–"] * 4
    assert "Without test images, so left out of the means: kite." in page.text
    assert "chosen on train" in page.text and "nan" not in page.text.lower()


def test_one_class_and_sparse_labels(tmp_path):
    run = make_run(names=("person",))
    run["labels"] = scipy.sparse.csr_array(run["labels"])
    run["train_labels"] = scipy.sparse.csr_array(run["train_labels"])
    page = write(tmp_path, **full_arguments(**run))
    check_self_contained(page)
    assert page.row("person")[1] == "head"
    assert "(1 tag)" in page.text and "Found worst" not in page.text


def test_nothing_to_find_at_all(tmp_path):
    run = make_run()
    run["labels"][:] = False
    run["scores"] = run_scores.score(
        run["labels"], run["probabilities"], run["statistics"], run["thresholds"], "val"
    )
    page = write(tmp_path, **run)
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


def test_worst_images_show_what_was_missed(tmp_path):
    run = make_run()
    asked = []

    def read_image(position):
        asked.append(position)
        return np.zeros((30, 50, 3), np.uint8)

    page = write(tmp_path, **run | {"read_image": read_image})
    worst, _ = run_page.mistakes(run["labels"], run["probabilities"], run["thresholds"])
    assert asked == worst[: run_page.MAX_WORST_IMAGES].tolist()
    assert page.tags.count("img") == len(asked)
    assert f"images/{asked[0]}.jpg" in page.text and "missed:" in page.text


def test_arguments_that_do_not_fit_are_refused(tmp_path):
    run = make_run()
    with pytest.raises(ValueError, match=r"60 image names and 3 classes .* \(59, 3\)"):
        write(tmp_path, **run | {"labels": run["labels"][1:]})
    with pytest.raises(ValueError, match="thresholds must be of shape"):
        write(tmp_path, **run | {"thresholds": np.zeros(2)})
    with pytest.raises(ValueError, match="together"):
        write(tmp_path, **run, observed_counts=[1, 2, 3])
    with pytest.raises(
        ValueError, match=r"uint8 \(H, W, 3\), gave float64 \(2, 2, 3\) for images/"
    ):
        write(tmp_path, **run | {"read_image": lambda i: np.zeros((2, 2, 3))})


def test_many_classes_stay_readable(tmp_path):
    names = [f"category {i}" for i in range(1203)]
    arguments = full_arguments(**make_run(num_train=3000, num_test=300, names=names))
    page = write(tmp_path, **arguments)
    assert (tmp_path / "report.html").stat().st_size < 1_500_000
    assert page.tags.count("tr") < 250
    assert "of 1,203 classes" in page.text


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


def compare(tmp_path, runs):
    comparison.write_comparison(tmp_path / "comparison.html", title="Compared", runs=runs)
    page = Page(tmp_path / "comparison.html")
    check_self_contained(page)
    return page


def test_comparison_shows_mean_and_deviation_over_seeds(tmp_path):
    runs = [
        (config_of("erm", sampler="uniform"), scores_of(0.5, aps=[0.8, 0.5, 0.2])),
        (config_of("db", 0, sampler="class_aware"), scores_of(0.6, aps=[0.7, 0.6, 0.5])),
        (config_of("db", 1, sampler="class_aware"), scores_of(0.6, aps=[0.7, 0.7, 0.4])),
    ]
    page = compare(tmp_path, runs)
    assert page.row("erm")[1:] == ["1", "50.00", "80.00", "50.00", "20.00"]
    deviation = 100 * np.std([0.4, 0.5], ddof=1)
    row = page.row("db")
    assert row[1] == "2" and row[2] == "60.00 ± 0.00"
    assert row[5] == f"45.00 ± {deviation:.2f}"
    assert "Best on tail tags: db with 45.0 ± 7.1 %, then erm with 20.0 %" in page.text
    assert "kite +25.0 points" in page.text and "person −10.0 points" in page.text
    # The sampler follows from the method: it does not name the variant, and is told below.
    assert ["db", "db", "class_aware"] in page.rows
    assert (tmp_path / "figures" / "comparison_gain_1.svg").exists()


def test_comparison_stands_beside_the_published_figures(tmp_path):
    runs = [(config_of(m, dataset="voc_mlt"), scores_of(v)) for m, v in (("erm", 0.6), ("db", 0.7))]
    page = compare(tmp_path, runs)
    assert page.row("db, published")[2:] == ["78.65", "73.16", "84.11", "78.66"]
    assert page.row("ltml")[1:] == ["81.44", "75.68", "85.53", "82.69"]


def test_comparison_over_one_number_plots_it(tmp_path):
    runs = [(config_of(beta=b), scores_of(v)) for b, v in ((10.0, 0.6), (1.0, 0.4), (5.0, 0.5))]
    page = compare(tmp_path, runs)
    assert page.row("β = 5")[2] == "50.00"
    picture = (tmp_path / "figures" / "comparison_map_by_beta_1.svg").read_text()
    assert re.findall(r"β = (\d+): total ([\d.]+)", picture) == [
        ("1", "40.0"), ("5", "50.0"), ("10", "60.0")
    ]  # fmt: skip


def test_comparison_says_what_its_methods_are(tmp_path):
    runs = [(config_of("erm"), scores_of(0.5)), (config_of("own_way"), scores_of(0.6))]
    text = compare(tmp_path, runs).text
    assert f"erm: {methods.METHODS['erm'].summary}" in text
    assert "own_way:" not in text


def test_long_names_of_variants_are_shown_whole(tmp_path):
    runs = [
        (config_of(method, learning_rate=rate), scores_of(0.5))
        for method in ("erm", "rs_cb_focal")
        for rate in (0.005, 0.02)
    ]
    compare(tmp_path, runs)
    picture = (tmp_path / "figures" / "comparison_map.svg").read_text()
    assert "…" not in picture
    for words in ("rs_cb_focal,", "learning_rate =", "0.005", "0.02"):
        assert f">{words}</text>" in picture


def test_comparison_of_hostile_names_and_undefined_scores(tmp_path):
    names, groups = (HOSTILE, "<td>"), ("head", "head")
    runs = [
        (config_of(HOSTILE), scores_of(0.5, names, groups)),
        (config_of("<td>"), scores_of(0.6, names, groups)),
    ]
    for _, scores in runs:
        scores["per_class"]["<td>"]["ap"] = None
    page = compare(tmp_path, runs)
    assert page.row("<td>")[2:] == ["60.00", "60.00", "–", "–"]
    assert "nan" not in page.text.lower()


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    one, other = scores_of(0.5), scores_of(0.5, names=("a", "b", "c"))
    with pytest.raises(ValueError, match="at least two"):
        compare(tmp_path, [(config_of(), one)])
    with pytest.raises(ValueError, match="different classes"):
        compare(tmp_path, [(config_of("db"), one), (config_of("erm"), other)])
    with pytest.raises(ValueError, match="seed 0 more than once"):
        compare(tmp_path, [(config_of(), one), (config_of(), one)])
    moved = json.loads(json.dumps(one))
    moved["per_class"]["dog"]["test_count"] = 8
    with pytest.raises(ValueError, match="class 'dog' is medium with 9 test images in one"):
        compare(tmp_path, [(config_of("db"), one), (config_of("erm"), moved)])


def test_published_figures():
    voc, coco = (published.MEAN_AVERAGE_PRECISION[d] for d in ("voc_mlt", "coco_mlt"))
    assert list(voc) == list(coco) and len(voc) == 15
    assert voc["db_focal"] == (78.94, 73.22, 84.18, 79.30)
    assert coco["db_focal"] == (53.55, 51.13, 57.05, 51.06)
    assert coco["ldam"] == (40.53, 48.77, 48.38, 22.92)
    # Sums of the printed columns.
    assert np.sum([*voc.values()], axis=0) == pytest.approx([1126.12, 1057.41, 1235.48, 1099.73])
    assert np.sum([*coco.values()], axis=0) == pytest.approx([729.24, 734.83, 794.33, 640.04])
    # The total is the mean over classes: groups of 6, 6, 8 and of 22, 33, 25 make it up.
    for table, sizes in ((voc, (6, 6, 8)), (coco, (22, 33, 25))):
        for method in ("erm", "rs_focal", "db_focal", "ltml"):
            total, *groups = table[method]
            assert total == pytest.approx(np.dot(groups, sizes) / sum(sizes), abs=0.8)
