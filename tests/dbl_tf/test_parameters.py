import dataclasses
import math
import os
import subprocess
import sys

import pytest

from dbl_tf import parameters
from dbl_tf.parameters import DEFAULTS, LossParameters, check_parameters

# The values of the publications, and values on both sides of the bounds that their formulas imply.
PUBLISHED = {
    "alpha": 0.1,
    "beta": 10.0,
    "mu": 0.2,
    "lambda_": 2.0,
    "kappa": 0.05,
    "margin": "paper",
    "focal_gamma": 2.0,
    "focal_scale": 2.0,
    "gamma_negative": 4.0,
    "gamma_positive": 1.0,
    "clip": 0.05,
    "max_margin": 0.5,
    "cosine_scale": 30.0,
    "effective_number_beta": 0.9,
    "temperature_positive": 4.0,
    "temperature_negative": 1.0,
    "ways": "both",
    "logit_margin": 1.0,
    "hill_lambda": 1.5,
    "correction_threshold": 0.6,
    "correction_epochs": 1.0,
    "robust_gamma_positive": 0.0,
    "robust_linear": 1.0,
    "robust_quadratic": -1.25,
    "poly_epsilon": 2.0,
}
ACCEPTED = {
    "alpha": [0, 0.5],
    "beta": [1e-3, 100],
    "mu": [-1, 0, 2],
    "lambda_": [1e-3, 100],
    "kappa": [-0.1, 0, 1],
    "margin": ["paper", "released"],
    "focal_gamma": [0, 0.5],
    "focal_scale": [1e-3, 100],
    "gamma_negative": [0, 0.5],
    "gamma_positive": [0, 0.5],
    "clip": [0, 0.999],
    "max_margin": [0, 0.1],
    "cosine_scale": [1e-3, 100],
    "effective_number_beta": [0, 0.999],
    "temperature_positive": [1e-3, 100],
    "temperature_negative": [1e-3, 100],
    "ways": ["both", "samples"],
    "logit_margin": [-1, 0, 2],
    "hill_lambda": [1, 3],
    "correction_threshold": [0, 1],
    "correction_epochs": [0, 0.5],
    "robust_gamma_positive": [0, 0.5],
    "robust_linear": [-1, 0],
    "robust_quadratic": [-1, 0],
    "poly_epsilon": [-1, 5],
}
REFUSED = {
    "alpha": [-1e-3],
    "beta": [0, -1],
    "mu": [],
    "lambda_": [0, -1],
    "kappa": [],
    "margin": ["printed"],
    "focal_gamma": [-1e-3],
    "focal_scale": [0, -1],
    "gamma_negative": [-1e-3],
    "gamma_positive": [-1e-3],
    "clip": [-0.1, 1],
    "max_margin": [-1e-3],
    "cosine_scale": [0, -1],
    "effective_number_beta": [-0.1, 1],
    "temperature_positive": [0, -1],
    "temperature_negative": [0, -1],
    "ways": ["classes"],
    "logit_margin": [],
    "hill_lambda": [0.999],
    "correction_threshold": [-1e-3, 1.001],
    "correction_epochs": [-1],
    "robust_gamma_positive": [-1e-3],
    "robust_linear": [],
    "robust_quadratic": [],
    "poly_epsilon": [-1.001],
}


def test_defaults_are_the_published_values():
    assert dataclasses.asdict(DEFAULTS) == PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_ranges(name):
    for value in ACCEPTED[name]:
        assert getattr(LossParameters(**{name: value}), name) == value
        check_parameters(**{name: value})
    for value in [*REFUSED[name], None, math.nan, math.inf]:
        for function in (LossParameters, check_parameters):
            with pytest.raises(ValueError, match=f"^{name} must be .*; got .*{value}"):
                function(**{name: value})


def test_a_caller_can_have_its_own_name_for_a_parameter():
    with pytest.raises(ValueError, match=r"^scale must be greater than 0; got -1$"):
        check_parameters(cosine_scale=-1, arguments={"cosine_scale": "scale"})
    with pytest.raises(ValueError, match=r"^alpha must be at least 0; got -1$"):
        check_parameters(alpha=-1, cosine_scale=1, arguments={"cosine_scale": "scale"})


def test_unknown_parameters_are_refused():
    with pytest.raises(KeyError, match="gamma"):
        check_parameters(gamma=1.0)
    with pytest.raises(TypeError, match="gamma"):
        LossParameters(gamma=1.0)


def test_weights_and_parameters_need_neither_keras_nor_tensorflow():
    # Loaded without the package, whose own imports include Keras.
    program = (
        "import sys, types\n"
        "package = types.ModuleType('dbl_tf')\n"
        "package.__path__ = sys.argv[1:]\n"
        "sys.modules['dbl_tf'] = package\n"
        "import dbl_tf.weighting\n"
        "print(dbl_tf.weighting.rebalanced_weights([[1.0, 0]], [3, 3], mu=1).tolist())\n"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", program, os.path.dirname(parameters.__file__)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output == "[[0.6, 0.6]]\n"
