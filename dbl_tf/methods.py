"""The methods that can be trained and compared: the rows of Tables 1 and 2 of the paper.

`METHODS` is the only definition of each method, and its keys are the values of `--method`. A row
names a sampler and combines three parts: a weighting of the loss elements, a loss, and a
classifier. A part states the parameters that it uses, by their names in `LossParameters`.

The table itself needs no Keras: `dbl_tf` imports the classes of losses and layers when a method
makes one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import dbl_tf
from dbl_tf import label_graphs, weighting
from dbl_tf.messages import did_you_mean
from dbl_tf.parameters import DEFAULTS, LossParameters
from dbl_tf.statistics import LabelStatistics

if TYPE_CHECKING:
    import keras

    from dbl_tf import losses


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A number of epochs, and the epochs after which the learning rate is divided by 10."""

    epochs: int
    decay_epochs: tuple[int, ...]


# Paper, section 4.2: an epoch of class-aware re-sampling draws C·max(n)/4 examples.
UNIFORM_SCHEDULE = Schedule(epochs=80, decay_epochs=(55, 70))
RESAMPLED_SCHEDULE = Schedule(epochs=8, decay_epochs=(5, 7))


def schedule_of(sampler: str) -> Schedule:
    """Returns the schedule of the paper for a sampler."""
    return UNIFORM_SCHEDULE if sampler == "uniform" else RESAMPLED_SCHEDULE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Base class of the parts of a method.

    Attributes:
        arguments: the parameters that the part uses: names of arguments of its function, each with
            the name of the parameter in `LossParameters`.
    """

    arguments: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)

    @property
    def parameters(self) -> frozenset[str]:
        """The names of the parameters that the part uses."""
        return frozenset(self.arguments.values())

    def values(self, parameters: LossParameters) -> dict[str, Any]:
        """Returns the values of the arguments."""
        return {argument: getattr(parameters, name) for argument, name in self.arguments.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weighting(Part):
    """A weighting of the loss elements.

    Attributes:
        function: a function from labels (B, C), `class_counts` and the arguments of the part to
            weights (B, C).
        loss_arguments: the arguments, in addition to those of the part, with which a loss computes
            these weights itself.
    """

    function: Callable[..., Any]
    loss_arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss(Part):
    """A loss.

    Attributes:
        make: a function that creates the loss from `class_counts`, `num_examples`, `clamp_counts`
            and the arguments of the part. In a method with a weighting, it also receives
            `rebalance` and the arguments of the weighting.
        is_mean_over_classes: whether the loss is a mean over elements, (B, C), so that the gradient
            for one logit is proportional to 1/C; otherwise it is a mean over examples.
        takes_steps_per_epoch: whether `make` also receives `steps_per_epoch`.
    """

    make: Callable[..., losses.MultiLabelLoss]
    is_mean_over_classes: bool = True
    takes_steps_per_epoch: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier(Part):
    """The last layer of the network.

    Attributes:
        make: a function that creates the layer from `LabelStatistics` and the arguments of the
            part, and from `label_embeddings` if it takes them. It returns None for the linear layer
            of `models.build_head`.
        has_neck: whether the neck of the paper (FC 256, BatchNorm, dropout) is below the layer;
            otherwise the layer receives the features.
        takes_label_embeddings: whether the layer uses embeddings of the labels.
    """

    make: Callable[..., keras.layers.Layer | None]
    has_neck: bool = True
    takes_label_embeddings: bool = False


def _same_names(*names: str) -> dict[str, str]:
    return {name: name for name in names}


REBALANCED = Weighting(
    function=weighting.rebalanced_weights, arguments=_same_names("alpha", "beta", "mu")
)
INVERSE_ROOT = Weighting(
    function=weighting.REWEIGHTINGS["inverse_root"], loss_arguments={"weighting": "inverse_root"}
)
CLASS_BALANCED = Weighting(
    function=weighting.REWEIGHTINGS["class_balanced"],
    loss_arguments={"weighting": "class_balanced"},
    arguments={"beta": "effective_number_beta"},
)


def _counts(
    class_counts: np.ndarray, num_examples: int | np.ndarray, clamp_counts: bool
) -> np.ndarray:
    return weighting.clamp_counts(class_counts, num_examples) if clamp_counts else class_counts


def _distribution_balanced(
    class_counts: np.ndarray,
    num_examples: int | np.ndarray,
    clamp_counts: bool,
    *,
    rebalance: str | None = None,
    **arguments: Any,
) -> losses.MultiLabelLoss:
    return dbl_tf.DistributionBalancedLoss(
        class_counts, num_examples, rebalance=rebalance, clamp_counts=clamp_counts, **arguments
    )


def _reweighted(
    class_counts: np.ndarray, num_examples: int | np.ndarray, clamp_counts: bool, **arguments: Any
) -> losses.MultiLabelLoss:
    return dbl_tf.ReweightedCrossentropy(
        _counts(class_counts, num_examples, clamp_counts), **arguments
    )


def _ldam(
    class_counts: np.ndarray, num_examples: int | np.ndarray, clamp_counts: bool, **arguments: Any
) -> losses.MultiLabelLoss:
    return dbl_tf.LDAMLoss(_counts(class_counts, num_examples, clamp_counts), **arguments)


def _without_counts(
    class_name: str,
    class_counts: np.ndarray,
    num_examples: int | np.ndarray,
    clamp_counts: bool,
    **arguments: Any,
) -> losses.MultiLabelLoss:
    return getattr(dbl_tf, class_name)(**arguments)


def _splc(
    class_counts: np.ndarray,
    num_examples: int | np.ndarray,
    clamp_counts: bool,
    *,
    steps_per_epoch: int | None,
    correction_epochs: float,
    **arguments: Any,
) -> losses.MultiLabelLoss:
    if correction_epochs and steps_per_epoch is None:
        raise ValueError(
            f"SPLC takes labels as they are for {correction_epochs:g} epochs; pass "
            "steps_per_epoch, or correction_epochs=0 among the parameters"
        )
    warmup_steps = round(correction_epochs * (steps_per_epoch or 0))
    return dbl_tf.SPLCLoss(warmup_steps=warmup_steps, **arguments)


_FOCAL = _same_names("focal_gamma", "focal_scale")
_NEGATIVE_TOLERANT = _same_names("lambda_", "kappa", "margin")

CROSSENTROPY = Loss(
    make=functools.partial(_distribution_balanced, lambda_=1.0, kappa=0.0, focal_gamma=0.0)
)
FOCAL = Loss(
    make=functools.partial(_distribution_balanced, lambda_=1.0, kappa=0.0), arguments=_FOCAL
)
NEGATIVE_TOLERANT = Loss(
    make=functools.partial(_distribution_balanced, focal_gamma=0.0), arguments=_NEGATIVE_TOLERANT
)
NEGATIVE_TOLERANT_FOCAL = Loss(
    make=_distribution_balanced, arguments={**_NEGATIVE_TOLERANT, **_FOCAL}
)
# With rebalance="labels", the losses above compute only the weights of REBALANCED, and these two
# only those of INVERSE_ROOT and CLASS_BALANCED.
REWEIGHTED_CROSSENTROPY = Loss(make=functools.partial(_reweighted, focal_gamma=0.0))
REWEIGHTED_FOCAL = Loss(make=_reweighted, arguments=_FOCAL)
LDAM = Loss(make=_ldam, arguments={"max_margin": "max_margin", "scale": "cosine_scale"})
ASYMMETRIC = Loss(
    make=functools.partial(_without_counts, "AsymmetricLoss"),
    arguments=_same_names("gamma_negative", "gamma_positive", "clip"),
)
TWO_WAY = Loss(
    make=functools.partial(_without_counts, "TwoWayLoss"),
    arguments=_same_names("ways", "temperature_positive", "temperature_negative"),
    is_mean_over_classes=False,
)
ZLPR = Loss(make=functools.partial(_without_counts, "ZLPRLoss"), is_mean_over_classes=False)
HILL = Loss(
    make=functools.partial(_without_counts, "HillLoss"),
    arguments=_same_names("logit_margin", "focal_gamma", "hill_lambda"),
)
SPLC = Loss(
    make=_splc,
    arguments=_same_names(
        "correction_threshold", "correction_epochs", "logit_margin", "focal_gamma"
    ),
    takes_steps_per_epoch=True,
)
ROBUST_ASYMMETRIC = Loss(
    make=functools.partial(_without_counts, "RobustAsymmetricLoss"),
    arguments={
        **_same_names("gamma_negative", "clip", "hill_lambda"),
        "gamma_positive": "robust_gamma_positive",
        "linear": "robust_linear",
        "quadratic": "robust_quadratic",
    },
)
POLY1 = Loss(
    make=functools.partial(_without_counts, "Poly1Loss"),
    arguments=_same_names("poly_epsilon"),
)


def _linear(statistics: LabelStatistics) -> None:
    return None


def _cosine(statistics: LabelStatistics, **arguments: Any) -> keras.layers.Layer:
    return dbl_tf.CosineClassifier(statistics.num_classes, name="classifier", **arguments)


def _graph(statistics: LabelStatistics, label_embeddings: np.ndarray | None) -> keras.layers.Layer:
    return dbl_tf.GraphClassifier(
        label_graphs.label_graph(statistics), label_embeddings, name="classifier"
    )


LINEAR = Classifier(make=_linear)
COSINE = Classifier(make=_cosine, arguments={"scale": "cosine_scale"})
GRAPH = Classifier(make=_graph, has_neck=False, takes_label_embeddings=True)


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table: a sampler, and the parts that make the loss and the network.

    Attributes:
        summary: a description of one line.
        sampler: "uniform", or "class_aware" for class-aware re-sampling.
        weighting: the weighting of the loss elements; None for equal weights.
        loss: the loss.
        classifier: the last layer of the network.
    """

    summary: str
    sampler: str
    weighting: Weighting | None = None
    loss: Loss = CROSSENTROPY
    classifier: Classifier = LINEAR

    @property
    def parameters(self) -> frozenset[str]:
        """The names of the fields of `LossParameters` that the method uses."""
        parts = (self.weighting, self.loss, self.classifier)
        return frozenset().union(*(part.parameters for part in parts if part is not None))

    def classes_of_rate(self, num_classes: int) -> int:
        """Returns the number of classes whose default learning rate suits the loss.

        That is C itself where the loss is a mean over the C classes, and a constant elsewhere.

        Args:
            num_classes: the number C of classes.
        """
        return num_classes if self.loss.is_mean_over_classes else dbl_tf.models.CLASSES_OF_RATES

    def make_loss(
        self,
        class_counts: np.ndarray,
        num_examples: int | np.ndarray,
        parameters: LossParameters = DEFAULTS,
        *,
        rebalance: str = "sample_weight",
        clamp_counts: bool = False,
        steps_per_epoch: int | None = None,
    ) -> losses.MultiLabelLoss:
        """Creates the loss of the method.

        Args:
            class_counts: the numbers n_i of training examples of each class, shape (C,).
            num_examples: the number N of training examples, or N_i of each class, (C,), where
                labels are unknown.
            parameters: the parameters; the method ignores those that it does not use.
            rebalance: the source of the element weights. With "sample_weight", the input pipeline
                passes the weights of `make_weighting`; with "labels", the loss computes them. It
                makes no difference to a method without a weighting.
            clamp_counts: whether counts outside [1, N − 1] are clamped to that range instead of
                being refused.
            steps_per_epoch: the number of steps in an epoch, for a loss that changes after some
                epochs.

        Raises:
            ValueError: if `rebalance` is neither of the two, the counts of a class are refused, or
                the loss needs `steps_per_epoch`.
        """
        if rebalance not in ("labels", "sample_weight"):
            raise ValueError(
                f'rebalance must be "labels" or "sample_weight" for a method; got {rebalance!r}'
            )
        arguments = self.loss.values(parameters)
        if self.weighting is not None:
            arguments |= self.weighting.values(parameters)
            arguments |= {**self.weighting.loss_arguments, "rebalance": rebalance}
        if self.loss.takes_steps_per_epoch:
            arguments["steps_per_epoch"] = steps_per_epoch
        return self.loss.make(class_counts, num_examples, clamp_counts, **arguments)

    def make_weighting(
        self,
        class_counts: np.ndarray,
        num_examples: int | np.ndarray,
        parameters: LossParameters = DEFAULTS,
        *,
        clamp_counts: bool = False,
    ) -> Callable[[Any], Any] | None:
        """Returns the function from labels (B, C) to weights (B, C), for an input pipeline.

        The weights equal those that the loss computes with `rebalance="labels"`. A method without a
        weighting returns None.

        Args:
            class_counts: the numbers n_i of training examples of each class, shape (C,).
            num_examples: the number N of training examples, or N_i of each class, (C,), where
                labels are unknown.
            parameters: the parameters; the method ignores those that it does not use.
            clamp_counts: whether counts outside [1, N − 1] are clamped, as in `make_loss`.
        """
        if self.weighting is None:
            return None
        return functools.partial(
            self.weighting.function,
            class_counts=_counts(class_counts, num_examples, clamp_counts),
            **self.weighting.values(parameters),
        )

    def make_head(
        self,
        num_features: int,
        statistics: LabelStatistics,
        parameters: LossParameters = DEFAULTS,
        *,
        label_embeddings: np.ndarray | None = None,
        scale_features: bool = False,
        seed: int = 0,
    ) -> keras.Model:
        """Creates the layers above the backbone.

        Args:
            num_features: the number F of features.
            statistics: the statistics of the training labels.
            parameters: the parameters; the method ignores those that it does not use.
            label_embeddings: embeddings of the labels, (C, D), for a classifier that takes them.
                None gives such a classifier one-hot embeddings.
            scale_features: whether the features are scaled; see `models.build_head`.
            seed: the seed of the dropout masks.

        Returns:
            A model from features (B, F) to logits (B, C).

        Raises:
            ValueError: if the classifier of the method does not take the given label embeddings.
        """
        arguments = self.classifier.values(parameters)
        if self.classifier.takes_label_embeddings:
            arguments["label_embeddings"] = label_embeddings
        elif label_embeddings is not None:
            raise ValueError(
                "label_embeddings were given, but the classifier of this method does not take them"
            )
        return dbl_tf.models.build_head(
            num_features,
            statistics.num_classes,
            seed=seed,
            classifier=self.classifier.make(statistics, **arguments),
            neck=self.classifier.has_neck,
            scale_features=scale_features,
        )


METHODS: dict[str, Method] = {
    "erm": Method("plain binary cross-entropy", "uniform"),
    "focal": Method("focal loss", "uniform", loss=FOCAL),
    "rw": Method(
        "binary cross-entropy, classes weighted by √(N/n)",
        "uniform",
        INVERSE_ROOT,
        REWEIGHTED_CROSSENTROPY,
    ),
    "cb_focal": Method(
        "focal loss, examples weighted by the effective number of examples of their classes",
        "uniform",
        CLASS_BALANCED,
        REWEIGHTED_FOCAL,
    ),
    "ldam": Method(
        "cosine classifier with larger margins for rarer classes",
        "uniform",
        loss=LDAM,
        classifier=COSINE,
    ),
    "ml_gcn": Method(
        "classifier made by a graph convolution over co-occurring labels",
        "uniform",
        classifier=GRAPH,
    ),
    "asl": Method("asymmetric loss, which the paper does not cover", "uniform", loss=ASYMMETRIC),
    "ral": Method(
        "robust asymmetric loss, which the paper does not cover",
        "uniform",
        loss=ROBUST_ASYMMETRIC,
    ),
    "poly1": Method(
        "binary cross-entropy with a polynomial term, which the paper does not cover",
        "uniform",
        loss=POLY1,
    ),
    "two_way": Method(
        "two-way loss over labels and examples, which the paper does not cover",
        "uniform",
        loss=TWO_WAY,
    ),
    "zlpr": Method(
        "log-sum-exp loss that ranks labels, which the paper does not cover", "uniform", loss=ZLPR
    ),
    "hill": Method(
        "Hill loss for missing labels, which the paper does not cover", "uniform", loss=HILL
    ),
    "splc": Method(
        "self-paced correction of missing labels, which the paper does not cover",
        "uniform",
        loss=SPLC,
    ),
    "rs": Method("class-aware re-sampling", "class_aware"),
    "rs_focal": Method("class-aware re-sampling, focal loss", "class_aware", loss=FOCAL),
    "rs_rw_focal": Method(
        "class-aware re-sampling, focal loss, classes weighted by √(N/n)",
        "class_aware",
        INVERSE_ROOT,
        REWEIGHTED_FOCAL,
    ),
    "rs_cb_focal": Method(
        "class-aware re-sampling, focal loss, examples weighted by the effective number of "
        "examples of their classes",
        "class_aware",
        CLASS_BALANCED,
        REWEIGHTED_FOCAL,
    ),
    "r_bce": Method("class-aware re-sampling, re-balanced weights", "class_aware", REBALANCED),
    "r_bce_focal": Method(
        "class-aware re-sampling, re-balanced weights, focal loss",
        "class_aware",
        REBALANCED,
        FOCAL,
    ),
    "nt_bce": Method(
        "class-aware re-sampling, negative-tolerant regularization",
        "class_aware",
        loss=NEGATIVE_TOLERANT,
    ),
    "nt_bce_focal": Method(
        "class-aware re-sampling, negative-tolerant regularization, focal loss",
        "class_aware",
        loss=NEGATIVE_TOLERANT_FOCAL,
    ),
    "db": Method("Distribution-Balanced Loss", "class_aware", REBALANCED, NEGATIVE_TOLERANT),
    "db_focal": Method(
        "Distribution-Balanced Loss with focusing",
        "class_aware",
        REBALANCED,
        NEGATIVE_TOLERANT_FOCAL,
    ),
}


def get(name: str) -> Method:
    """Returns the method with this name.

    Raises:
        ValueError: if there is none; the message lists the names of all methods.
    """
    if name not in METHODS:
        raise ValueError(
            f"method must be one of {', '.join(METHODS)}; got {name!r}{did_you_mean(name, METHODS)}"
        )
    return METHODS[name]


def describe() -> str:
    """Returns the table of methods as text, with a line for each method."""
    width = max(map(len, METHODS))
    return "\n".join(f"{name:{width}}  {method.summary}" for name, method in METHODS.items())
