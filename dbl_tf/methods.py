"""The methods that can be trained and compared: rows of Tables 1 and 2 of the paper.

`METHODS` is the one place where a method is defined; a name of it is what `--method` takes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from dbl_tf import classifiers, label_graphs, losses, models, weighting
from dbl_tf.statistics import LabelStatistics


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Epochs, and the epochs after which the learning rate falls to a tenth."""

    epochs: int
    decay_epochs: tuple[int, ...]


# Paper, section 4.2: an epoch of class-aware re-sampling draws C·max(n)/4 examples.
UNIFORM_SCHEDULE = Schedule(epochs=80, decay_epochs=(55, 70))
RESAMPLED_SCHEDULE = Schedule(epochs=8, decay_epochs=(5, 7))


def schedule_of(sampler: str) -> Schedule:
    """The paper's schedule for a way of drawing examples."""
    return UNIFORM_SCHEDULE if sampler == "uniform" else RESAMPLED_SCHEDULE


@dataclasses.dataclass(frozen=True)
class Method:
    """How a method draws examples, and what its loss, its weights and its classifier are.

    Attributes:
        summary: one line for a person.
        sampler: "uniform", or "class_aware" re-sampling.
        weighting: of the loss elements: None, "rebalanced" (r̂ of Eq. 4), "inverse_root" (√(N/n))
            or "class_balanced" ((1 − β)/(1 − β^n) with β = 0.9).
        negative_tolerant: whether λ and κ of Eq. 7 are applied.
        focal: whether the focusing factor is applied, γ = 2 with scale 2.
        loss: "crossentropy", of which the parts above are, "ldam" or "asymmetric".
        classifier: above the paper's neck, "linear" or "cosine"; or "graph", on the features.
    """

    summary: str
    sampler: str
    weighting: str | None = None
    negative_tolerant: bool = False
    focal: bool = False
    loss: str = "crossentropy"
    classifier: str = "linear"

    @property
    def parameters(self) -> frozenset[str]:
        """Which of alpha, beta, mu, lambda_, kappa and margin the method uses."""
        used = {"alpha", "beta", "mu"} if self.weighting == "rebalanced" else set()
        return frozenset(
            used | ({"lambda_", "kappa", "margin"} if self.negative_tolerant else set())
        )

    def make_loss(
        self,
        class_counts: np.ndarray,
        num_examples: int,
        *,
        alpha: float,
        beta: float,
        mu: float,
        lambda_: float,
        kappa: float,
        margin: str,
        rebalance_in: str = "pipeline",
        clamp_counts: bool = False,
    ) -> keras.losses.Loss:
        """The loss of the method; the values of parts that it does not have are ignored.

        Args:
            class_counts: n_i, (C,), of the training set.
            num_examples: N.
            alpha: α of Eq. 4.
            beta: β of Eq. 4.
            mu: μ of Eq. 4.
            lambda_: λ of Eq. 7.
            kappa: κ of Eq. 9.
            margin: "paper" or "released".
            rebalance_in: where weights are computed: "pipeline" or "loss".
            clamp_counts: whether counts outside [1, N − 1] are moved to its ends, not refused.
        """
        source = {"pipeline": "sample_weight", "loss": "labels"}[rebalance_in]
        focal_gamma = 2.0 if self.focal else 0.0
        clamped = _clamped(class_counts, num_examples, clamp_counts)
        if self.loss == "asymmetric":
            return losses.AsymmetricLoss()
        if self.loss == "ldam":
            return losses.LDAMLoss(clamped)
        if self.weighting in losses.REWEIGHTINGS:
            return losses.ReweightedCrossentropy(
                clamped, self.weighting, focal_gamma=focal_gamma, rebalance=source
            )
        return losses.DistributionBalancedLoss(
            class_counts,
            num_examples,
            alpha=alpha,
            beta=beta,
            mu=mu,
            lambda_=lambda_ if self.negative_tolerant else 1.0,
            kappa=kappa if self.negative_tolerant else 0.0,
            margin=margin,
            focal_gamma=focal_gamma,
            rebalance=source if self.weighting else None,
            clamp_counts=clamp_counts,
        )

    def make_weighting(
        self,
        class_counts: np.ndarray,
        num_examples: int,
        *,
        alpha: float,
        beta: float,
        mu: float,
        clamp_counts: bool = False,
    ) -> Callable[[Any], Any] | None:
        """The weights (B, C) of labels (B, C), for an input pipeline; None where there are none.

        They are those that the loss computes with `rebalance_in="loss"`.

        Args:
            class_counts: n_i, (C,), of the training set.
            num_examples: N.
            alpha: α of Eq. 4, as `beta` and `mu` of the weights r̂ alone.
            beta: β of Eq. 4.
            mu: μ of Eq. 4.
            clamp_counts: as of `make_loss`.
        """
        counts = _clamped(class_counts, num_examples, clamp_counts)
        if self.weighting == "rebalanced":
            return lambda labels: weighting.rebalanced_weights(labels, counts, alpha, beta, mu)
        if self.weighting in losses.REWEIGHTINGS:
            return lambda labels: losses.REWEIGHTINGS[self.weighting](labels, counts)
        return None

    def make_head(
        self,
        num_features: int,
        statistics: LabelStatistics,
        *,
        label_embeddings: np.ndarray | None = None,
        seed: int = 0,
    ) -> keras.Model:
        """The layers above the backbone.

        Args:
            num_features: F.
            statistics: of the training labels.
            label_embeddings: of a classifier over the graph of labels, (C, D); one-hot if None.
            seed: of the dropout masks.

        Returns:
            A model from (B, F) features to (B, C) logits.
        """
        classifier = None
        if self.classifier == "cosine":
            classifier = classifiers.CosineClassifier(statistics.num_classes, name="classifier")
        elif self.classifier == "graph":
            classifier = classifiers.GraphClassifier(
                label_graphs.label_graph(statistics), label_embeddings, name="classifier"
            )
        return models.build_head(
            num_features,
            statistics.num_classes,
            seed=seed,
            classifier=classifier,
            neck=self.classifier != "graph",
        )


def _clamped(class_counts: np.ndarray, num_examples: int, clamp_counts: bool) -> np.ndarray:
    return weighting.clamp_counts(class_counts, num_examples) if clamp_counts else class_counts


METHODS: dict[str, Method] = {
    "erm": Method("binary cross-entropy on the data as they are", "uniform"),
    "focal": Method("focal loss on the data as they are", "uniform", focal=True),
    "rw": Method("classes weighted by √(N/n)", "uniform", weighting="inverse_root"),
    "cb_focal": Method(
        "examples weighted by the effective number of their classes, focal loss",
        "uniform",
        weighting="class_balanced",
        focal=True,
    ),
    "ldam": Method(
        "cosine classifier with larger margins for rarer classes",
        "uniform",
        loss="ldam",
        classifier="cosine",
    ),
    "ml_gcn": Method(
        "classifier from a graph convolution over co-occurring labels",
        "uniform",
        classifier="graph",
    ),
    "asl": Method("asymmetric loss; beyond the paper", "uniform", loss="asymmetric"),
    "rs": Method("class-aware re-sampling", "class_aware"),
    "rs_focal": Method("class-aware re-sampling, focal loss", "class_aware", focal=True),
    "rs_rw_focal": Method(
        "re-sampling, classes weighted by √(N/n), focal loss",
        "class_aware",
        weighting="inverse_root",
        focal=True,
    ),
    "rs_cb_focal": Method(
        "re-sampling, examples weighted by the effective number of their classes, focal loss",
        "class_aware",
        weighting="class_balanced",
        focal=True,
    ),
    "r_bce": Method("re-sampling, re-balanced weights", "class_aware", weighting="rebalanced"),
    "r_bce_focal": Method(
        "re-sampling, re-balanced weights, focal loss",
        "class_aware",
        weighting="rebalanced",
        focal=True,
    ),
    "nt_bce": Method(
        "re-sampling, negative-tolerant regularization", "class_aware", negative_tolerant=True
    ),
    "nt_bce_focal": Method(
        "re-sampling, negative-tolerant regularization, focal loss",
        "class_aware",
        negative_tolerant=True,
        focal=True,
    ),
    "db": Method(
        "Distribution-Balanced Loss", "class_aware", weighting="rebalanced", negative_tolerant=True
    ),
    "db_focal": Method(
        "Distribution-Balanced Loss, focal",
        "class_aware",
        weighting="rebalanced",
        negative_tolerant=True,
        focal=True,
    ),
}


def get(name: str) -> Method:
    """The method of this name.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {name!r}")
    return METHODS[name]


def describe() -> str:
    """The table of methods as text, a line each."""
    width = max(map(len, METHODS))
    return "\n".join(f"{name:{width}}  {method.summary}" for name, method in METHODS.items())
