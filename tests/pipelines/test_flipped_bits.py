"""One bit of a file that a run reads has changed: never a wrong value in silence, nor a traceback.

Each kind of file is written by the program, one bit of it is flipped at a random place, and it is
read by the program's own reader. The outcomes are "refused", in one line that names the file;
"said", where a value is used with a warning; "recovered", where what is lost is taken from another
file; "known", where other labels or names have another fingerprint, with which no run continues;
and "harmless", where the same content is read.
"""

import collections
import csv
import json
import os

import keras
import numpy as np
import pytest
from run_data import make_data

from dbl_tf import LabelStatistics, models, saved_csv, serving
from dbl_tf.calibration import Calibration
from dbl_tf.training import Checkpoints
from dbl_tf.training.callbacks import KeepBest, read_history
from pipelines import cache
from pipelines.datasets import LoadOptions, table
from pipelines.datasets.image_checks import BadImagesError
from pipelines.datasets.options import TableOptions
from pipelines.runs import scores as run_scores
from pipelines.runs import trials
from pipelines.runs.config import ResolvedConfig, RunConfig
from pipelines.runs.origin import Origin, SplitFingerprint
from pipelines.runs.resolution import resolve
from pipelines.runs.scores import Thresholds
from pipelines.tables.text import TableError

LABELS = np.array([[1, 0, 1], [1, 1, 0], [0, 1, 0], [1, 0, 0]])
NAMES = ["ant", "bœuf", "cat"]


class Kind:
    """A kind of file: how the program writes it, and what it reads from it."""

    def __init__(self, folder):
        self.folder = folder
        self.path = folder / self.name
        self.write()

    def write(self):
        """Writes the file at `self.path`."""
        raise NotImplementedError

    def read(self):
        """Reads the file; the values are equal where `repr` is."""
        raise NotImplementedError

    def outcome(self, expected):
        """What became of a flip that was not refused."""
        return "harmless" if self.read() == expected else None


class Statistics(Kind):
    name = "statistics.json"

    def write(self):
        labels = np.where(LABELS == 0, [[0, 0, 0], [0, 0, -1], [0, 0, 0], [0, -1, 0]], LABELS)
        LabelStatistics.from_labels(labels, NAMES).save(self.path)

    def read(self):
        found = LabelStatistics.load(self.path)
        arrays = found.cooccurrence, found.class_counts, found.unknown_counts
        return [each.tolist() for each in arrays], found.num_examples, found.class_names


class Config(Kind):
    name = "config.json"

    def write(self):
        resolve(RunConfig.of(run_dir="/run"), make_data()).save(self.path)

    def read(self):
        return ResolvedConfig.load(self.path)


class SavedCalibration(Kind):
    name = "calibration.json"

    def write(self):
        Calibration(1.5, np.array([0.0, 1.0, -1 / 3]), "val").save(self.path)

    def read(self):
        return Calibration.load(self.path).as_json()


class SavedThresholds(Kind):
    name = "thresholds.json"

    def write(self):
        Thresholds(np.array([0.2, 0.4, 1 / 3]), "val").save(self.path, NAMES)

    def read(self):
        found = Thresholds.load(self.path, NAMES)
        return found.values.tolist(), found.chosen_on


class SavedOrigin(Kind):
    name = Origin.NAME

    def write(self):
        data = make_data(num_features=2)
        splits = {name: SplitFingerprint.of(split) for name, split in data.splits.items()}
        Origin(splits, {"cores": "2"}, ["test: labels"]).save(self.folder)

    def read(self):
        return Origin.load(self.folder)


class Scores(Kind):
    name = "metrics.json"

    def write(self):
        statistics = LabelStatistics.from_labels(LABELS, NAMES)
        probabilities = np.random.default_rng(0).random(LABELS.shape)
        thresholds = Thresholds(np.full(3, 0.5), "val")
        scores = run_scores.score(LABELS, probabilities, statistics, thresholds)
        run_scores.write_scores(scores, self.path)

    def read(self):
        return run_scores.read_scores(self.path)


class ExportDetails(Kind):
    name = "dbl_tf.json"

    def write(self):
        content = {"class_names": NAMES, "thresholds": [0.5, 0.25, 0.75], "thresholds_from": "val"}
        serving.DETAILS.write(self.path, content, indent=1)

    def read(self):
        return serving.DETAILS.read(self.path)


class Choice(Kind):
    name = trials.ASKED

    def write(self):
        self.data = make_data(4, 60, num_features=2).splits["train"]
        self.load()

    def load(self):
        asked = RunConfig.of(dataset="features", examples="/x.npz", method="auto")
        return trials.Trials(self.folder, asked, self.data, np.arange(60) % 3)

    def read(self):
        return self.load().chosen


class TrialRows(Choice):
    name = trials.ROWS

    def write(self):
        super().write()
        logits = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
        for fold in range(3):
            given = trials.Predictions(logits + fold, logits > 0)
            self.load().add(trials.Candidate("db", 0.125), fold, given)

    def read(self):
        return repr(self.load()._trials)


class TrialPredictions(TrialRows):
    name = f"{trials.FOLDER}/db-0.125-1.npz"

    def read(self):
        (summary,) = self.load().summarize([trials.Candidate("db", 0.125)], "total")
        return summary


class TrainingHistory(Kind):
    name = "history.csv"

    def write(self):
        random = np.random.default_rng(0)
        rows = [{"epoch": i, "loss": random.random(), "val_map": 0.5 / (i + 3)} for i in range(3)]
        saved_csv.write(rows, self.path)

    def read(self):
        return read_history(self.path)


def small_model():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dropout(0.5)])
    model.compile("sgd", "mse")
    return model


def bytes_of(model):
    return [np.asarray(variable).tobytes() for variable in model.variables]


class Checkpoint(Kind):
    name = "step-00000008.npz"

    def write(self):
        self.model = small_model()
        self.checkpoints = Checkpoints(self.folder)
        self.earlier = bytes_of(self.model)
        self.checkpoints.save(self.model, 4, 1.25)
        self.model.set_weights([weight + 1 for weight in self.model.get_weights()])
        self.checkpoints.save(self.model, 8, 2.5)

    def read(self):
        return *self.checkpoints.restore(self.model), bytes_of(self.model)

    def outcome(self, expected):
        found = self.read()
        if found == (4, 1.25, self.earlier):
            return "recovered"
        return "harmless" if found == expected else None


class BestWeights(Kind):
    name = "best.npz"

    def write(self):
        self.model = small_model()
        best = KeepBest(self.path)
        best.set_model(self.model)
        best.on_epoch_end(3, {"val_map": 0.625})

    def read(self):
        best = KeepBest(self.path)
        best.set_model(self.model)
        best.set_params({"initial_epoch": 5})
        best.on_train_begin()
        return best.best_score, best.restore(self.model), bytes_of(self.model)


class Network(Kind):
    name = "model.keras"

    def write(self):
        small_model().save(self.path)

    def read(self):
        return [weight.tolist() for weight in models.load(self.path).get_weights()]


class Table(Kind):
    """A table of one's own, which holds no digest: what it said is known from the fingerprint."""

    name = "examples.csv"

    def write(self):
        cache_dir = str(self.folder / "cache")
        self.loading = LoadOptions(check_images="exists", cache_dir=cache_dir)
        images = [f"{i}.jpg" for i in range(12)]
        for image in images:
            (self.folder / image).write_bytes(b"not read")
        self.write_rows(
            [
                {"image": image, "split": "test" if i % 3 == 0 else "train", "labels": labels}
                for i, (image, labels) in enumerate(
                    zip(images, ["a|bé", "a", "", "c"] * 3, strict=True)
                )
            ]
        )

    def write_rows(self, rows):
        with open(self.path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["image", "split", "labels"])
            writer.writeheader()
            writer.writerows(rows)

    def read(self):
        options = TableOptions(examples=str(self.path))
        data = table.load(options, self.loading)
        prints = {name: SplitFingerprint.of(split) for name, split in data.splits.items()}
        of_train = data.splits["train"]
        statistics = LabelStatistics.from_labels(of_train.targets, data.class_names)
        return prints, data.class_names, statistics.class_counts.tolist()

    def outcome(self, expected):
        # Fingerprints and the statistics, which have the names, are compared with those of a run.
        return "harmless" if self.read() == expected else "known"


class JsonTable(Table):
    name = "examples.jsonl"

    def write_rows(self, rows):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        self.path.write_text("\n".join(lines), encoding="utf-8")


class CachedArray(Kind):
    """Features of a frozen backbone and the like, which are computed again where they are lost."""

    name = "features.npy"

    def write(self):
        with cache.writing(self.path) as file:
            np.save(file, np.arange(24, dtype=np.float32).reshape(6, 4))

    def read(self):
        found = cache.load(self.path, lambda file: np.load(file, allow_pickle=False))
        return None if found is None else found.tolist()

    def outcome(self, expected):
        found = self.read()
        return "recovered" if found is None else "harmless" if found == expected else None


KINDS = [
    *(Statistics, Config, SavedCalibration, SavedThresholds, SavedOrigin, Scores, ExportDetails),
    *(Choice, TrialRows, TrialPredictions, TrainingHistory, Checkpoint, BestWeights, Network),
    *(Table, JsonTable, CachedArray),
]


def flip_and_read(kind, num_flips, seed, caplog):
    """Counts the outcomes of flips of one bit each."""
    expected, content = kind.read(), kind.path.read_bytes()
    outcomes = collections.Counter()
    for bit in np.random.default_rng(seed).integers(0, 8 * len(content), num_flips).tolist():
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        kind.path.write_bytes(flipped)
        caplog.clear()
        place = f"{kind.path}, bit {bit}"
        try:
            outcome = kind.outcome(expected)
        except (ValueError, OSError) as error:
            assert os.fspath(kind.path) in str(error), (place, error)
            lists_findings = isinstance(error, TableError | BadImagesError)
            assert lists_findings or "\n" not in str(error), (place, error)
            outcome = "refused"
        if outcome is None:
            assert any(os.fspath(kind.path) in r.getMessage() for r in caplog.records), place
            outcome = "said"
        outcomes[outcome] += 1
    return outcomes


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_flipped_bit_is_used_in_silence(kind, tmp_path, caplog):
    outcomes = flip_and_read(kind(tmp_path), 100, 0, caplog)
    assert outcomes.total() == 100 and outcomes["harmless"] < 60


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_none_of_ten_thousand_flipped_bits_is_used_in_silence(kind, tmp_path, caplog):
    outcomes = flip_and_read(kind(tmp_path), 10_000, 1, caplog)
    print(kind.__name__, dict(outcomes))
    assert outcomes.total() == 10_000
