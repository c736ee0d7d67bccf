import os
import unicodedata

import numpy as np
import pytest
import scipy.sparse

from pipelines.doubles import is_in_files, same_images, similar_names
from pipelines.examples import Examples


@pytest.mark.parametrize(
    "other",
    [
        "Traffic Light",
        "traffic  light",
        " traffic light",
        "traffic light\t",
        "traffic\u00a0light",
        "traffic\u3000light",
        "traffic\u200blight",
        "traffic \u200dlight",
        "\ufefftraffic light",
        "tra\u00adffic light",
        "traffic light\ufe0f",
        "traffic_light",
        "traffic-light",
        "traffic\u2010light",
        "trafficlight",
        "ｔｒａｆｆｉｃ light",
        "tra\ufb03c light",  # a ligature
    ],
)
def test_names_that_look_alike_are_doubles(other):
    assert similar_names(["cat", "traffic light", "dog", other]) == [["traffic light", other]]


def test_accents_are_the_same_in_both_normalizations_and_other_letters_are_others():
    composed, decomposed = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))
    assert similar_names([composed, "cafe", decomposed]) == [[composed, decomposed]]
    assert similar_names(["straße", "STRASSE", "strase"]) == [["straße", "STRASSE"]]
    # Vowel signs are letters, not accents that could be left out.
    assert similar_names(["कि", "का", "क"]) == []
    assert similar_names(["cat", "cats", "dog", "d0g", "1", "11"]) == []
    assert similar_names(["-", "_", " "]) == []  # nothing is left of them to compare
    assert similar_names([]) == []


def in_files(tmp_path, **contents):
    splits = {}
    for split, files in contents.items():
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        splits[split] = Examples(
            names=list(files),
            labels=scipy.sparse.csr_array((len(files), 2), dtype=bool),
            files=[str(tmp_path / name) for name in files],
        )
    return splits


def test_images_with_the_same_bytes_in_two_splits_are_found(tmp_path):
    noise = np.random.default_rng(0).bytes(3_000_000)
    other_end = noise[:-1] + bytes([noise[-1] ^ 1])
    splits = in_files(
        tmp_path,
        train={"a": b"one", "b": b"two", "c": noise, "d": b"four", "e": b"four", "f": noise},
        val={"g": b"two", "h": b"other"},
        test={"i": noise, "j": other_end, "k": b"one", "l": b"two", "m": b"owt"},
    )
    assert is_in_files(splits)
    assert sorted(same_images(splits)) == [
        [("train", 0), ("test", 2)],
        [("train", 1), ("val", 0), ("test", 3)],
        [("train", 2), ("train", 5), ("test", 0)],
    ]


def test_only_files_of_equal_size_in_two_splits_are_read(tmp_path):
    splits = in_files(tmp_path, train={"a": b"", "b": b""}, test={"c": b""})
    for name, size in (("a", 1 << 40), ("b", 1 << 40), ("c", (1 << 40) + 1)):
        os.truncate(tmp_path / name, size)  # terabytes of which nothing is on the disk
    assert same_images(splits) == []


def test_images_in_memory_or_in_records_are_not_compared(small_data, tmp_path):
    assert not is_in_files(small_data.splits)
    splits = in_files(tmp_path, train={"a": b"1", "b": b"2"}, test={"c": b"12"})
    train = splits["train"]
    records = Examples(train.names, train.labels, files=[train.files[0]] * 2)
    assert not is_in_files({**splits, "train": records})
