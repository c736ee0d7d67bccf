"""Layouts of tables, as people have them: read as they are meant, or refused with what to type."""

import json
import pathlib

import numpy as np
import pytest

from pipelines.findings import Findings
from pipelines.tables import cells, reading
from pipelines.tables.columns import ColumnFlags
from pipelines.tables.splits import SPLITS
from pipelines.tables.text import TableError


@pytest.fixture
def read(tmp_path):
    """Writes files, and reads one of them or their folder: images, splits, labels, and remarks."""

    def read(files, name=None, flags=None, **arguments):
        files = {"t.csv": files} if isinstance(files, str) else files
        for relative, content in files.items():
            file = tmp_path / relative
            file.parent.mkdir(parents=True, exist_ok=True)
            if not isinstance(content, str | bytes):
                content = json.dumps(content)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        path = tmp_path / (name or (next(iter(files)) if len(files) == 1 else ""))
        findings = Findings(str(path))
        rows = reading.read(str(path), findings, flags=ColumnFlags(**flags or {}), **arguments)
        labels: list[list[str]] = [[] for _ in rows.images]
        for row, code in zip(rows.label_rows, rows.label_codes, strict=True):
            labels[row].append(rows.label_names[code])
        split = [SPLITS[code] for code in rows.splits]
        return Result(dict(zip(rows.images, labels, strict=True)), split, rows, findings.text(""))

    return read


class Result:
    def __init__(self, labels, splits, rows, remarks):
        self.labels, self.splits, self.rows, self.remarks = labels, splits, rows, remarks


def table_of(*cell_texts: str, quote: str = '"') -> str:
    lines = [f"{i}.jpg,train,{quote}{cell}{quote}" for i, cell in enumerate(cell_texts)]
    return "\n".join(["image,split,labels", *lines, ""])


def labels_of(result: Result) -> list[list[str]]:
    return list(result.labels.values())


def refused(read, *arguments, **options) -> str:
    with pytest.raises(TableError) as error:
        read(*arguments, **options)
    return str(error.value)


# Separators


@pytest.mark.parametrize("mark", [", ", ",", ";", " ; ", "/", "\t", "|", " "])
def test_labels_that_recur_in_other_cells_are_a_list(read, mark):
    found = read(table_of(f"person{mark}sheep", "person", f"sheep{mark}dog", ""))
    assert labels_of(found) == [["person", "sheep"], ["person"], ["sheep", "dog"], []]


@pytest.mark.parametrize("mark", [", ", ",", ";", "/", "\t"])
def test_a_cell_whose_parts_occur_nowhere_else_is_shown_in_both_readings(read, mark):
    cell = f"black{mark}white"
    message = refused(read, table_of(cell, "person", "dog", cell))
    flag = repr(mark.strip(" "))
    assert f"--label_separator={flag} reads 2 labels, 'black' and 'white'" in message
    assert f"--label_separator=none reads 1 label, {cell!r}" in message
    assert f"line 2: {cell!r}" in message
    whole = read(table_of(cell, "person"), label_separator="none")
    assert labels_of(whole) == [[cell], ["person"]]
    given = read(table_of(cell, "person"), label_separator=mark.strip(" "))
    assert labels_of(given) == [["black", "white"], ["person"]]


def test_one_name_with_a_comma_among_lists_is_not_split_silently(read):
    message = refused(read, table_of("person, sheep", "person", "sheep", "black, white"))
    assert "'black, white'" in message and "line 5" in message


def test_names_of_several_words_are_not_split_silently(read):
    message = refused(read, table_of(*["traffic light"] * 3, *["stop sign"] * 2, "dog"))
    assert "--label_separator=none" in message and "'traffic light'" in message
    message = refused(read, table_of(*["polar bear"] * 3, *["brown bear"] * 2, "bear"))
    assert "2 of 2 different cells" in message
    once = read(table_of("person sheep", "dog"))
    assert labels_of(once) == [["person", "sheep"], ["dog"]]
    assert "line 2: 'person sheep' as 2 labels" in once.remarks


def test_names_of_several_words_stay_whole_between_commas(read):
    found = read(table_of("traffic light, dog", "dog", "traffic light"))
    assert labels_of(found) == [["traffic light", "dog"], ["dog"], ["traffic light"]]


def test_a_list_of_classes_decides(read):
    text = table_of("black, white", "traffic light")
    assert labels_of(read(text, known=["black", "white", "traffic light"])) == [
        ["black", "white"],
        ["traffic light"],
    ]
    assert labels_of(read(text, known=["black, white", "traffic light"])) == [
        ["black, white"],
        ["traffic light"],
    ]


@pytest.mark.parametrize("mark", ["+", "&", "_", "-", ":"])
def test_names_that_consist_of_others_show_another_separator(read, mark):
    message = refused(read, table_of("person", "sheep", f"person{mark}sheep"))
    assert f"--label_separator={mark!r} reads 2 labels, 'person' and 'sheep'" in message


def test_two_separators_that_both_fit_are_refused(read):
    message = refused(read, table_of("a,b", "a", "c;d", "d"))
    assert "--label_separator=','" in message and "--label_separator=';'" in message


@pytest.mark.parametrize("cell", ["person,sheep", "person sheep", "person"])
def test_a_given_separator_that_occurs_nowhere_is_refused(read, cell):
    message = refused(read, table_of(cell, "dog"), label_separator=";")
    assert "--label_separator=';' occurs in no cell of 'labels'" in message
    assert f"line 2 has {cell!r}" in message and "--label_separator=none" in message


@pytest.mark.parametrize("given", ["\\t", "\t", "tab"])
def test_a_tab_may_be_written_with_a_backslash(read, given):
    found = read(table_of("traffic light\tdog", "cat"), label_separator=given)
    assert labels_of(found) == [["traffic light", "dog"], ["cat"]]


# Lists in cells


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        ("['person', 'sheep']", ["person", "sheep"]),
        ("['traffic light']", ["traffic light"]),
        ("('a', 'b',)", ["a", "b"]),
        ("{'a', 'b'}", ["a", "b"]),
        ("['it''s']".replace("''", "\\'"), ["it's"]),
        ("['a' 'b'\n 'c']", ["a", "b", "c"]),  # as NumPy writes it
        ("[person, traffic light]".replace("traffic light", "sheep"), ["person", "sheep"]),
        ("[3, 17]", ["3", "17"]),
        ("[None, 'a', nan]", ["a"]),
        ("[]", []),
        ("set()", []),
        ("(person)", None),
        ("person", None),
        ("{person}", None),
    ],
)
def test_lists_of_python_and_numpy(cell, names):
    assert cells.parse_list(cell) == names


def test_lists_of_json_and_pandas_in_cells(read):
    text = '"[""person"", ""caf\\u00e9, bar""]"'
    found = read(f"image,split,labels\na.jpg,train,{text}\nb.jpg,test,[]\nc.jpg,val,nan\n")
    assert labels_of(found) == [["person", "café, bar"], [], []]
    found = read(table_of("['person', 'sheep']", "['dog']", "[]"))
    assert labels_of(found) == [["person", "sheep"], ["dog"], []]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("['person', 'sheep'", "not closed"),
        ("['a', ['b']]", "a list within a list"),
        ("[" * 5000 + "]" * 5000, "a list within a list"),
        ("{'a': 1}", "keys and values"),
        ("[0.5, 0.2]", "number 0.5"),
        ("['a', 3]", "numbers and names"),
        ("['a', '']", "empty name"),
        ("[__import__('os').system('false')]", "a list"),
        ("['\\x']", "cannot be read"),
        ("[a b, c]", "neither quotes nor commas"),
        ("['" + "a" * (1 << 18) + "']", "field larger than field limit"),
    ],
)
def test_lists_that_cannot_be_read(read, cell, reason):
    message = refused(read, table_of(cell, "['a']"))
    assert reason in message and "line 2" in message and len(message) < 1000


def test_lists_and_plain_cells_in_one_column_are_refused(read):
    message = refused(read, table_of("['a', 'b']", "dog"))
    assert "line 3: 'dog'" in message and "['a', 'b']" in message


def test_lists_of_zeros_and_ones_are_no_names(read):
    rows = [{"image": f"{i}.jpg", "split": "train", "labels": [0, 1, i % 2]} for i in range(4)]
    assert "zeros and ones in one cell" in refused(read, {"t.json": rows})
    rows[0]["labels"] = [2, 7]
    assert read({"t.json": rows}).labels["0.jpg"] == ["2", "7"]


@pytest.mark.parametrize("between", ["", ",", " ", ";"])
def test_digits_of_zeros_and_ones_are_no_names(read, between):
    texts = [between.join(digits) for digits in ("010", "110", "001", "110")]
    message = refused(read, table_of(*texts))
    assert "zeros and ones in one cell" in message and f"line 2: {texts[0]!r}" in message
    # Numbers of classes are names, and those of a list of classes are known.
    assert labels_of(read(table_of("10", "11", "2"))) == [["10"], ["11"], ["2"]]
    assert labels_of(read(table_of("01", "10"), known=["01", "10"])) == [["01"], ["10"]]


def test_words_that_never_stand_alone_may_be_names(read):
    texts = ("polar bear", "black bear", "polar fox", "black fox") * 2
    message = refused(read, table_of(*texts))
    assert "'polar bear' in column 'labels' can be read in 2 ways" in message
    assert labels_of(read(table_of(*texts), label_separator="none"))[0] == ["polar bear"]
    assert labels_of(read(table_of(*texts, "fox")))[0] == ["polar", "bear"]
    tags = "sky water tree people"
    assert labels_of(read(table_of(tags, "sky water", "tree sky")))[0] == tags.split()


@pytest.mark.parametrize("mark", ["&", "+", "-", "·", "->"])
def test_a_mark_between_blanks_is_no_label(read, mark):
    message = refused(read, table_of("cat", "dog", f"cat {mark} dog"))
    assert f"line 4: 'cat {mark} dog'" in message and f"--label_separator='{mark}'" in message
    parted = read(table_of("cat", f"cat {mark} dog"), label_separator=mark)
    assert labels_of(parted) == [["cat"], ["cat", "dog"]]
    # Emojis are names, and so is a mark that stands alone, with a remark.
    assert labels_of(read(table_of("🐈 🐕", "🐕"))) == [["🐈", "🐕"], ["🐕"]]
    assert "labels without a letter or a digit: 1" in read(table_of("cat", mark)).remarks


# Cells without labels


@pytest.mark.parametrize("cell", ["nan", "NaN", "None", "null", "<NA>", "", "  "])
def test_cells_that_say_nothing_are_no_label(read, cell):
    found = read(table_of("cat ", cell, "dog"))
    assert labels_of(found) == [["cat"], [], ["dog"]]
    assert ("cells that say there is no label" in found.remarks) == bool(cell.strip())


def test_a_class_called_none_is_a_label_where_the_classes_are_given(read):
    assert labels_of(read(table_of("None", "cat"), known=["None", "cat"])) == [["None"], ["cat"]]


def test_numbers_that_are_no_classes_are_refused(read):
    message = refused(read, table_of("3", "-1", "7"))
    assert "-1 for unknown" in message and "line 3: '-1'" in message
    assert labels_of(read(table_of("3", "0", "7"))) == [["3"], ["0"], ["7"]]


# Wide tables


def wide_text(rows=3, words=("0", "1"), quote="", delimiter=",") -> tuple[str, np.ndarray]:
    values = np.random.default_rng(0).integers(0, 2, (rows, 5))
    lines = ["id,split,a,b,c,d e,f", *(
        ",".join([f"{quote}{i:04}{quote}", f"{quote}{['train', 'val'][i % 2]}{quote}",
                  *(words[v] for v in row)])
        for i, row in enumerate(values)
    )]  # fmt: skip
    return "\n".join(lines).replace(",", delimiter), values


def dense(result: Result) -> np.ndarray:
    matrix = np.zeros((len(result.rows.images), len(result.rows.label_names)), int)
    matrix[result.rows.label_rows, result.rows.label_codes] = 1
    return matrix


@pytest.mark.parametrize("words", [("0", "1"), ("False", "True"), ("0.0", "1.0"), ("no", "yes")])
@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_wide_tables(read, words, quote, delimiter):
    text, values = wide_text(50, words, quote, delimiter)
    found = read(text)
    assert found.rows.layout == "wide layout"
    assert found.rows.class_names == ("a", "b", "c", "d e", "f")
    assert list(found.labels)[:2] == ["0000", "0001"]
    assert found.splits[:3] == ["train", "val", "train"]
    np.testing.assert_array_equal(dense(found), values)


def test_wide_columns_may_stand_anywhere(read):
    text = "a,file,b,note,split\n1,x.jpg,0,hello,Train\n0,y.jpg,1,,dev\n"
    found = read(text)
    assert found.labels == {"x.jpg": ["a"], "y.jpg": ["b"]} and found.splits == ["train", "val"]
    assert "columns not used: 1" in found.remarks and "'note'" in found.remarks
    first = read("a,b,file,split\n1,0,x.jpg,Train\n0,1,y.jpg,dev\n")
    assert first.labels == found.labels


def test_irregular_lines_of_wide_tables_are_read_like_the_others(read):
    lines = [
        "file,split,a,b",
        "1.jpg,train,1,0\r",
        "",
        '"2,x.jpg",train,0,1',
        "3.jpg,train, 1 ,True",
        '"4""\n.jpg",test,"1",0',
        "5.jpg,val,0,1",
    ]
    found = read("\n".join(lines))
    assert found.labels == {
        "1.jpg": ["a"], "2,x.jpg": ["b"], "3.jpg": ["a", "b"], '4"\n.jpg': ["a"], "5.jpg": ["b"],
    }  # fmt: skip
    assert [found.rows.places[i] for i in range(5)] == [2, 4, 5, 6, 8]


@pytest.mark.parametrize("cell", ["-1", "-1.0", "nan", "NA", "<NA>", "", " "])
@pytest.mark.parametrize("empty_is_unknown", [False, True])
def test_cells_of_wide_tables_can_say_that_a_label_is_not_known(read, cell, empty_is_unknown):
    text, _ = wide_text(5)
    found = read(text + f"\n0099,train,1,{cell},0,0,1\n", empty_is_unknown=empty_is_unknown)
    assert len(found.rows.images) == 6 and found.labels["0099"] == ["a", "f"]
    unknown = list(zip(found.rows.unknown_rows, found.rows.unknown_codes, strict=True))
    assert unknown == ([(5, 1)] if cell.strip() or empty_is_unknown else [])
    taken_as_zero = not cell.strip() and not empty_is_unknown
    assert ("empty cells of classes, which are taken as 0" in found.remarks) == taken_as_zero


def test_null_in_json_says_that_a_label_is_not_known(read):
    lines = (
        '{"image": "1.jpg", "split": "train", "a": 1, "b": null}\n'
        '{"image": "2.jpg", "split": "test", "a": -1, "b": 0}\n'
    )
    found = read({"t.jsonl": lines})
    assert found.labels == {"1.jpg": ["a"], "2.jpg": []}
    assert found.rows.unknown_rows.tolist() == [0, 1]
    assert found.rows.unknown_codes.tolist() == [1, 0]


@pytest.mark.parametrize("cell", ["2", "0.7", "maybe"])
def test_other_cells_of_classes_are_refused(read, cell):
    text, _ = wide_text(2000)
    message = refused(read, text + f"\n9999,train,1,0,{cell},0,1\n")
    assert "neither 0 nor 1 nor, where it is not known, -1: 1" in message
    assert f"line 2002: {cell!r} in column 'c'" in message


def test_columns_of_numbers_are_no_classes(read):
    text = "file,count,width,a,b\nx.jpg,0,640,1,0\ny.jpg,3,480,0,1\nz.jpg,1,1,1,1\nv.jpg,1,2,0,0\n"
    message = refused(read, text)
    assert "'count' ('0', '3', '1')" in message and "--labels_column=a..b" in message
    found = read(text, flags={"labels": "a..b"})
    assert found.rows.class_names == ("a", "b")
    assert read(text, flags={"labels": "a, b"}).labels == found.labels
    index = ",file,a,b\n0,x.jpg,1,0\n1,y.jpg,0,1\n"
    assert read(index).rows.class_names == ("a", "b")


def test_rows_of_another_size_and_classes_named_twice(read):
    text, _ = wide_text(5)
    message = refused(read, text + "\n1,train,1\n2,train,1,1,1,1,1,1\n")
    assert "line 7: 3 cells" in message and "line 8: 8 cells" in message
    assert "more than one column 'a'" in refused(read, "file,a,b,a\nx.jpg,0,1,0\n")


def test_many_columns_are_never_listed_in_an_error(read):
    names = [f"column {i}" for i in range(84)]
    message = refused(read, "file," + ",".join(names) + "\nx.jpg" + ",hello" * 84 + "\n")
    assert (
        "no column of labels" in message
        and "and 80 more" in message
        and "--labels_column=" in message
    )
    assert len(message) < 400


# Columns


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("split", ("Train", "validation", "TEST")),
        ("set", ("training", "dev", "testing")),
        ("Subset", ("train", "valid", "test2017")),
        ("partition", (" train ", "val", "Test")),
    ],
)
def test_words_for_splits(read, name, values):
    rows = [f"{i}.jpg,{value},cat" for i, value in enumerate(values)]
    assert read("\n".join([f"file,{name},tags", *rows])).splits == ["train", "val", "test"]


@pytest.mark.parametrize("words", [("False", "True"), ("0", "1"), ("false", "TRUE")])
def test_truth_values_for_splits(read, words):
    text = f"file,is_valid,tags\na.jpg,{words[0]},cat\nb.jpg,{words[1]},dog\n"
    assert read(text).splits == ["train", "val"]
    text = text.replace("is_valid", "is_test")
    assert read(text).splits == ["train", "test"]
    assert read(text.replace("is_test", "is_train")).splits == ["test", "train"]
    rows = [{"file_name": "a.jpg", "is_valid": flag, "labels": ["x"]} for flag in (True, False)]
    rows[1]["file_name"] = "b.jpg"
    assert read({"t2.json": rows}).splits == ["val", "train"]


def test_a_column_of_splits_with_another_name_is_not_overlooked(read):
    text = "file,part,tags\na.jpg,train,cat\nb.jpg,test,cat\n"
    assert "--split_column=part" in refused(read, text)
    assert read(text, flags={"split": "part"}).splits == ["train", "test"]


def test_two_columns_that_may_be_meant_are_shown(read):
    text = "path,file_name,split,tags,categories\nx/a.jpg,a.jpg,train,cat,animal\n"
    message = refused(read, text)
    assert (
        "--image_column=path reads 'x/a.jpg'" in message and "--image_column=file_name" in message
    )
    message = refused(read, text, flags={"image": "path"})
    assert "--labels_column=tags reads 'cat'" in message and "--labels_column=categories" in message
    found = read(text, flags={"image": "path", "labels": "categories"})
    assert found.labels == {"x/a.jpg": ["animal"]}
    assert "did you mean --labels_column=tags?" in refused(read, text, flags={"labels": "tag"})


def test_a_list_beside_columns_of_classes_is_shown_in_both_readings(read):
    text = "file,tags,cat,dog\na.jpg,cat,1,0\nb.jpg,dog,0,1\n"
    message = refused(read, text)
    assert "--labels_column=tags" in message and "--labels_column=cat..dog" in message


def test_a_first_line_that_is_a_row_is_no_header(read):
    assert "is no header" in refused(read, "a.jpg,train,cat\nb.jpg,test,dog\n")


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"PAR1", "Parquet"),
        (b"PK\x03\x04", "Excel"),
        (b"\x1f\x8b", "gunzip"),
        (b"\x80\x04", "pickle"),
    ],
)
def test_files_that_are_no_text(read, start, kind):
    assert kind in refused(read, {"t.csv": start + bytes(100)})


@pytest.mark.parametrize(
    "header", ["label1,label2", "label,label.1", "labels,labels_2", "Tag 1,Tag 2"]
)
def test_columns_of_one_label_each_are_not_half_read(read, header):
    rows = "".join(f"{i}.jpg,train,cat,{'dog' if i % 2 else ''}\n" for i in range(4))
    message = refused(read, f"image,split,{header}\n{rows}")
    first, second = header.split(",")
    assert f"columns {first!r} and {second!r} seem to hold one label each" in message
    assert f"--labels_column={first}" in message
    taken = read(f"image,split,{header}\n{rows}", flags={"labels": first})
    assert labels_of(taken) == [["cat"]] * 4


@pytest.mark.parametrize(
    "values, kind",
    [
        (("0.9", "0.1"), "numbers other than 0 and 1"),
        (("x", ""), "marks and nothing"),
        (("Y", "N"), "the same two words"),
        (("ja", "nein"), "the same two words"),
    ],
)
def test_columns_that_are_not_zeros_and_ones_are_named(read, values, kind):
    rows = "".join(f"{i}.jpg,train,{values[i % 2]},{values[i // 2]}\n" for i in range(4))
    message = refused(read, f"image,split,cat,dog\n{rows}")
    assert f"2 columns hold {kind}, such as 'cat' (" in message and "write 1 where" in message


# Metadata, COCO, folders, files by split


@pytest.mark.parametrize("field", ["labels", "tags", "objects"])
def test_metadata(read, field):
    def value(names):
        return {"categories": names, "bbox": [[0, 0, 1, 1]]} if field == "objects" else names

    rows = [{"file_name": "a.png", field: value(["cat", "traffic light"])},
            {"file_name": "b.png", field: value([])}]  # fmt: skip
    text = "\n".join(map(json.dumps, rows))
    found = read({"metadata.jsonl": text, "a.png": "", "b.png": ""})
    assert found.rows.layout == "metadata"
    assert found.labels == {"a.png": ["cat", "traffic light"], "b.png": []}


def test_metadata_in_folders_of_splits(read):
    text = "file_name,labels\na.png,\"['cat', 'dog']\"\nb.png,['dog']\n"
    found = read({"train/metadata.csv": text, "test/metadata.csv": text}, ".")
    assert found.labels == {
        f"{split}/{name}.png": labels
        for split in ("train", "test")
        for name, labels in (("a", ["cat", "dog"]), ("b", ["dog"]))
    }
    assert found.splits == ["train", "train", "test", "test"]


COCO = {
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 3, "file_name": "b.jpg"}],
    "annotations": [{"image_id": 7, "category_id": 18}, {"image_id": 7, "category_id": 1}] * 2,
    "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 9, "name": "ox"}],
}


@pytest.mark.parametrize("indent", [None, 1])
def test_coco(read, indent):
    found = read({"instances.json": json.dumps(COCO, indent=indent)})
    assert found.rows.layout == "COCO" and found.rows.class_names == ("person", "ox", "dog")
    assert {name: set(labels) for name, labels in found.labels.items()} == {
        "a.jpg": {"person", "dog"},
        "b.jpg": set(),
    }


def test_coco_by_split(read):
    other = {
        **COCO,
        "images": [{"id": 7, "file_name": "c.jpg"}],
        "categories": COCO["categories"][:2],
    }
    found = read({"instances_train2017.json": COCO, "instances_val2017.json": other}, ".")
    assert found.splits == ["train", "train", "val"] and set(found.labels["c.jpg"]) == {
        "dog",
        "person",
    }
    assert found.rows.layout == "COCO by split"


@pytest.mark.parametrize("folder", ["train2017", "images/train2017", "train", "images"])
def test_coco_as_it_is_distributed(read, folder):
    other = {**COCO, "images": [{"id": 7, "file_name": "c.jpg"}], "annotations": []}
    tables = {"instances_train2017.json": COCO, "instances_val2017.json": other}
    files = {f"annotations/{name}": document for name, document in tables.items()}
    files |= {"annotations/captions_train2017.json": {}, f"{folder}/a.jpg": b"one"}
    found = read({**files, "val2017/c.jpg": b"two"}, ".")
    assert found.rows.layout == "COCO by split" and found.splits == ["train", "train", "val"]
    assert [*found.labels] == [f"{folder}/a.jpg", f"{folder}/b.jpg", "val2017/c.jpg"]


def test_zeros_and_ones_that_may_tell_the_split_are_no_class_unasked(read):
    table = "image,partition,cat,dog\n1.jpg,0,1,0\n2.jpg,1,0,1\n3.jpg,0,0,1\n"
    assert "'partition' holds '0', '1', and may tell the split" in refused(read, table)
    found = read(table, flags={"labels": "cat,dog"})
    assert labels_of(found) == [["cat"], ["dog"], ["dog"]]
    assert found.rows.class_names == ("cat", "dog")
    assert read(table, flags={"labels": "partition..dog"}).labels["2.jpg"] == ["partition", "dog"]


def test_columns_of_one_name_are_not_offered_by_a_flag_that_cannot_tell_them_apart(read):
    message = refused(read, "image,label,label\n1.jpg,cat,dog\n2.jpg,dog,\n")
    assert "more than one column label; rename or remove the others" in message
    assert "--labels_column" not in message


def test_a_supercategory_without_annotations_is_no_class(read):
    above = {"id": 0, "name": "animals", "supercategory": "none"}
    categories = [above, *({**c, "supercategory": "animals"} for c in COCO["categories"])]
    found = read({"instances.json": {**COCO, "categories": categories}})
    assert found.rows.class_names == ("person", "ox", "dog")
    assert set(found.labels["a.jpg"]) == {"person", "dog"}
    assert "supercategories that no annotation has, left out: 1" in found.remarks
    assert "'animals'" in found.remarks
    # One that is annotated stays, and so does a class that names itself.
    annotations = [*COCO["annotations"], {"image_id": 3, "category_id": 0}]
    named = [{**c, "supercategory": c["name"]} for c in COCO["categories"]]
    found = read({"i.json": {**COCO, "categories": categories, "annotations": annotations}})
    assert found.rows.class_names == ("animals", "person", "ox", "dog")
    assert read({"j.json": {**COCO, "categories": named}}).rows.class_names[1] == "ox"


def test_coco_that_contradicts_itself(read):
    wrong = {**COCO, "annotations": [{"image_id": 1, "category_id": 1}, {"image_id": 3}, 5]}
    message = refused(read, {"t.json": wrong})
    assert "entry 1: 1" in message and "category_id no category has: 1" in message
    twice = {**COCO, "images": COCO["images"] * 2}
    assert "whose id another image has: 2" in refused(read, {"t.json": twice})
    assert "a COCO document has" in refused(read, {"t.json": {"images": [], "license": 3}})


def test_folders(read, tmp_path):
    files = {"cat/1.jpg": b"one", "dog/1.jpg": b"two", "dog/2.JPG": b"3", "cat/2.JPG": b"3"}
    found = read({**files, "cat/notes.txt": "x", ".hidden/1.jpg": b"one"}, ".")
    assert found.rows.layout == "folders" and found.rows.class_names == ("cat", "dog")
    assert found.labels == {"cat/1.jpg": ["cat"], "dog/1.jpg": ["dog"], "cat/2.JPG": ["cat", "dog"]}


def test_folders_of_splits(read):
    files = {"train/cat/1.jpg": b"1", "train/dog/1.jpg": b"1", "Validation/cat/2.jpg": b"2",
             "test/dog/3.jpg": b"3"}  # fmt: skip
    found = read(files, ".")
    assert sorted(zip(found.labels, found.splits, strict=True)) == [
        ("Validation/cat/2.jpg", "val"), ("test/dog/3.jpg", "test"), ("train/cat/1.jpg", "train"),
    ]  # fmt: skip
    assert found.labels["train/cat/1.jpg"] == ["cat", "dog"]
    message = refused(read, {"test/cat/1.jpg": b"1"}, ".")
    assert "more than one split" in message and "train/cat/1.jpg" in message


def test_folders_that_are_no_labels(read):
    assert "do not lie in a folder" in refused(read, {"1.jpg": b"1", "cat/2.jpg": b"2"}, ".")
    assert "below the folder of a label" in refused(read, {"a/b/c/2.jpg": b"2"}, "a")
    assert "without images or tables" in refused(read, {"empty/x.txt": b"2"}, "empty")


def test_a_class_may_be_called_train(read):
    found = read({"train/1.jpg": b"1", "boat/2.jpg": b"2"}, ".")
    assert found.labels == {"boat/2.jpg": ["boat"], "train/1.jpg": ["train"]}


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Train_labels", "dev", "my-testing")])
def test_a_file_for_each_split(read, names):
    files = {f"{name}.csv": f'file,tags\n{i}.jpg,"cat, dog"\n' for i, name in enumerate(names)}
    files[f"{names[2]}.csv"] = "file,tags\n2.jpg,dog\n3.jpg,cat\n"
    found = read({**files, "readme.csv": "x"}, ".")
    assert found.labels["0.jpg"] == ["cat", "dog"] and found.labels["3.jpg"] == ["cat"]
    assert found.splits == ["train", "val", "test", "test"]
    assert found.rows.places[3] == f"3 of {names[2]}.csv"


def test_files_by_split_with_different_classes_or_other_splits(read):
    files = {"train.csv": "file,a,b\n1.jpg,0,1\n", "test.csv": "file,b,a\n2.jpg,0,1\n"}
    assert read(files, ".").labels == {"1.jpg": ["b"], "2.jpg": ["a"]}
    message = refused(read, {"test.csv": "file,a,c\n2.jpg,0,1\n"}, ".")
    assert "only one of them has 'b', 'c'" in message
    files = {"train.csv": "file,split,tags\n1.jpg,val,a\n", "test.csv": "file,tags\n2.jpg,a\n"}
    assert "another split than that of the file" in refused(read, files, ".")
    assert "val.jsonl has no rows" in refused(read, {"val.jsonl": "\n"}, ".")
    files = {"train.csv": "file,tags\n1.jpg,a\n", "train.jsonl": "{}"}
    assert "2 tables for train" in refused(read, files, ".")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "[1, 2]", "[]", '"x"', "9" * 9999]
)
def test_hostile_json_is_refused(read, text: str):
    assert len(refused(read, {"t.json": text})) < 500
    refused(read, {"t.jsonl": text})


def test_layout_is_told_where_data_are_loaded(tmp_path: pathlib.Path):
    from PIL import Image

    from pipelines.runs.config import DataConfig

    for split, label, name in (("train", "cat", "1"), ("train", "dog", "2"), ("test", "cat", "3")):
        folder = tmp_path / "data" / split / label
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (int(name), 0, 0)).save(folder / f"{name}.png")
    config = DataConfig.of(
        dataset="table", examples=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache")
    )
    data = config.load_data()
    assert data.origin == "folders" and config.data_name == "data"
    assert data.class_names == ("cat", "dog")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 2, "test": 1}


# What other programs write


@pytest.mark.parametrize("mark", [";", ",", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_for_excel_above_the_header_names_the_delimiter(read, mark, end):
    rows = ["image,split,labels", "a,1.jpg,train,ant", "b,2.jpg,test,bee"]
    lines = [f"sep={mark}", *(line.replace(",", mark) for line in rows)]
    if mark == ",":
        lines[2:] = ['"a,1.jpg",train,ant', '"b,2.jpg",test,bee']
    elif mark == ";":
        lines[2:] = ["a,1.jpg;train;ant", "b,2.jpg;test;bee"]
    else:
        lines[2:] = ["a,1.jpg\ttrain\tant", "b,2.jpg\ttest\tbee"]
    found = read({"t.csv": "\ufeff" + end.join([*lines, ""])})
    assert found.labels == {"a,1.jpg": ["ant"], "b,2.jpg": ["bee"]}
    assert list(found.rows.places) == [3, 4]


def test_arrays_of_postgres_are_lists_if_all_cells_are(read):
    table = table_of("{ant,bee}", "{}", '{ant,""traffic light"",NULL}', '{""bee""}')
    assert labels_of(read(table)) == [["ant", "bee"], [], ["ant", "traffic light"], ["bee"]]
    # Braces are a part of a name where other cells have none.
    assert labels_of(read(table_of("{ant}", "bee"))) == [["{ant}"], ["bee"]]
    assert "an array within an array" in refused(read, table_of("{ant,bee}", "{ant,{bee}}"))
    assert "an array with an empty element" in refused(read, table_of("{ant,,bee}", "{ant}"))


def test_arrays_and_sets_as_python_shows_them_are_lists(read):
    found = read(
        table_of(
            "array(['ant', 'traffic light'], dtype=object)",
            "np.array(['ant'],\n      dtype='<U3')",
            "array([], dtype=object)",
            "frozenset({'bee'})",
            "frozenset()",
        )
    )
    assert labels_of(found) == [["ant", "traffic light"], ["ant"], [], ["bee"], []]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("# a comment\nimage,split,labels\na.jpg,train,ant\n", "'# a comment' is no header; the"),
        ("<html>Please log in</html>\n", "is no header; the first line must name columns"),
        (
            {"t.json": {"a.jpg": ["ant"], "b.jpg": ["bee"]}},
            "'a.jpg', 'b.jpg' are images in place of fields; write an object for each image",
        ),
    ],
)
def test_what_has_no_columns_is_called_so(read, files, message):
    assert message in refused(read, files)


def test_separators_at_the_end_of_cells_do_not_count(read):
    found = read(table_of("ant,bee,", "ant,", "bee,", ""))
    assert labels_of(found) == [["ant", "bee"], ["ant"], ["bee"], []]


def test_a_name_with_a_part_that_is_a_label_is_remarked_on(read):
    found = read(table_of("ant+bee", "ant", "cow-bell", "cow", "dog"))
    assert labels_of(found)[0] == ["ant+bee"]
    assert "of which a part is a label elsewhere; --label_separator may" in found.remarks
    assert "'ant+bee'" in found.remarks and "cow-bell" not in found.remarks


def test_captions_are_refused(read):
    caption = "two men sit on a bench in the park of a town"
    message = refused(read, table_of(caption, "a dog and a cat lie on the sofa", "a bird"))
    assert "Sentences are made of words such as 'a', 'and', 'in', 'of', 'on' and 1 more" in message
    assert "; or name another column by --labels_column, if these are captions." in message


@pytest.mark.parametrize(
    ("encoding", "message"),
    [("utf-16", "it is text in UTF-16; save it as UTF-8"), ("utf-16-le", "or text in UTF-16 does")],
)
def test_text_in_utf16_is_called_so(read, encoding, message):
    assert message in refused(read, {"t.csv": table_of("ant", "bee").encode(encoding)})


def test_halves_of_characters_are_refused_before_anything_is_written(read):
    row = {"image": "a.jpg", "split": "train", "labels": ["ant", "\ud800"]}
    assert r"rename them: 1" + "\n    '\\ud800'" in refused(read, {"t.jsonl": json.dumps(row)})
    assert "labels that hold" in refused(read, {"t.json": [row]})
    row = {"image": "\udcff.jpg", "split": "train", "labels": ["ant"]}
    assert "images whose names hold bytes that are not UTF-8" in refused(read, {"u.json": [row]})


def test_ids_of_coco_may_be_numbers_in_one_list_and_texts_in_another(read):
    def change(identifier):
        return str(identifier)

    annotations = [
        {"image_id": change(each["image_id"]), "category_id": change(each["category_id"])}
        for each in COCO["annotations"]
    ]
    expected, found = read({"t.json": COCO}), read({"t.json": {**COCO, "annotations": annotations}})
    assert found.labels == expected.labels and found.rows.class_names == expected.rows.class_names
    images = [*COCO["images"], {"id": str(COCO["images"][0]["id"]), "file_name": "other.jpg"}]
    assert "images whose id another image has: 1" in refused(
        read, {"t.json": {**COCO, "images": images}}
    )


def test_a_category_given_twice_is_one_finding(read):
    categories = [*COCO["categories"], {"id": 77, "name": COCO["categories"][0]["name"]}]
    image_id = COCO["images"][0]["id"]
    annotations = [*COCO["annotations"], {"image_id": image_id, "category_id": 77}]
    message = refused(
        read, {"t.json": {**COCO, "categories": categories, "annotations": annotations}}
    )
    assert "categories whose id or name another category has: 1" in message
    assert "annotations" not in message
