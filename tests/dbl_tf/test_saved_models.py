"""What models are saved with is registered by `import dbl_tf` alone."""

import ast
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np

import dbl_tf
from dbl_tf import models
from dbl_tf.optimizers import CoupledDecaySGD, WarmupStepDecay

ROOT = pathlib.Path(__file__).resolve().parents[2]

PROGRAM = """
import json, sys
import keras, numpy as np
import dbl_tf

names = json.loads(sys.argv[1])
missing = [name for name in names if keras.saving.get_registered_object(name) is None]
assert not missing, missing
model = keras.models.load_model(sys.argv[2])
np.save(sys.argv[3], model.predict(np.load(sys.argv[3]), verbose=0))
print(type(model.loss).__name__, int(model.optimizer.iterations))
"""


def registered_classes():
    """Classes of the package that are marked for saving."""
    for path in (ROOT / "dbl_tf").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            decorators = getattr(node, "decorator_list", [])
            if any("register_keras_serializable" in ast.unparse(d) for d in decorators):
                yield f"dbl_tf>{node.name}"


def test_import_dbl_tf_is_enough_to_load_a_model(tmp_path):
    backbone = models.build_backbone("small_resnet", 16, options={"width": 4})
    network = models.join(backbone, models.build_head(backbone.output_shape[-1], 3))
    network.compile(
        CoupledDecaySGD(WarmupStepDecay(0.05, 2, [2])),
        dbl_tf.DistributionBalancedLoss([5, 3, 1], 10),
    )
    images = np.random.default_rng(0).uniform(0, 255, (4, 16, 16, 3)).astype(np.float32)
    network.fit(images, np.eye(4, 3, dtype=int), batch_size=2, verbose=0)
    network.save(tmp_path / "model.keras")
    np.save(tmp_path / "arrays.npy", images)
    names = sorted(registered_classes())
    assert {"dbl_tf>StatelessDropout", "dbl_tf>CoupledDecaySGD", "dbl_tf>HillLoss"} <= set(names)

    paths = [tmp_path / "model.keras", tmp_path / "arrays.npy"]
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(names), *paths],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["DistributionBalancedLoss", "2"]
    logits = keras.ops.convert_to_numpy(network(images, training=False))
    np.testing.assert_allclose(np.load(tmp_path / "arrays.npy"), logits, rtol=1e-4, atol=1e-5)
