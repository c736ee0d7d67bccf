import re

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from dbl_tf import CosineClassifier, GraphClassifier, models
from dbl_tf.optimizers import CoupledDecaySGD


def make_images(batch_size, size=32, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 255, (batch_size, size, size, 3)).astype(np.float32)


def make_classifier(num_classes=5, seed=0):
    keras.utils.set_random_seed(seed)
    backbone = models.build_backbone("small_resnet", 32, options={"width": 4})
    return models.join(backbone, models.build_head(backbone.output_shape[-1], num_classes))


def test_every_keras_application_is_offered_with_its_own_preprocessing():
    names = models.backbone_names()
    assert {"ResNet50", "MobileNet", "MobileNetV3Small", "EfficientNetB0", "VGG16"} <= set(names)
    # Caffe's: blue first, ImageNet's mean subtracted. MobileNet's: [−1, 1].
    image = np.full((1, 1, 1, 3), 255.0, np.float32) * [1, 0, 0]
    caffe = models.BackbonePreprocessing("ResNet50")(image).numpy()[0, 0, 0]
    np.testing.assert_allclose(caffe, [-103.939, -116.779, 255 - 123.68], rtol=1e-6)
    mobile = models.BackbonePreprocessing("MobileNet")(image).numpy()[0, 0, 0]
    np.testing.assert_allclose(mobile, [1, -1, -1])


def test_features_in_units_of_their_own_come_to_one_scale():
    rng = np.random.default_rng(0)
    plain = rng.standard_normal((500, 9)).astype(np.float32)
    units = 10.0 ** np.arange(-4, 5)
    features = (plain * units + 7 * units).astype(np.float32)
    layer = models.FeatureScaling()
    layer.build((None, 9))
    np.testing.assert_array_equal(layer(plain), plain)
    layer.set(features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64))
    scaled = layer(features).numpy()
    expected = (plain - plain.mean(0)) / plain.std(0)
    np.testing.assert_allclose(scaled, expected, atol=1e-4)


def test_features_of_one_kind_keep_their_relative_sizes_and_constants_become_zero():
    rng = np.random.default_rng(1)
    words = (rng.random((4000, 7)) < [0.1, 0.2, 0.3, 0.05, 0.5, 0.15, 0.25]).astype(np.float32)
    words = np.concatenate([words, np.full((4000, 1), 5e7, np.float32)], axis=1)
    layer = models.FeatureScaling()
    layer.build((None, 8))
    layer.set(words.mean(0, dtype=np.float64), words.std(0, dtype=np.float64))
    scaled = layer(words).numpy()
    centered = words[:, :7] - words[:, :7].mean(0)
    np.testing.assert_allclose(
        scaled[:, :7], centered / np.median(words[:, :7].std(0)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(layer(words + 1)[:, 7], np.zeros(4000))
    # A few of other units do not decide for all, and do not drown them.
    odd = np.concatenate([np.tile(words[:, :7], 6), 1e6 * words[:, :1]], axis=1)
    layer = models.FeatureScaling()
    layer.build((None, 43))
    layer.set(odd.mean(0, dtype=np.float64), odd.std(0, dtype=np.float64))
    again = layer(odd).numpy()
    np.testing.assert_allclose(again[:, :7], scaled[:, :7], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(again[:, 42].std(), 3, rtol=1e-3)


def test_resnet50_as_the_paper_has_it(monkeypatch):
    # Random weights in place of ImageNet's, which must not be downloaded.
    random_network = keras.applications.ResNet50

    def without_download(weights, **arguments):
        assert weights == "imagenet"
        return random_network(weights=None, **arguments)

    without_download.__module__ = random_network.__module__
    monkeypatch.setattr(keras.applications, "ResNet50", without_download)
    frozen = models.default_frozen_layers("ResNet50", pretrained=True)
    backbone = models.build_backbone("ResNet50", 64, weights="imagenet", frozen_layers=frozen)
    head = models.build_head(2048, 20)
    network = models.join(backbone, head)
    assert network.output_shape == (None, 20)
    resnet = backbone.get_layer("inference_mode").layer
    trainable = {v.path.split("/")[-2] for v in resnet.trainable_variables}
    assert not any(name.startswith(("conv1_", "conv2_")) for name in trainable)
    assert {"conv3_block1_1_conv", "conv3_block1_1_bn", "conv5_block3_3_bn"} <= trainable
    assert head.count_params() == 2048 * 256 + 256 + 4 * 256 + 1 + 256 * 20 + 20

    # Statistics stay, scale and offset train.
    norm = resnet.get_layer("conv4_block1_1_bn")
    before = [v.numpy() for v in (norm.moving_mean, norm.moving_variance, norm.gamma)]
    network.compile(CoupledDecaySGD(0.1), loss="mse", jit_compile=False)
    network.fit(make_images(2, 64), np.ones((2, 20), np.float32), verbose=0)
    after = [v.numpy() for v in (norm.moving_mean, norm.moving_variance, norm.gamma)]
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])
    assert not np.array_equal(before[2], after[2])


def test_initial_weights_follow_the_recipe():
    keras.utils.set_random_seed(1)
    head = models.build_head(2048, 2000)
    neck, classifier = head.get_layer("neck"), head.get_layer("classifier")
    assert np.std(neck.kernel.numpy()) == pytest.approx(np.sqrt(2 / 256), rel=0.02)
    assert np.std(classifier.kernel.numpy()) == pytest.approx(0.01, rel=0.02)
    assert not neck.bias.numpy().any() and not classifier.bias.numpy().any()


def test_pretrained_weights_are_loaded_from_a_file(shared_data):
    file = shared_data / "weights" / "mobilenet_0.75_imagenet_notop.weights.h5"
    backbone = models.build_backbone("MobileNet", 128, weights=str(file), options={"alpha": 0.75})
    reference = keras.applications.MobileNet(
        input_shape=(128, 128, 3), alpha=0.75, include_top=False, weights=None, pooling="avg"
    )
    reference.load_weights(file)
    with h5py.File(file) as content:
        arrays = []
        content.visititems(lambda _, item: arrays.append(item) if hasattr(item, "shape") else None)
        in_file = {np.asarray(array).tobytes() for array in arrays}
    loaded = backbone.get_layer("inference_mode").layer.get_weights()
    assert len(loaded) == len(arrays) and {w.tobytes() for w in loaded} == in_file
    images = make_images(2, 128)
    np.testing.assert_allclose(
        backbone(images), reference(images / 127.5 - 1, training=False), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match="does not hold weights of MobileNet with alpha="):
        models.build_backbone("MobileNet", 128, weights=str(file), options={"alpha": 0.5})


def test_statistics_train_without_pretraining():
    network = make_classifier()
    moving = [v for v in network.variables if "moving" in v.path]
    before = [v.numpy() for v in moving]
    network.compile(CoupledDecaySGD(0.1), loss="mse", jit_compile=False)
    network.fit(make_images(8), np.ones((8, 5), np.float32), verbose=0)
    assert all(not np.array_equal(a, b.numpy()) for a, b in zip(before, moving, strict=True))


def test_saved_network_loads_and_predicts_the_same(tmp_path):
    network = make_classifier()
    network.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    images = make_images(4)
    np.testing.assert_array_equal(network(images), loaded(images))


def test_one_and_two_replicas_train_alike_with_batchnorm_and_dropout(mirrored):
    batches = tf.data.Dataset.from_tensor_slices(
        (make_images(32), np.random.default_rng(1).random((32, 5)).astype(np.float32))
    ).batch(8, drop_remainder=True)

    def train(strategy):
        with strategy.scope():
            network = make_classifier()
            network.compile(
                CoupledDecaySGD(0.05, global_clipnorm=0.1), loss="mse", jit_compile=False
            )
        network.fit(batches, epochs=2, verbose=0)
        return network

    one = train(tf.distribute.OneDeviceStrategy("CPU:0"))
    two = train(mirrored)
    assert int(one.get_layer("head").get_layer("neck_dropout").step.numpy()) == 8
    for a, b in zip(one.variables, two.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=2e-5, err_msg=a.path)


def test_dropout_masks_are_functions_of_seed_and_step():
    ones = np.ones((64, 128), np.float32)
    layer, same, other = (models.StatelessDropout(0.5, seed=seed) for seed in (3, 3, 4))
    first, second = layer(ones, training=True).numpy(), layer(ones, training=True).numpy()
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, same(ones, training=True))
    np.testing.assert_array_equal(second, same(ones, training=True))
    assert not np.array_equal(first, other(ones, training=True))
    assert set(np.unique(first)) == {0.0, 2.0}
    # 8 192 units at rate 0.5: four standard deviations are 181.
    assert abs((first == 0).sum() - 4096) < 181
    np.testing.assert_array_equal(layer(ones, training=False), ones)


def make_network(kind, seed, graph=None):
    keras.utils.set_random_seed(seed)
    backbone = models.build_backbone("small_resnet", 32, options={"width": 4})
    classifier = {
        "linear": lambda: None,
        "cosine": lambda: CosineClassifier(3, name="classifier"),
        "graph": lambda: GraphClassifier(graph, hidden_units=8, name="classifier"),
    }[kind]()
    width = backbone.output_shape[-1]
    return backbone, models.build_head(width, 3, classifier=classifier, neck=kind != "graph")


def test_other_classifiers_take_the_place_of_the_last_layer():
    _, cosine = make_network("cosine", 0)
    names = [layer.name for layer in cosine.layers]
    assert names == ["features", "neck", "neck_norm", "neck_dropout", "classifier"]
    logits = cosine(np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)).numpy()
    assert logits.shape == (8, 3) and np.abs(logits).max() <= 30.001
    _, graph = make_network("graph", 0, np.eye(3))
    assert [layer.name for layer in graph.layers] == ["features", "classifier"]


def test_starting_from_a_network_of_the_same_or_another_kind(tmp_path):
    trained = make_network("graph", 1, np.eye(3))
    models.join(*trained).save(tmp_path / "graph.keras")
    other_graph = np.full((3, 3), 0.25)
    backbone, head = make_network("graph", 2, other_graph)
    models.copy_weights(tmp_path / "graph.keras", backbone, head, same_classes=True)
    for a, b in zip(head.trainable_variables, trained[1].trainable_variables, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(head.get_layer("classifier").graph, other_graph)
    for a, b in zip(backbone.get_weights(), trained[0].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)

    # The neck comes along from another kind of classifier, the classifier does not.
    linear = make_network("linear", 3)
    models.join(*linear).save(tmp_path / "linear.keras")
    backbone, head = make_network("cosine", 4)
    before = head.get_layer("classifier").kernel.numpy()
    models.copy_weights(tmp_path / "linear.keras", backbone, head, same_classes=True)
    np.testing.assert_array_equal(head.get_layer("classifier").kernel, before)
    np.testing.assert_array_equal(head.get_layer("neck").kernel, linear[1].get_layer("neck").kernel)
    with pytest.raises(ValueError, match=r"has no layer neck; its layers are features, classifier"):
        models.copy_weights(tmp_path / "graph.keras", backbone, head, same_classes=True)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("MobileNet", {"alhpa": 1}, ["no option 'alhpa'; it has alpha, ", "did you mean 'alpha'?"]),
        ("MobileNet", {"alpha": "x"}, ["MobileNet cannot be built with alpha='x'", "32 × 32"]),
        ("MobileNet", {"weights": None}, ["weights has a setting of its own"]),
        ("ResNet50", {"include_top": True}, ["the top of the network is replaced"]),
        (
            "small_resnet",
            {"blocks": 1, "widht": 4},
            ["'widht'; it has width, blocks; did you mean"],
        ),
        ("small_resnet", {"width": -4}, ["small_resnet cannot be built with width=-4"]),
    ],
)
def test_options_that_a_backbone_does_not_take_are_named(name, options, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        models.build_backbone(name, 32, options=options)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"or one of small_resnet, .*ResNet50.*mean 'ResNet50'\?"):
        models.build_backbone("resnet50", 32)
    with pytest.raises(ValueError, match="no layer of small_resnet has a name that starts with"):
        models.build_backbone("small_resnet", 32, frozen_layers=["stem"])
    with pytest.raises(ValueError, match=r"there is no file nowhere\.h5"):
        models.build_backbone("MobileNet", 32, weights="nowhere.h5")
    with pytest.raises(ValueError, match="no ImageNet weights for small_resnet"):
        models.build_backbone("small_resnet", 32, weights="imagenet")
