"""JSON files of a run that someone has changed: used as they are valid, or refused in one line."""

import copy
import json

import numpy as np
import pytest
from run_data import make_data

from dbl_tf import LabelStatistics
from dbl_tf.calibration import Calibration
from pipelines.runs.config import ConfigError, ResolvedConfig, RunConfig
from pipelines.runs.resolution import resolve
from pipelines.runs.scores import Thresholds

LABELS = np.array([[1, 0, 1], [1, 1, 0], [0, 1, 0], [1, 0, 0]])
VALUES = [None, "x", True, -1, 0.5, 10**30, 1e300, [], {}, [None], [-1], ["x"], {"i": 7}]
TEXTS = ["", "[", "null", "{}", "[]", "7", "\x00", "[" * 100_000, '{"a": NaN}', '{"a": 1e999}']


class NamedThresholds:
    """Thresholds that are saved as the other kinds are."""

    NAMES = ("a", "b")

    def save(self, path):
        Thresholds(np.array([0.2, 0.4]), "val").save(path, self.NAMES)


def saved_files():
    statistics = LabelStatistics.from_labels(LABELS, list("abc"))
    config = resolve(RunConfig.of(run_dir="/run"), make_data())
    return {
        "statistics": (statistics, LabelStatistics.load),
        "calibration": (Calibration(1.5, np.array([0.0, 1.0]), "val"), Calibration.load),
        "thresholds": (
            NamedThresholds(),
            lambda path: Thresholds.load(path, NamedThresholds.NAMES),
        ),
        "config": (config, ResolvedConfig.load),
    }


def changed_documents(document, keys=()):
    """Every document with one field changed or removed, at any depth."""
    node = document
    for key in keys:
        node = node[key]
    for key in list(node) if isinstance(node, dict) else range(min(len(node), 2)):
        for value in VALUES:
            changed = copy.deepcopy(document)
            place = changed
            for above in keys:
                place = place[above]
            place[key] = value
            yield changed
        changed = copy.deepcopy(document)
        place = changed
        for above in keys:
            place = place[above]
        del place[key]
        yield changed
        if isinstance(node[key], dict | list):
            yield from changed_documents(document, (*keys, key))


def numbers_of(loaded):
    if isinstance(loaded, LabelStatistics):
        return loaded.cooccurrence, loaded.num_examples, loaded.priors
    if isinstance(loaded, Calibration):
        return loaded.slope, loaded.offsets
    return (loaded.values,) if isinstance(loaded, Thresholds) else ()


def without_digest(document):
    return {name: value for name, value in document.items() if name != "digest"}


@pytest.mark.parametrize("kind", ["statistics", "calibration", "thresholds", "config"])
def test_a_changed_file_is_refused_in_one_line_that_names_it_or_is_valid(kind, tmp_path):
    saved, load = saved_files()[kind]
    path = tmp_path / f"{kind}.json"
    saved.save(path)
    load(path)
    document = without_digest(json.loads(path.read_text()))
    refused = 0
    for text in [*TEXTS, *map(json.dumps, changed_documents(document))]:
        path.write_text(text)
        try:
            loaded = load(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error), (text[:200], error)
            assert "; restore it from a copy, or " in str(error), (text[:200], error)
            refused += 1
        else:
            assert all(np.isfinite(numbers).all() for numbers in numbers_of(loaded)), text
    assert refused > 2 * len(TEXTS)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("statistics", {"num_examples": "4"}, "field num_examples: Expected `int`, got `str`"),
        ("statistics", {"num_examples": 2}, r"class_counts must lie in \[0, 2\]"),
        (
            "statistics",
            {"cooccurrence": {"i": [0, -1], "j": [0, 1], "count": [1, 1]}},
            r"field cooccurrence\.i\[1\]: Expected `int` >= 0",
        ),
        (
            "statistics",
            {"cooccurrence": {"i": [0, 1, 1, 2], "j": [0, 0, 1, 2], "count": [3, 2, 2, 1]}},
            "cooccurrence has a pair of classes twice, or not in their order",
        ),
        (
            "statistics",
            {"cooccurrence": {"i": [0, 0, 0], "j": [0, 1, 1], "count": [3, 1, 1]}},
            "cooccurrence has a pair of classes twice",
        ),
        ("config", {"batch_size": 10**9}, "batch_size must be greater than 0 and at most 2.24"),
        ("thresholds", {"thresholds": [0.5, 1e300]}, r"field thresholds\[1\]: .*<= 1"),
        ("thresholds", {"thresholds": {"a": 0.5, "b": 2}}, r"field thresholds\[\.\.\.\]: .*<= 1"),
        ("config", {"batch_size": 10**30}, "batch_size"),
        ("config", {"steps": "many"}, "field steps: Expected `int | null`, got `str`"),
    ],
)
def test_the_message_names_the_field(kind, change, message, tmp_path):
    saved, load = saved_files()[kind]
    path = tmp_path / f"{kind}.json"
    saved.save(path)
    path.write_text(json.dumps(without_digest(json.loads(path.read_text())) | change))
    with pytest.raises(ValueError, match=message) as info:
        load(path)
    assert isinstance(info.value, ConfigError) == (kind == "config")


CHANGES = {
    "statistics": {"num_examples": 5},
    "calibration": {"slope": 1.25},
    "config": {"seed": 1},
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_valid_value_that_was_changed_is_refused_until_the_digest_is_removed(
    kind, tmp_path, caplog
):
    saved, load = saved_files()[kind]
    path = tmp_path / f"{kind}.json"
    saved.save(path)
    document = json.loads(path.read_text())
    (name,) = CHANGES[kind]
    assert document[name] != CHANGES[kind][name]
    path.write_text(json.dumps(document | CHANGES[kind]))
    with pytest.raises(ValueError, match=r"changed since it was written: remove .*; restore it"):
        load(path)
    assert not caplog.records
    path.write_text(json.dumps(without_digest(document) | CHANGES[kind]))
    load(path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} has no field digest: whether its {WHAT[kind]} are as they were written cannot be "
        "told"
    ]
    # Blanks and the order of fields are no change.
    caplog.clear()
    path.write_text(json.dumps(dict(reversed(document.items())), indent=7))
    load(path)
    assert not caplog.records


WHAT = {
    "statistics": "label statistics",
    "calibration": "calibration",
    "config": "settings of a run",
}


def test_thresholds_that_were_changed_by_hand_are_used_and_said_to_be(tmp_path, caplog):
    saved, load = saved_files()["thresholds"]
    path = tmp_path / "thresholds.json"
    saved.save(path)
    path.write_text(path.read_text().replace("0.4", "0.75"))
    np.testing.assert_array_equal(load(path).values, [0.2, 0.75])
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} was changed since it was written; its thresholds are used as they are now"
    ]


@pytest.mark.parametrize("kind", ["statistics", "calibration", "thresholds", "config"])
def test_files_of_the_first_version_are_read_and_later_ones_are_not(kind, tmp_path, caplog):
    saved, load = saved_files()[kind]
    path = tmp_path / f"{kind}.json"
    saved.save(path)
    document = json.loads(path.read_text())
    name, version = document["format"].split("/")
    assert version == ("3" if kind == "thresholds" else "2")
    first = without_digest(document) | {"format": f"{name}/1"}
    if kind == "thresholds":
        first["thresholds"] = list(document["thresholds"].values())
    if kind != "statistics":
        del first["format"]
    path.write_text(json.dumps(first))
    load(path)
    assert not caplog.records
    path.write_text(json.dumps(first | {"format": f"{name}/{int(version) + 1}"}))
    with pytest.raises(ValueError, match=r"field format: this version reads dbl_tf.* and dbl_tf"):
        load(path)
