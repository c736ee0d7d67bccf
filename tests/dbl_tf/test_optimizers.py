import keras
import numpy as np
import pytest
import tensorflow as tf

from dbl_tf.optimizers import CoupledDecaySGD, DecoupledDecayAdam, WarmupStepDecay, warmup_cosine

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


def adam_closed_form(gradients, start, rates, decay, clipnorm, factors=(1.0, 1.0)):
    """As `closed_form`, of AdamW with β₁ 0.9, β₂ 0.999 and ε 1e-7, where vectors do not decay."""
    weights = [np.float64(w) for w in start]
    first = [np.zeros_like(w) for w in weights]
    second = [np.zeros_like(w) for w in weights]
    path = []
    for t, gradient in enumerate(gradients, start=1):
        norm = np.sqrt(sum((g**2).sum() for g in gradient))
        for i, g in enumerate(gradient):
            g = g * min(1.0, clipnorm / norm)
            rate = rates[t - 1] * factors[i]
            if weights[i].ndim > 1:
                weights[i] = weights[i] * (1 - rate * decay)
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g**2
            # Keras adds ε to the root before its bias is corrected.
            step = first[i] / (np.sqrt(second[i]) + 1e-7)
            weights[i] = weights[i] - rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * step
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


def assert_follows(optimizer, start, gradients, expected, tolerance):
    """Compares the variables after each step; rates, betas and ε are float32 numbers."""
    variables = [keras.Variable(w, dtype="float64") for w in start]
    for gradient, values in zip(gradients, expected, strict=True):
        optimizer.apply([tf.constant(g) for g in gradient], variables)
        for variable, value in zip(variables, values, strict=True):
            np.testing.assert_allclose(variable.numpy(), value, **tolerance)


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
    expected = closed_form(gradients, start, rates, 0.9, 0.05, 3.0)
    assert_follows(optimizer, start, gradients, expected, {"rtol": 1e-6, "atol": 1e-7})


def test_ten_steps_of_adam_equal_the_closed_form():
    start, gradients = make_problem()
    optimizer = DecoupledDecayAdam(
        warmup_cosine(0.1, 4, STEPS),
        decoupled_weight_decay=0.5,
        global_clipnorm=3.0,
        rate_factors=[0.25, 1.0],
    )
    rates = cosine_rates(0.1, 4, STEPS)
    expected = adam_closed_form(gradients, start, rates, 0.5, 3.0, factors=(0.25, 1.0))
    assert_follows(optimizer, start, gradients, expected, {"rtol": 1e-5, "atol": 1e-5})


def test_a_rate_factor_scales_the_rate_of_its_variable():
    start, gradients = make_problem()
    optimizer = CoupledDecaySGD(0.1, coupled_weight_decay=0.05, rate_factors=[0.3, 0.0])
    variables = [keras.Variable(w, dtype="float64") for w in start]
    for gradient in gradients:
        optimizer.apply([tf.constant(g) for g in gradient], variables)
    slower = closed_form(gradients, start, [0.03] * STEPS, 0.9, 0.05, 35.0)[-1]
    np.testing.assert_allclose(variables[0].numpy(), slower[0], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(variables[1].numpy(), start[1])


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_two_replicas_clip_the_sum_of_their_gradients(mirrored, kind):
    start, gradients = make_problem()
    ema = {"use_ema": True, "ema_momentum": 0.8}
    with mirrored.scope():
        variables = [keras.Variable(w, dtype="float32") for w in start]
        if kind == "sgd":
            optimizer = CoupledDecaySGD(0.1, coupled_weight_decay=0.05, global_clipnorm=3.0, **ema)
        else:
            optimizer = DecoupledDecayAdam(
                0.1, decoupled_weight_decay=0.5, global_clipnorm=3.0, **ema
            )
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
    rates = [0.1] * STEPS
    if kind == "sgd":
        path = closed_form(gradients, start, rates, 0.9, 0.05, 3.0)
    else:
        path = adam_closed_form(gradients, start, rates, 0.5, 3.0)
    averages = path[0]
    for weights in path[1:]:
        averages = [0.8 * a + 0.2 * w for a, w in zip(averages, weights, strict=True)]
    for variable, value in zip(variables, path[-1], strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5, atol=1e-5)
    optimizer.finalize_variable_values(variables)
    for variable, value in zip(variables, averages, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5, atol=1e-5)


def cosine_rates(rate, warmup_steps, steps):
    warm = [rate * (1 / 3 + 2 / 3 * t / warmup_steps) for t in range(warmup_steps)]
    rest = steps - warmup_steps
    return warm + [rate * 0.5 * (1 + np.cos(np.pi * t / rest)) for t in range(rest)]


@pytest.mark.parametrize(("warmup_steps", "steps"), [(4, 10), (0, 10), (1, 1)])
def test_the_cosine_rises_from_a_third_and_ends_at_zero(warmup_steps, steps):
    schedule = warmup_cosine(0.1, warmup_steps, steps)
    expected = cosine_rates(0.1, warmup_steps, steps)
    assert [float(schedule(t)) for t in range(steps)] == pytest.approx(expected, rel=1e-5)
    assert float(schedule(steps + 5)) == pytest.approx(0.0, abs=1e-8)


def test_warmup_and_steps_over_the_paper_s_first_steps():
    schedule = WarmupStepDecay(0.02, 500, [600, 800])
    assert float(schedule(0)) == pytest.approx(0.02 / 3)
    assert float(schedule(250)) == pytest.approx(0.02 * 2 / 3)
    assert float(schedule(500)) == pytest.approx(0.02)
    assert [float(schedule(t)) for t in (599, 600, 799, 800)] == pytest.approx(
        [0.02, 0.002, 0.002, 0.0002]
    )
    assert float(WarmupStepDecay(0.02, 0)(0)) == pytest.approx(0.02)


@pytest.mark.parametrize(
    "optimizer",
    [
        CoupledDecaySGD(WarmupStepDecay(0.1, 4, [6]), rate_factors=[0.5, 1.0]),
        DecoupledDecayAdam(warmup_cosine(0.1, 4, 9), rate_factors=[0.5, 1.0], use_ema=True),
    ],
    ids=lambda optimizer: optimizer.name,
)
def test_a_compiled_model_is_saved_and_loaded_with_optimizer_and_schedule(tmp_path, optimizer):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(optimizer, loss="mse")
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
    with pytest.raises(ValueError, match="decoupled_weight_decay must be at least 0"):
        DecoupledDecayAdam(decoupled_weight_decay=-1)
    with pytest.raises(ValueError, match="rate_factors must be finite and at least 0, got nan"):
        DecoupledDecayAdam(rate_factors=[float("nan")])
    with pytest.raises(ValueError, match="rate_factors holds 1 numbers for 2 variables"):
        CoupledDecaySGD(rate_factors=[1.0]).build([keras.Variable(0.0), keras.Variable(0.0)])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_adam_follows_gradients_of_some_rows_and_under_xla(jit_compile):
    start = np.random.default_rng(3).standard_normal((5, 2))
    rows = [0, 3, 3]
    given = np.random.default_rng(4).standard_normal((STEPS, len(rows), 2))
    variable = keras.Variable(start, dtype="float64")
    optimizer = DecoupledDecayAdam(0.1, decoupled_weight_decay=0.5, global_clipnorm=None)
    optimizer.build([variable])

    @tf.function(jit_compile=jit_compile)
    def step(values):
        optimizer.apply([tf.IndexedSlices(values, rows, dense_shape=(5, 2))], [variable])

    dense = np.zeros((STEPS, 5, 2))
    for t, values in enumerate(given):
        np.add.at(dense[t], rows, values)
        step(tf.constant(values))
    expected = adam_closed_form(
        [[gradient, np.zeros(1)] for gradient in dense],
        [start, np.zeros(1)],
        [0.1] * STEPS,
        0.5,
        np.inf,
    )
    np.testing.assert_allclose(variable.numpy(), expected[-1][0], rtol=1e-5, atol=1e-5)
