import keras
import numpy as np
import pytest
import tensorflow as tf

from dbl_tf.optimizers import CoupledDecaySGD, WarmupStepDecay

STEPS = 10


def closed_form(gradients, start, rates, momentum, decay, clipnorm):
    """Ten steps of two variables in float64 NumPy."""
    weights = [np.float64(w) for w in start]
    velocities = [np.zeros_like(w) for w in weights]
    path = []
    for step, gradient in enumerate(gradients):
        norm = np.sqrt(sum((g**2).sum() for g in gradient))
        for i, g in enumerate(gradient):
            g = g * min(1.0, clipnorm / norm) + decay * weights[i]
            velocities[i] = momentum * velocities[i] + g
            weights[i] = weights[i] - rates[step] * velocities[i]
        path.append([w.copy() for w in weights])
    return path


def make_problem(seed=0):
    rng = np.random.default_rng(seed)
    start = [rng.standard_normal((3, 4)), rng.standard_normal(4)]
    # Norms on both sides of the clipping norm of 3.
    gradients = [
        [scale * rng.standard_normal(w.shape) for w in start]
        for scale in np.linspace(0.1, 3, STEPS)
    ]
    return start, gradients


def warmup_rates(rate, warmup_steps, boundaries, steps=STEPS):
    rates = [rate * (1 - (1 - min(t / warmup_steps, 1)) * 2 / 3) for t in range(steps)]
    return [r * 0.1 ** sum(t >= b for b in boundaries) for t, r in enumerate(rates)]


@pytest.mark.parametrize("schedule", [False, True])
def test_ten_steps_equal_the_closed_form(schedule):
    start, gradients = make_problem()
    rates = warmup_rates(0.1, 5, [7, 9]) if schedule else [0.1] * STEPS
    optimizer = CoupledDecaySGD(
        WarmupStepDecay(0.1, 5, [7, 9]) if schedule else 0.1,
        momentum=0.9,
        coupled_weight_decay=0.05,
        global_clipnorm=3.0,
    )
    variables = [keras.Variable(w, dtype="float64") for w in start]
    expected = closed_form(gradients, start, rates, 0.9, 0.05, 3.0)
    for step in range(STEPS):
        optimizer.apply([tf.constant(g) for g in gradients[step]], variables)
        for variable, value in zip(variables, expected[step], strict=True):
            # The learning rate is a float32 number.
            np.testing.assert_allclose(variable.numpy(), value, rtol=1e-6, atol=1e-7)


def test_two_replicas_clip_the_sum_of_their_gradients(mirrored):
    start, gradients = make_problem()
    with mirrored.scope():
        variables = [keras.Variable(w, dtype="float32") for w in start]
        optimizer = CoupledDecaySGD(0.1, coupled_weight_decay=0.05, global_clipnorm=3.0)
        optimizer.build(variables)
    # Shares whose own norms differ from that of their sum, by parts that cancel.
    rng = np.random.default_rng(1)
    noise = [[5 * rng.standard_normal(w.shape) for w in start] for _ in range(STEPS)]

    @tf.function
    def step(shares):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        optimizer.apply([tf.gather(share, replica) for share in shares], variables)

    for gradient, parts in zip(gradients, noise, strict=True):
        shares = [
            tf.constant(np.stack([g / 2 + part, g / 2 - part]), tf.float32)
            for g, part in zip(gradient, parts, strict=True)
        ]
        mirrored.run(step, args=(shares,))
    expected = closed_form(gradients, start, [0.1] * STEPS, 0.9, 0.05, 3.0)[-1]
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5, atol=1e-6)


def test_warmup_and_steps_over_the_paper_s_first_steps():
    schedule = WarmupStepDecay(0.02, 500, [600, 800])
    assert float(schedule(0)) == pytest.approx(0.02 / 3)
    assert float(schedule(250)) == pytest.approx(0.02 * 2 / 3)
    assert float(schedule(500)) == pytest.approx(0.02)
    assert [float(schedule(t)) for t in (599, 600, 799, 800)] == pytest.approx(
        [0.02, 0.002, 0.002, 0.0002]
    )
    assert float(WarmupStepDecay(0.02, 0)(0)) == pytest.approx(0.02)


def test_a_compiled_model_is_saved_and_loaded_with_optimizer_and_schedule(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(CoupledDecaySGD(WarmupStepDecay(0.1, 4, [6])), loss="mse")
    x, y = np.ones((8, 3), np.float32), np.ones((8, 2), np.float32)
    model.fit(x, y, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for m in (model, loaded):
        m.fit(x, y, epochs=3, verbose=0)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_values_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\), got 1"):
        CoupledDecaySGD(momentum=1)
    with pytest.raises(ValueError, match="coupled_weight_decay must be at least 0"):
        CoupledDecaySGD(coupled_weight_decay=-1)
