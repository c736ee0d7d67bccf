import csv
import io
import json
import logging
import os
import pathlib

import numpy as np
import PIL.Image
import pytest
import scipy.sparse
import tensorflow as tf

from dbl_tf.statistics import LabelStatistics
from pipelines.datasets import image_checks, table
from pipelines.examples import LabelledData
from pipelines.runs.config import DataConfig

ROWS = [
    ("a.jpg", "train", ["dog", "traffic light"]),
    ("b.jpg", "train", ["traffic light"]),
    ("c.jpg", "val", ["cat", "dog"]),
    ("d.jpg", "test", ["cat"]),
    ("e.jpg", "test", []),
]
DENSE = {  # classes cat, dog, traffic light
    "train": [[0, 1, 1], [0, 0, 1]],
    "val": [[1, 1, 0]],
    "test": [[1, 0, 0], [0, 0, 0]],
}


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """Ten images a.jpg to j.jpg, each of another color."""
    for i, name in enumerate("abcdefghij"):
        PIL.Image.new("RGB", (16, 16), (20 * i, 0, 0)).save(tmp_path / f"{name}.jpg")
    return tmp_path


def load_table(path, only_splits=None, **arguments):
    paths = {
        name: str(value) if isinstance(value, os.PathLike) else value
        for name, value in {"examples": path, **arguments}.items()
    }
    return DataConfig.of(dataset="table", **paths).load_data(only_splits)


@pytest.fixture
def load(tmp_path):
    """`table.load` with a cache of its own and, unless told otherwise, the quickest check."""

    def load(path, **arguments):
        arguments = {"check_images": "exists", "cache_dir": tmp_path / "cache"} | arguments
        return load_table(path, **arguments)

    return load


def write(path: pathlib.Path, text: str, encoding: str = "utf-8") -> pathlib.Path:
    path.write_bytes(text.encode(encoding))
    return path


def csv_text(rows, separator: str = "|") -> str:
    lines = [f"{image},{split},{separator.join(labels)}" for image, split, labels in rows]
    return "\n".join(["image,split,labels", *lines, ""])


def dense(data: LabelledData) -> dict[str, list[list[int]]]:
    return {
        name: split.labels.toarray().astype(int).tolist() for name, split in data.splits.items()
    }


def quoted(text: str) -> str:
    return "\n".join('"' + line.replace(",", '","') + '"' for line in text.splitlines())


def simple(*rows: str) -> str:
    """CSV with one train row on line 2, one test row on line 3, and these from line 4 on."""
    return "\n".join(["image,split,labels", "a.jpg,train,cat", "b.jpg,test,cat", *rows, ""])


def test_labels_splits_and_names_are_those_of_the_file(folder, load):
    data = load(write(folder / "t.csv", csv_text(ROWS)), check_images="all")
    assert data.class_names == ("cat", "dog", "traffic light")
    assert list(data.splits) == ["train", "val", "test"]
    assert dense(data) == DENSE
    assert list(data.splits["test"].names) == ["d.jpg", "e.jpg"]
    for split in data.splits.values():
        assert isinstance(split.labels, scipy.sparse.csr_array) and split.labels.dtype == bool


def test_read_gives_the_bytes_of_the_file_inside_tf_data(folder, load):
    data = load(write(folder / "t.csv", csv_text(ROWS)))
    test = data.splits["test"]
    assert list(tf.data.Dataset.range(len(test)).map(test.read).as_numpy_iterator()) == [
        (folder / "d.jpg").read_bytes(),
        (folder / "e.jpg").read_bytes(),
    ]


@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("t.csv", csv_text(ROWS), "utf-8-sig"),
        ("t.csv", csv_text(ROWS).replace("\n", "\r\n"), "utf-8"),
        ("t.csv", csv_text(ROWS).replace("\n", "\n\n").replace(",", ", "), "utf-8"),
        ("t.csv", quoted(csv_text(ROWS)), "utf-8"),
        ("t.jsonl", None, "utf-8"),
        ("t.json", None, "utf-8-sig"),
        ("t.txt", None, "utf-8"),
    ],
)
def test_other_spellings_of_the_same_table_give_the_same(folder, load, name, text, encoding):
    if text is None:
        objects = [
            {"image": image, "labels": labels, "split": split} for image, split, labels in ROWS
        ]
        objects[0]["labels"] = "dog | traffic light"  # a string is divided as a CSV cell would be
        text = "\n".join(map(json.dumps, objects))
    data = load(write(folder / name, text, encoding))
    assert data.class_names == ("cat", "dog", "traffic light")
    assert dense(data) == DENSE
    assert list(data.splits["train"].names) == ["a.jpg", "b.jpg"]


def test_separator_is_a_bar_where_there_is_one_anywhere_else_spaces(folder, load):
    spaces = load(write(folder / "t.csv", csv_text(ROWS, " ")))
    assert spaces.class_names == ("cat", "dog", "light", "traffic")
    one_bar = load(write(folder / "t.csv", simple("c.jpg,train,traffic light", "d.jpg,val,a|b")))
    assert one_bar.class_names == ("a", "b", "cat", "traffic light")
    given = load(write(folder / "t.csv", csv_text(ROWS, " ; ")), label_separator=";")
    assert dense(given) == DENSE
    bar_in_a_name = load(write(folder / "t.csv", simple("c.jpg,val,x|y z")), label_separator=" ")
    assert bar_in_a_name.class_names == ("cat", "x|y", "z")


def test_names_in_a_json_list_are_taken_as_they_are(folder, load):
    lines = [
        {"image": "a.jpg", "split": "train", "labels": ["x|y", "traffic light"]},
        {"image": "b.jpg", "split": "test", "labels": "x|y z"},
    ]
    data = load(write(folder / "t.jsonl", "\n".join(map(json.dumps, lines))))
    assert data.class_names == ("traffic light", "x", "x|y", "y z")


def test_class_names_give_the_order_and_may_have_no_examples(folder, load):
    classes = write(folder / "classes.txt", "zebra\ntraffic light\n\ndog\r\ncat", "utf-8-sig")
    data = load(write(folder / "t.csv", csv_text(ROWS)), class_names=classes)
    assert data.class_names == ("zebra", "traffic light", "dog", "cat")
    assert dense(data)["train"] == [[0, 1, 1, 0], [0, 1, 0, 0]]


def test_images_dir_and_absolute_paths(folder, load):
    (folder / "lists").mkdir()
    rows = [("a.jpg", "train", ["x"]), (str(folder / "b.jpg"), "test", ["x"])]
    path = write(folder / "lists" / "t.csv", csv_text(rows))
    data = load(path, images_dir=folder)
    assert data.splits["train"].read(tf.constant(0)) == (folder / "a.jpg").read_bytes()
    assert data.splits["test"].read(tf.constant(0)) == (folder / "b.jpg").read_bytes()
    with pytest.raises(
        image_checks.BadImagesError, match=r"no such file: 1\n.*line 2: '\S+/lists/a.jpg'"
    ):
        load(path)
    with pytest.raises(ValueError, match="images_dir must be a folder"):
        load(path, images_dir=folder / "nowhere")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ["is empty", "image,split,labels"]),
        ("image,split,labels\n", ["has no rows"]),
        ("image,labels\na.jpg,cat\n", ["has no test rows", "1 train"]),
        (
            "image,split\na.jpg,cat\n",
            ["no column of labels", "'image', 'split'", "--labels_column"],
        ),
        ("labels,split\ncat,train\n", ["line 1: no column of images", "--image_column=NAME"]),
        ("\nimage;split;labels\n", ["has no rows"]),
        ("image,split,labels,image\n", ["line 1: more than one column image"]),
        (
            simple("c.jpg,trian,cat", "d.jpg,train,cat", "e.jpg,tests,cat"),
            ["choices are train, val, test): 2", "line 4: 'trian'", "line 6: 'tests'"],
        ),
        (simple(",train,cat", " ,train,cat"), ["without an image: 2", "line 4: ''", "line 5: ''"]),
        (
            simple("c.jpg,train,cat,dog", "", "d.jpg,train"),
            ["exactly 3 cells", "line 4: 4 cells; a comma", "line 6: 2 cells"],
        ),
        # A cell over two lines: the rows after it keep the numbers that an editor shows.
        (simple('c.jpg,train,"cat\ndog"', "d.jpg,no,"), ["line 6: 'no'"]),
        (simple('c.jpg,train,"cat', "d.jpg,train,cat"), ["line 4: malformed CSV"]),
        (simple("a.jpg,trainval,cat", ",train,cat"), ["line 4: 'trainval'", "line 5: ''"]),
        ("image,split,labels\na.jpg,test,cat\nb.jpg,val,cat\n", ["no train rows", "1 val, 1 test"]),
        ("image,split,labels\na.jpg,train,cat\n", ["no test rows", "1 train"]),
        ("image,split,labels\na.jpg,val,cat\n", ["no train and no test rows", "1 val"]),
        ("image,split,labels\na.jpg,train,\nb.jpg,test,\n", ["no label in any of its 2 rows"]),
        (
            simple("b.jpg,train,cat", "./a.jpg,val,cat", "a.jpg,train,cat"),
            [
                "more than one split",
                "line 4: b.jpg in train; line 3 has it in test",
                "line 5: ./a.jpg in val; line 2 has it in train",
            ],
        ),
    ],
)
def test_csv_that_cannot_be_used(folder, load, text, found):
    path = write(folder / "t.csv", text)
    with pytest.raises(table.TableError) as error:
        load(path)
    for part in [str(path), *found]:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"image": "c.jpg", "split": "train" "labels": []}', ["line 3: column 37: Expecting ','"]),
        ('[{"image": "c.jpg"}]', ["line 3: a JSON array"]),
        ("3", ["line 3: a JSON value, 3"]),
        ('{"image": "c.jpg", "split": "train"}', ["line 3: no labels", "'image', 'split'"]),
        ('{"image": 3, "split": "train", "labels": []}', ["line 3: image 3", "strings"]),
        ('{"image": "c.jpg", "split": null, "labels": []}', ["line 3", "split null"]),
        ('{"image": "c.jpg", "split": "train", "labels": 3}', ["line 3: 3", "list of names"]),
        ('{"image": "c.jpg", "split": "train", "labels": ["x", 3]}', ['line 3: ["x", 3]']),
        ('{"image": "c.jpg", "split": "train", "labels": ["x", " "]}', ['line 3: ["x", " "]']),
        ('{"image": "", "split": "train", "labels": []}', ["line 3: ''", "without an image"]),
        ('{"image": "c.jpg", "split": "tests", "labels": []}', ["line 3: 'tests'"]),
    ],
)
def test_json_lines_that_cannot_be_used(folder, load, line, found):
    good = [
        '{"image": "a.jpg", "split": "train", "labels": ["x"]}',
        '{"image": "b.jpg", "split": "test", "labels": ["x"]}',
    ]
    path = write(folder / "t.jsonl", "\n".join([good[0], "", line, good[1]]))
    with pytest.raises(table.TableError) as error:
        load(path)
    for part in [str(path), *found]:
        assert part in str(error.value)


def test_problems_of_a_kind_are_counted_and_the_first_five_shown(folder, load):
    path = write(folder / "t.csv", simple(*(f"{i}.jpg,dev{i},cat" for i in range(8))))
    with pytest.raises(table.TableError) as error:
        load(path)
    assert "): 8\n" in str(error.value) and "and 3 more" in str(error.value)
    assert "line 8: 'dev4'" in str(error.value) and "dev5" not in str(error.value)


def test_labels_outside_class_names(folder, load):
    classes = write(folder / "classes.txt", "cat\ndog\n")
    path = write(folder / "t.csv", simple("c.jpg,train,dgo cat", "d.jpg,train,dgo", "e.jpg,val,ox"))
    with pytest.raises(table.TableError) as error:
        load(path, class_names=classes)
    message = str(error.value)
    assert str(path) in message and str(classes) in message
    assert "line 4: 'dgo', near 'dog' (rows with it: 2)" in message
    assert "line 6: 'ox' (rows with it: 1)" in message
    assert "separated by ' '" in message and "--label_separator" in message


@pytest.mark.parametrize(
    ("text", "found"),
    [("cat\ndog\n\ncat\n", "line 4: 'cat', as line 1"), ("\n \n", "is empty")],
)
def test_class_names_that_cannot_be_used(folder, text, found):
    with pytest.raises(table.TableError) as error:
        table.read_class_names(write(folder / "classes.txt", text))
    assert found in str(error.value) and str(folder / "classes.txt") in str(error.value)


def test_missing_files_are_named_with_what_lies_near(folder, load):
    write(folder / "examples.csv", simple())
    with pytest.raises(table.TableError, match=r"exmaples\.csv was not found; .*: examples\.csv"):
        load(folder / "exmaples.csv")
    with pytest.raises(table.TableError, match="neither was its folder"):
        load(folder / "no" / "examples.csv")
    with pytest.raises(table.TableError, match=r"is a folder; .* such as \S+/examples\.csv\."):
        load(folder)
    with pytest.raises(table.TableError, match=r"list of class names .*classes\.txt was not found"):
        load(folder / "examples.csv", class_names=folder / "classes.txt")


def test_file_of_another_encoding_is_named_with_its_line(folder, load):
    path = write(folder / "t.csv", simple("c.jpg,train,caf\xe9"), "latin-1")
    with pytest.raises(table.TableError, match=r"t\.csv, line 4: byte 0xe9 is not UTF-8"):
        load(path)


def bad_images(folder: pathlib.Path) -> pathlib.Path:
    """A table whose lines 4 to 8 name an image of each bad kind."""
    encoded = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    PIL.Image.fromarray(noise).save(encoded, "JPEG")
    (folder / "truncated.jpg").write_bytes(encoded.getvalue()[:1500])
    (folder / "text.jpg").write_text("This is no picture at all, whatever it may be called.")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "folder.jpg").mkdir()
    names = ("missing", "truncated", "text", "empty", "folder")
    return write(folder / "t.csv", simple(*(f"{name}.jpg,train,dog" for name in names)))


def test_bad_images_are_refused_with_their_lines(folder, load):
    path = bad_images(folder)
    with pytest.raises(image_checks.BadImagesError) as error:
        load(path, check_images="all")
    message = str(error.value)
    assert f"5 of 7 images of {path}" in message and "--skip_bad_images" in message
    for line, name in enumerate(("missing", "truncated", "text", "empty", "folder"), start=4):
        assert f"line {line}: '{folder}/{name}.jpg'" in message
    with pytest.raises(image_checks.BadImagesError, match="3 of 7 images"):
        load(path, check_images="exists")


def test_bad_images_are_left_out_where_asked(folder, load, caplog):
    data = load(bad_images(folder), check_images="all", skip_bad_images=True)
    assert dense(data) == {"train": [[1, 0]], "test": [[1, 0]]}
    assert list(data.splits["train"].names) == ["a.jpg"]
    assert data.splits["test"].read(tf.constant(0)) == (folder / "b.jpg").read_bytes()
    [warning] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "images of 7 that cannot be used and are left out: 5\n" in warning
    assert f"  is a folder, not a file: 1\n      line 8: '{folder}/folder.jpg'" in warning


def test_no_test_image_left_is_refused(folder, load):
    (folder / "b.jpg").unlink()
    path = write(folder / "t.csv", simple())
    with pytest.raises(table.TableError, match="no test rows with an image that can be used"):
        load(path, skip_bad_images=True)


def test_rows_of_one_image_are_merged_with_a_warning(folder, load, caplog):
    rows = ("c.jpg,train,cat", "./c.jpg,train,dog", "d.jpg,test,cat", "d.jpg,test,cat")
    data = load(write(folder / "t.csv", simple(*rows)))
    assert list(data.splits["train"].names) == ["a.jpg", "c.jpg"]
    assert dense(data) == {"train": [[1, 0], [1, 1]], "test": [[1, 0], [1, 0]]}
    [warning] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert (
        "rows that name an image again within its split, merged with the first that does (1 of the "
        "images have rows with different labels, and get all of them): 2\n"
    ) in warning
    assert "line 5: ./c.jpg, as line 4" in warning and "line 7: d.jpg, as line 6" in warning


def test_label_repeated_in_a_row_counts_once(folder, load):
    data = load(write(folder / "t.csv", simple("c.jpg,train,dog dog cat")))
    assert data.splits["train"].labels.nnz == 3
    assert LabelStatistics.from_labels(data.splits["train"].labels).class_counts.tolist() == [2, 1]


def test_table_without_a_remark_is_summed_up_in_one_line(folder, load, caplog):
    caplog.set_level(logging.INFO, logger="absl")
    path = write(folder / "t.csv", csv_text([("a.jpg", "train", ["x"]), ("b.jpg", "test", ["x"])]))
    load(path)
    [record] = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage() == (
        f"{path}: list layout (images in 'image', splits in 'split', labels in 'labels', one in "
        "each cell); 2 rows; 1 train, 1 test images; 1 classes"
    )


def test_classes_whose_names_look_like_doubles_are_named_in_a_warning(folder, load, caplog):
    rows = ["c.jpg,train,Cat", "d.jpg,train,cafe\u0301", "e.jpg,test,caf\u00e9", "f.jpg,val,dog"]
    load(write(folder / "t.csv", simple(*rows)))
    [warning] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    found = warning[warning.index("  classes whose names look like doubles: 2\n") :].splitlines()
    assert found[1:3] == ["    'Cat' and 'cat'", "    'cafe\\u0301' and 'café'"]


def test_one_summary_holds_all_that_was_found(folder, load, caplog):
    caplog.set_level(logging.INFO, logger="absl")
    classes = write(folder / "classes.txt", "cat\ndog\nox\nyak\nzebra")
    rows = [
        "width,image,split,labels,height",
        "1,a.jpg,train,cat | dog | dog,9",
        "1,b.jpg,train,,9",
        "1,./a.jpg,train,ox,9",
        *(f"1,missing{i}.jpg,train,cat,9" for i in range(7)),
        "1,c.jpg,test,cat,9",
        "1,d.jpg,test,,9",
        "1,e.jpg,val,dog,9",
    ]
    path = write(folder / "t.csv", "\n".join(rows))
    load(path, skip_bad_images=True, class_names=classes)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    listed = folder / "cache" / "bad_images_of_t.csv.csv"
    assert record.getMessage().splitlines() == [
        f"{path}: list layout (images in 'image', splits in 'split', labels in 'labels', separated "
        "by '|', which occurs in cells); 13 rows; 2 train, 1 val, 2 test images; 5 classes",
        "  columns not used: 2",
        "    'width'",
        "    'height'",
        "  rows that name an image again within its split, merged with the first that does (1 of "
        "the images have rows with different labels, and get all of them): 1",
        "    line 4: ./a.jpg, as line 2",
        "  images of 12 that cannot be used and are left out: 7",
        "    no such file: 7",
        *(f"      line {5 + i}: '{folder}/missing{i}.jpg'" for i in range(5)),
        "      and 2 more",
        f"    All of them are listed in {listed}",
        "  images without labels: 2",
        "    line 3: b.jpg (train)",
        "    line 13: d.jpg (test)",
        "  labels repeated within a row, which count once: 1",
        "  classes without train images: 2",
        "    'yak'",
        "    'zebra'",
        "  classes without val images: 4",
        "    'cat'",
        "    'ox'",
        "    'yak'",
        "    'zebra'",
        "  classes without test images: 4",
        "    'dog'",
        "    'ox'",
        "    'yak'",
        "    'zebra'",
    ]
    bad = list(csv.reader(listed.open()))
    assert bad[0] == ["line", "image", "reason"] and len(bad) == 8
    assert bad[7] == ["11", f"{folder}/missing6.jpg", "no such file"]


def test_fields_of_json_lines_that_are_not_used_are_named_once(folder, load, caplog):
    lines = [
        {"image": f"{name}.jpg", "split": split, "labels": ["x"], "id": 3}
        for name, split in (("a", "train"), ("b", "train"), ("c", "test"))
    ]
    load(write(folder / "t.jsonl", "\n".join(map(json.dumps, lines))))
    [record] = caplog.records
    assert record.getMessage().splitlines()[1:] == ["  columns not used: 1", "    'id'"]


def test_real_table(shared_data, tmp_path):
    path = shared_data / "voc_subset" / "examples.csv"
    data = load_table(path, cache_dir=tmp_path)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 894, "test": 1200}
    statistics = LabelStatistics.from_labels(data.splits["train"].labels, data.class_names)
    counts = statistics.class_counts
    assert (len(counts), counts.min(), counts.max()) == (15, 4, 447)
    assert {name: len(group) for name, group in statistics.groups.items()} == {
        "head": 5,
        "medium": 4,
        "tail": 6,
    }
    first = data.splits["train"]
    assert first.names[0] == "images/voc2007_000011.jpg"
    assert first.read(tf.constant(0)) == (path.parent / first.names[0]).read_bytes()
    assert [data.class_names[c] for c in first.labels[[2]].indices] == ["cat", "chair"]


def test_only_the_splits_asked_for_are_needed_and_checked(folder, load):
    path = write(
        folder / "t.csv", csv_text([("missing.jpg", "train", ["x"]), ("a.jpg", "test", ["y"])])
    )
    data = load(path, only_splits=("test",))
    assert list(data.splits) == ["test"] and data.splits["test"].names == ["a.jpg"]
    only_test = write(folder / "test.csv", csv_text([("a.jpg", "test", ["y"])]))
    assert len(load(only_test, only_splits=("test",)).splits["test"]) == 1
    with pytest.raises(table.TableError, match="has no train rows; train and test rows are needed"):
        load(only_test)


def test_copied_rows_read_as_before_though_their_separator_has_gone(folder, load):
    # Without the row of two labels no bar would be left, and spaces would part the light's name.
    path = write(folder / "t.csv", csv_text(ROWS))
    (folder / "copy").mkdir()
    files = {str(folder / f"{name}.jpg") for name in "bde"}
    copy = table.copy_rows(table.TableOptions(examples=str(path)), folder / "copy", files)
    assert copy == str(folder / "copy" / "examples.csv")
    data = load(copy)
    assert data.class_names == ("cat", "traffic light")
    assert dense(data) == {"train": [[0, 1]], "test": [[1, 0], [0, 0]]}
    assert data.splits["train"].files == [str(folder / "b.jpg")]


def test_copied_rows_keep_a_separator_that_was_given(folder, load):
    path = write(folder / "t.csv", csv_text([*ROWS, ("f.jpg", "test", ["x|y"])], ";"))
    options = table.TableOptions(examples=str(path), label_separator=";")
    copy = table.copy_rows(options, folder, {str(folder / f"{name}.jpg") for name in "bdef"})
    data = load(copy, label_separator=";")
    assert data.class_names == ("cat", "traffic light", "x|y")
    assert data.splits["test"].names == ["d.jpg", "e.jpg", "f.jpg"]


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_all_rows_copied_give_the_same_data(folder, load, name):
    text = quoted(csv_text(ROWS)).replace("\n", "\r\n\r\n")
    if name == "t.jsonl":
        objects = [{"image": i, "labels": list_, "split": split} for i, split, list_ in ROWS]
        text = "\n\n".join(json.dumps(row | {"note": "é"}) for row in objects)
    path = write(folder / name, text, "utf-8-sig")
    data = load(path)
    files = {file for split in data.splits.values() for file in split.files}
    (folder / "deep" / "er").mkdir(parents=True)
    copy = load(
        table.copy_rows(table.TableOptions(examples=str(path)), folder / "deep" / "er", files)
    )
    assert copy.class_names == data.class_names and dense(copy) == DENSE
    for split in data.splits:
        assert copy.splits[split].files == data.splits[split].files
        assert copy.splits[split].names[0].startswith("../../")
