"""Fixtures that several test modules use."""

import csv
import pathlib

import numpy as np
import programs
import pytest
import tensorflow as tf
from absl import flags
from PIL import Image

from pipelines.runs import config
from pipelines.runs import flags as run_flags
from pipelines.runs.train import train_and_evaluate

SHARED_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def start_cluster():
    """Starts the machines of a cluster; all are ended at the end of the test."""
    started = []

    def start(commands):
        members = programs.start_cluster(commands)
        started.extend(members)
        return members

    yield start
    for program in started:
        program.kill()


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Real photographs, label lists and weights that lie beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is absent: the real data lie beside the repository")
    return SHARED_DATA


@pytest.fixture(scope="session")
def voc_mlt_labels(shared_data) -> np.ndarray:
    """Multi-hot labels, bool (1142, 20), of VOC-MLT's train list; classes sorted by name."""
    with open(shared_data / "voc_mlt" / "voc_mlt_train.csv", newline="") as file:
        rows = [row["labels"].split() for row in csv.DictReader(file)]
    names = sorted({name for row in rows for name in row})
    return np.array([[name in row for name in names] for row in rows])


@pytest.fixture(scope="session")
def drawn_photographs(tmp_path_factory) -> list[pathlib.Path]:
    """JPEG files of 32 sizes: shades that change slowly, with noise, as in photographs."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    paths = []
    for number in range(32):
        height, width = 100 + number, 160 - number
        shades = random.uniform(0, 255, (3, 4, 3)).astype(np.uint8)
        image = Image.fromarray(shades).resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(image) + random.normal(0, 8, (height, width, 3))
        paths.append(folder / f"{number:02d}.jpg")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1])
    return paths


@pytest.fixture
def train_by_recipe(tmp_path):
    """Trains two steps as `train.py --flagfile=recipes/NAME.flags …` does; gives the scores."""

    def train(recipe: str, *arguments: str) -> dict:
        values = flags.FlagValues()
        run_flags.define(config.RunConfig, values)
        file = pathlib.Path(__file__).parents[1] / "recipes" / f"{recipe}.flags"
        small = ["--backbone_weights=none", "--image_size=32", "--batch_size=2", "--steps=2"]
        where = [f"--run_dir={tmp_path / 'run'}", f"--cache_dir={tmp_path / 'cache'}", "--noexport"]
        values(["train.py", f"--flagfile={file}", *small, *where, *arguments])
        return train_and_evaluate(run_flags.read(config.RunConfig, values))

    return train


@pytest.fixture(scope="session")
def mirrored() -> tf.distribute.MirroredStrategy:
    """Two replicas; one strategy for all tests, since two in a process mix up their collectives."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


# The files that take longest, the longest first: one that a process starts last is waited for.
LONG_FILES = (
    "test_train.py",
    "test_feature_runs.py",
    "test_compare.py",
    "test_serving.py",
    "test_streams.py",
    "test_programs.py",
    "test_models.py",
    "test_method_runs.py",
    "test_fit_on_jax.py",
    "test_backends.py",
    "test_losses_beyond_the_paper.py",
    "test_write_features.py",
    "test_scripts.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the tests of long files to the front."""
    rank = {name: position for position, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_configure():
    """Two logical CPU devices, so that `MirroredStrategy` runs with two replicas anywhere."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
