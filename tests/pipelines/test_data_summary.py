import re

import numpy as np
import pytest
import scipy.sparse
from run_data import make_data

from pipelines import data_summary
from pipelines.examples import Examples, LabelledData


def make_examples(rows, names, prefix="a"):
    dense = np.array([[name in labels for name in names] for labels in rows], bool)
    return Examples(
        names=[f"{prefix}{i}.jpg" for i in range(len(rows))],
        labels=scipy.sparse.csr_array(dense),
    )


NAMES = ("cat", "dog", "ox")
TRAIN = [["cat", "dog"], ["cat"], ["cat", "dog"], ["dog", "ox"], []]


def sections(text: str) -> dict[str, list[str]]:
    """The lines below each heading."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines()[1:]:
        if not line.startswith(" "):
            heading = line
            found[heading] = []
        else:
            found[heading].append(line)
    return found


def test_a_summary_by_hand():
    data = LabelledData(
        NAMES,
        {
            "train": make_examples(TRAIN, NAMES),
            "test": make_examples([["ox"], ["cat", "dog", "ox"]], NAMES, "b"),
        },
        origin="list layout",
    )
    assert data_summary.summarize(data).splitlines() == [
        "list layout: 5 train, 0 val, 2 test images; 3 classes",
        "Classes, by their train examples (0 head, 0 medium, 3 tail):",
        "   train    test  class",
        "       3       1  cat",
        "       3       1  dog",
        "       1       2  ox",
        "Without any label: 1 train, 0 test",
        "Pairs of classes that come together most in train:",
        "       2  cat and dog",
        "       1  dog and ox",
        "Rows as they were understood:",
        "  train  'a0.jpg': 'cat', 'dog'",
        "  train  'a1.jpg': 'cat'",
        "  train  'a2.jpg': 'cat', 'dog'",
        "  test   'b0.jpg': 'ox'",
        "  test   'b1.jpg': 'cat', 'dog', 'ox'",
        "Class-aware re-sampling changes how often a drawn example has a class:",
        # p(cat given dog) = 2/3, p(cat given ox) = 0; p(ox given dog) = 1/3.
        f"  most frequent, cat: p = {3 / 5:.4g}, p̂ = {(1 + 2 / 3 + 0) / 3:.4g} (Eq. 1)",
        f"  least frequent, ox: p = {1 / 5:.4g}, p̂ = {(0 + 1 / 3 + 1) / 3:.4g} (Eq. 1)",
        # N · P^I: of no label 0; of dog and ox 5 · (1/3 + 1)/3.
        f"  an example is drawn 0 to {5 * (1 / 3 + 1) / 3:.3g} times as often as by uniform "
        "sampling (Eq. 2)",
    ]


def test_names_that_look_alike_and_rows_without_labels_are_shown_so_that_they_differ():
    names = ("cafe\u0301", "café", "dog ", "dog", "tab\tle")
    rows = [[name] for name in names] + [[]]
    data = LabelledData(
        names, {"train": make_examples(rows[::-1], names), "test": make_examples(rows, names, "b ")}
    )
    found = sections(data_summary.summarize(data))
    assert found["Names of classes that look like doubles: 2"] == [
        r"  'cafe\u0301' and 'café'",
        "  'dog ' and 'dog'",
    ]
    rows = found["Rows as they were understood:"]
    assert rows[0] == "  train  'a0.jpg': no label" and rows[-1] == r"  test   'b 1.jpg': 'café'"
    classes = next(lines for heading, lines in found.items() if heading.startswith("Classes"))
    assert {line[18:] for line in classes} == {"class", "dog", "café", r"'cafe\u0301'", "'dog '",
                                               r"'tab\tle'"}  # fmt: skip


def test_the_ten_pairs_that_come_together_most_of_many():
    random = np.random.default_rng(0)
    labels = random.random((500, 30)) < np.linspace(0.5, 0.05, 30)
    names = tuple(f"c{i:02d}" for i in range(30))
    train = Examples([f"{i}" for i in range(500)], scipy.sparse.csr_array(labels))
    found = sections(data_summary.summarize(LabelledData(names, {"train": train, "test": train})))
    lines = found["Pairs of classes that come together most in train:"]
    counts = {
        (names[i], names[j]): int((labels[:, i] & labels[:, j]).sum())
        for i in range(30)
        for j in range(i)
    }
    assert len(lines) == 10
    shown = [re.fullmatch(r" +(\d+)  (c\d\d) and (c\d\d)", line) for line in lines]
    for match in shown:
        assert counts[match[3], match[2]] == int(match[1])
    assert [int(match[1]) for match in shown] == sorted(counts.values(), reverse=True)[:10]


def test_of_very_many_classes_the_most_and_the_least_frequent_are_listed():
    names = tuple(f"c{i:04d}" for i in range(1203))
    labels = np.arange(1203)[None, :] < np.linspace(1, 1203, 2406)[::-1, None]
    train = Examples([f"{i}" for i in range(2406)], scipy.sparse.csr_array(labels))
    text = data_summary.summarize(LabelledData(names, {"train": train, "test": train}))
    assert text.splitlines()[0].endswith("1203 classes")
    lines = next(v for k, v in sections(text).items() if k.startswith("Classes"))
    assert len(lines) == 1 + 20 + 1 + 20 and lines[21].strip() == "... 1,163 more"
    assert lines[1].endswith("c0000") and lines[-1].endswith("c1202")


@pytest.mark.parametrize("num_features", [None, 3])
def test_sections_that_do_not_apply_are_left_out(num_features):
    text = data_summary.summarize(make_data(4, 12, num_features=num_features))
    assert "12 train, 0 val, 12 test images; 4 classes" in text.splitlines()[0]
    for absent in ("Pairs", "doubles", "same bytes", "Without any label"):
        assert absent not in text
    assert "p = 0.25, p̂ = 0.25" in text and "drawn 1 to 1 times" in text


def test_images_with_the_same_bytes_are_shown_by_split(tmp_path):
    contents = {"train": [b"one", b"two", b"sex"], "val": [b"two"], "test": [b"ten", b"one"]}
    splits = {}
    for split, content in contents.items():
        rows = make_examples([["cat"]] * len(content), NAMES, f"{split}/")
        files = [tmp_path / f"{split}{i}" for i in range(len(content))]
        for path, data in zip(files, content, strict=True):
            path.write_bytes(data)
        splits[split] = Examples(rows.names, rows.labels, files=list(map(str, files)))
    found = sections(data_summary.summarize(LabelledData(NAMES, splits)))
    assert found["Images with the same bytes in different splits: 2"] == [
        "  'train/0.jpg' (train) = 'test/1.jpg' (test)",
        "  'train/1.jpg' (train) = 'val/0.jpg' (val)",
    ]
