"""What the library computes on the Keras backend of this process; see `test_backends.py`."""

import keras
import numpy as np
from keras import ops

import dbl_tf
from dbl_tf import losses, metrics, models, weighting
from dbl_tf.optimizers import CoupledDecaySGD, WarmupStepDecay

COUNTS, NUM_EXAMPLES = [775, 310, 95, 40, 12, 4], 1142
IMAGE_SIZE = 16


def balanced(**arguments):
    return lambda **a: dbl_tf.DistributionBalancedLoss(COUNTS, NUM_EXAMPLES, **arguments, **a)


def reweighted(kind, **arguments):
    return lambda **a: dbl_tf.ReweightedCrossentropy(COUNTS, kind, **arguments, **a)


LOSSES = {
    "bce": balanced(rebalance=None, lambda_=1, kappa=0, focal_gamma=0),
    "focal": balanced(rebalance=None, lambda_=1, kappa=0),
    "r_bce": balanced(lambda_=1, kappa=0, focal_gamma=0),
    "nt_bce": balanced(rebalance=None, lambda_=5, focal_gamma=0),
    "db": balanced(lambda_=5, mu=0.3, focal_gamma=0),
    "db_focal": balanced(),
    "db_focal_released": balanced(margin="released", kappa=0.2),
    "db_gamma_half": balanced(focal_gamma=0.5, focal_scale=3),
    "rw": reweighted("inverse_root"),
    "cb_focal": reweighted("class_balanced", focal_gamma=2),
    "ldam": lambda **a: dbl_tf.LDAMLoss(COUNTS, **a),
    "asl": lambda **a: dbl_tf.AsymmetricLoss(**a),
    "asl_unclipped": lambda **a: dbl_tf.AsymmetricLoss(gamma_negative=0.5, clip=0, **a),
    "asl_half": lambda **a: dbl_tf.AsymmetricLoss(gamma_negative=0.5, gamma_positive=0.5, **a),
}
LOSSES |= {
    "hill": dbl_tf.HillLoss,
    "splc": dbl_tf.SPLCLoss,
    "splc_half": lambda **a: dbl_tf.SPLCLoss(focal_gamma=0.5, **a),
    "ral": dbl_tf.RobustAsymmetricLoss,
    "poly1": dbl_tf.Poly1Loss,
    "zlpr": dbl_tf.ZLPRLoss,
    "two_way": dbl_tf.TwoWayLoss,
    "two_way_samples": lambda **a: dbl_tf.TwoWayLoss(ways="samples", **a),
}
TAKE_NO_WEIGHTS = ("two_way",)
WEIGHTINGS = {
    "rebalanced": weighting.rebalanced_weights,
    "inverse_root": weighting.inverse_root_weights,
    "class_balanced": weighting.class_balanced_weights,
}
# Where labels are unknown, (64, 6).
UNKNOWN = np.cos(np.arange(64 * 6)).reshape(64, 6) > 0.5
LABEL_TYPES = ("float32", "float16", "int32", "uint8", "bool")
CLASSIFIERS = {
    "cosine": lambda: dbl_tf.CosineClassifier(6),
    "graph": lambda: dbl_tf.GraphClassifier(np.eye(6) + 0.1, hidden_units=7),
    "graph_embedded": lambda: dbl_tf.GraphClassifier(
        np.tri(6), np.cos(np.arange(24)).reshape(6, 4), hidden_units=7
    ),
}


def small_network():
    """The project's own network, whose BatchNorm statistics train."""
    backbone = models.build_backbone("small_resnet", IMAGE_SIZE, options={"width": 4})
    head = models.build_head(backbone.output_shape[-1], 6)
    # Its masks are those of the backend's own random numbers.
    head.get_layer("neck_dropout").rate = 0.0
    return models.join(backbone, head)


def pretrained_network():
    """One whose BatchNorm statistics stay, as those of a pre-trained backbone do."""
    layers = [keras.Input((5,)), keras.layers.BatchNormalization(), keras.layers.Dense(4)]
    features = keras.Input((5,))
    x = models.InferenceMode(keras.Sequential(layers))(features)
    return keras.Model(features, CLASSIFIERS["graph"]()(x))


NETWORKS = {
    "small_resnet": (small_network, "images", LOSSES["db_focal"]),
    "pretrained": (pretrained_network, "features", LOSSES["asl"]),
}


def value_and_gradients(function, arrays):
    """A scalar of arrays, and its gradient by each, as a user of the backend computes them."""
    if keras.backend.backend() == "jax":
        import jax

        compiled = jax.jit(jax.value_and_grad(lambda arrays: function(*arrays)))
        value, gradients = compiled(tuple(arrays))
    elif keras.backend.backend() == "torch":
        import torch

        tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
        value = function(*tensors)
        value.backward()
        gradients = [tensor.grad for tensor in tensors]
    else:
        import tensorflow as tf

        tensors = [tf.constant(array) for array in arrays]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
        gradients = tape.gradient(value, tensors)
    return [ops.convert_to_numpy(value), *map(ops.convert_to_numpy, gradients)]


def loss_values(labels, logits):
    weights = weighting.rebalanced_weights(labels, COUNTS)
    for name, make in LOSSES.items():
        value, gradient = value_and_gradients(lambda z, make=make: make()(labels, z), [logits])
        yield f"{name}/mean", value
        yield f"{name}/gradient", gradient
        yield f"{name}/elements", make(reduction=None)(labels, ops.convert_to_tensor(logits))
        if name not in TAKE_NO_WEIGHTS:
            yield f"{name}/of_examples", make()(labels, logits, weights[:, 0])
        half = make(reduction=None)(labels, ops.cast(logits, "bfloat16"))
        assert keras.backend.standardize_dtype(half.dtype) == "float32"
        yield f"{name}/half", half
        probabilities = ops.sigmoid(ops.clip(logits, -3, 3))
        yield f"{name}/of_probabilities", make(from_logits=False)(labels, probabilities)
    outside = LOSSES["db_focal"](rebalance="sample_weight")
    value, gradient = value_and_gradients(lambda z: outside(labels, z, weights), [logits])
    yield "sample_weight/mean", value
    yield "sample_weight/gradient", gradient
    plain = losses.negative_tolerant_crossentropy(*map(ops.convert_to_tensor, (labels, logits)))
    yield "elementwise_function", plain


def unknown_values(labels, logits):
    """Losses and weights of labels that are partly unknown, NaN or −1."""
    with_nan = np.where(UNKNOWN, np.float32(np.nan), labels)
    with_minus_one = np.where(UNKNOWN, -1, labels.round()).astype(np.int8)
    for name, make in LOSSES.items():
        yield f"elements/{name}", make(reduction=None)(with_nan, ops.convert_to_tensor(logits))
    for given in (with_nan, with_minus_one):
        _, gradient = value_and_gradients(
            lambda z, given=given: sum(make()(given, z) for make in LOSSES.values()), [logits]
        )
        assert not gradient[UNKNOWN].any() and gradient[~UNKNOWN].any()
        yield f"{given.dtype}/gradient", gradient
        for name, weights_of in WEIGHTINGS.items():
            yield f"{given.dtype}/{name}", weights_of(ops.convert_to_tensor(given), COUNTS)


def weighting_values(labels):
    for name, weights_of in WEIGHTINGS.items():
        for dtype in LABEL_TYPES:
            tensor = ops.convert_to_tensor(labels.round(), dtype=dtype)
            weights = weights_of(tensor, COUNTS)
            assert type(weights) is type(tensor), (type(weights), type(tensor))
            yield f"{name}/{dtype}", weights
        yield f"{name}/soft", weights_of(ops.convert_to_tensor(labels), COUNTS)


def classifier_values(labels, features):
    for name, make in CLASSIFIERS.items():
        layer = make()
        layer.build(features.shape)
        fixed = [v.value for v in layer.non_trainable_variables]
        weights = [
            np.cos(np.arange(np.prod(v.shape)), dtype=np.float32).reshape(v.shape)
            for v in layer.trainable_variables
        ]

        def loss(features, *weights, layer=layer, fixed=fixed):
            logits, _ = layer.stateless_call(weights, fixed, features)
            return dbl_tf.LDAMLoss(COUNTS)(labels, logits)

        for i, array in enumerate(value_and_gradients(loss, [features, *weights])):
            yield f"{name}/{i}", array


def network_values(inputs, output_dir):
    """Steps of `fit`, of initial weights that the inputs bring along."""
    jit_compile = keras.backend.backend() == "jax"
    for name, (make, input_name, make_loss) in NETWORKS.items():
        network, x = make(), inputs[input_name][:24]
        network.set_weights([inputs[f"{name}/{i}"] for i in range(len(network.weights))])
        optimizer = CoupledDecaySGD(WarmupStepDecay(0.05, 2, [2]), global_clipnorm=0.05)
        network.compile(optimizer, make_loss(), jit_compile=jit_compile)
        fit = network.fit(x, inputs["labels"][:24], batch_size=8, shuffle=False, verbose=0)
        yield f"{name}/loss", np.array(fit.history["loss"])
        for i, weight in enumerate(network.get_weights()):
            yield f"{name}/{i}", weight
        yield f"{name}/logits", network.predict(x, verbose=0)
        network.save(output_dir / f"{name}.keras")


def warmup_values(labels, features):
    """The weights of a `fit` whose loss changes at step 3, in the middle of an epoch."""
    for name, warmup_steps in (("switching", 3), ("correcting", 0), ("plain", 100)):
        network = keras.Sequential(
            [keras.Input((5,)), keras.layers.Dense(6, kernel_initializer="ones")]
        )
        loss = dbl_tf.SPLCLoss(correction_threshold=0.5, warmup_steps=warmup_steps)
        network.compile(keras.optimizers.SGD(0.5), loss)
        callbacks = [dbl_tf.LossWarmup(loss)]
        data = (features[:24], labels[:24].round())
        network.fit(*data, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)
        yield f"{name}/kernel", network.layers[0].kernel
        yield f"{name}/loss", network.evaluate(*data, verbose=0)


def metric_values(labels, logits):
    labels, logits = ops.convert_to_tensor(labels.round()), ops.convert_to_tensor(logits)
    groups = {"head": [0, 1], "tail": [4, 5]}
    yield from metrics.mean_average_precision(labels, logits, groups).items()
    thresholds = metrics.best_f1_thresholds(labels, logits)
    yield "thresholds", thresholds
    yield from metrics.precision_recall_f1(labels, logits, thresholds).items()


def preprocessing_values(images):
    for name in ("ResNet50", "MobileNet", "DenseNet121"):
        yield name, models.BackbonePreprocessing(name)(images)


def dropout_values(features):
    """Masks of two steps, of a layer of equal seed after a restart, and of another seed."""
    ones = np.ones((64, 128), np.float32)
    layer, other = (models.StatelessDropout(0.5, seed=seed) for seed in (3, 4))
    yield "first", layer(ones, training=True)
    yield "second", layer(ones, training=True)
    yield "inference", layer(ones)
    restarted = models.StatelessDropout(0.5, seed=3)
    restarted.build(ones.shape)
    restarted.set_weights([np.int32(1)])
    yield "restarted", restarted(ones, training=True)
    yield "other", other(ones, training=True)
    head = models.build_head(features.shape[1], 6)
    head.compile("sgd", LOSSES["db_focal"]())
    head.fit(features, np.ones((len(features), 6), np.float32), batch_size=8, verbose=0)
    yield "steps_of_fit", head.get_layer("neck_dropout").step.value


def compute(inputs, output_dir):
    """All of them, NumPy arrays by name; leaves the trained networks in `output_dir`."""
    labels, logits, features = (inputs[name] for name in ("labels", "logits", "features"))
    parts = {
        "loss": loss_values(labels, logits),
        "unknown": unknown_values(labels, logits),
        "weighting": weighting_values(labels),
        "classifier": classifier_values(labels, features),
        "network": network_values(inputs, output_dir),
        "warmup": warmup_values(labels, features),
        "metric": metric_values(labels, logits),
        "preprocessing": preprocessing_values(inputs["images"]),
        "dropout": dropout_values(features),
    }
    return {
        f"{part}/{name}": ops.convert_to_numpy(value)
        for part, values in parts.items()
        for name, value in values
    }
