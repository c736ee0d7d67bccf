"""The methods that can be trained and compared: rows of Tables 1 and 2 of the paper.

`METHODS` is the one place where a method is defined; a name of it is what `--method` takes.
"""

import dataclasses

import numpy as np

from dbl_tf import losses


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
    """How a method draws examples, and what its loss is made of.

    Attributes:
        summary: one line for a person.
        sampler: "uniform", or "class_aware" re-sampling.
        rebalance: whether the weights r̂ of Eq. 4 are applied.
        negative_tolerant: whether λ and κ of Eq. 7 are applied.
        focal: whether the focusing factor is applied, γ = 2 with scale 2.
    """

    summary: str
    sampler: str
    rebalance: bool = False
    negative_tolerant: bool = False
    focal: bool = False

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
    ) -> losses.DistributionBalancedLoss:
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
            rebalance_in: where r̂ is computed: "pipeline" or "loss".
            clamp_counts: as of `DistributionBalancedLoss`.
        """
        source = {"pipeline": "sample_weight", "loss": "labels"}[rebalance_in]
        return losses.DistributionBalancedLoss(
            class_counts,
            num_examples,
            alpha=alpha,
            beta=beta,
            mu=mu,
            lambda_=lambda_ if self.negative_tolerant else 1.0,
            kappa=kappa if self.negative_tolerant else 0.0,
            margin=margin,
            focal_gamma=2.0 if self.focal else 0.0,
            rebalance=source if self.rebalance else None,
            clamp_counts=clamp_counts,
        )


METHODS: dict[str, Method] = {
    "erm": Method("binary cross-entropy on the data as they are", "uniform"),
    "focal": Method("focal loss on the data as they are", "uniform", focal=True),
    "rs": Method("class-aware re-sampling", "class_aware"),
    "rs_focal": Method("class-aware re-sampling, focal loss", "class_aware", focal=True),
    "r_bce": Method("re-sampling, re-balanced weights", "class_aware", rebalance=True),
    "r_bce_focal": Method(
        "re-sampling, re-balanced weights, focal loss", "class_aware", rebalance=True, focal=True
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
        "Distribution-Balanced Loss", "class_aware", rebalance=True, negative_tolerant=True
    ),
    "db_focal": Method(
        "Distribution-Balanced Loss, focal",
        "class_aware",
        rebalance=True,
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
