"""What runs leave in their directories."""

import pathlib

import keras
import numpy as np


def weights_of(run_dir: pathlib.Path) -> list[np.ndarray]:
    """The weights of the network that a run trained, in the order of the network."""
    return keras.models.load_model(run_dir / "model.keras", compile=False).get_weights()
