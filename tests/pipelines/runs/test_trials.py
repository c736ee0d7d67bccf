"""Scores of candidates, from predictions that are given here."""

import numpy as np
import pytest
from run_data import make_data
from sklearn.metrics import average_precision_score, f1_score

from pipelines.folds import stratified_folds
from pipelines.runs import trials
from pipelines.runs.config import ConfigError, RunConfig
from pipelines.runs.trials import Candidate, Predictions, Trials

NUM_CLASSES, NUM_EXAMPLES, NUM_FOLDS = 4, 60, 3


@pytest.fixture
def train():
    return make_data(NUM_CLASSES, NUM_EXAMPLES, num_features=2).splits["train"]


@pytest.fixture
def fold_of():
    return np.random.default_rng(0).permutation(np.arange(NUM_EXAMPLES) % NUM_FOLDS)


def asked(**settings):
    return RunConfig.of(dataset="features", examples="x.npz", method="auto", **settings)


def predictions_of(train, noise, seed):
    random = np.random.default_rng(seed)
    logits = train.labels.toarray() + noise * random.standard_normal(train.labels.shape)
    return Predictions(logits.astype(np.float32), logits > 0.6)


def test_candidates_are_scored_on_all_folds_together(train, fold_of, tmp_path):
    made = Trials(tmp_path, asked(), train, fold_of)
    given = {
        Candidate("erm", 0.1): predictions_of(train, 1.5, 0),
        Candidate("db", 0.1): predictions_of(train, 0.7, 1),
        Candidate("db", 0.3): predictions_of(train, 0.8, 2),
    }
    for candidate, predictions in given.items():
        for fold in range(NUM_FOLDS):
            assert not made.has(candidate, fold)
            made.add(candidate, fold, predictions.take(fold_of == fold))
    # A process that starts again finds them.
    made = Trials(tmp_path, asked(), train, fold_of)
    assert all(made.has(candidate, fold) for candidate in given for fold in range(NUM_FOLDS))
    labels = train.labels.toarray()
    part_of = stratified_folds(train.labels, 20)
    references = {
        "total": lambda y, p: average_precision_score(y, p.logits, average="macro"),
        "macro_f1": lambda y, p: f1_score(y, p.decisions, average="macro"),
    }
    for criterion, reference in references.items():
        summaries = made.summarize(list(given), criterion)
        scores = {each: reference(labels, predictions) for each, predictions in given.items()}
        without = {
            each: np.array(
                [
                    reference(labels[part_of != part], predictions.take(part_of != part))
                    for part in range(20)
                ]
            )
            for each, predictions in given.items()
        }
        best = max(scores, key=scores.get)
        assert [summary.candidate for summary in summaries] == sorted(
            scores, key=scores.get, reverse=True
        )
        for summary in summaries:
            each = summary.candidate
            assert summary.mean == pytest.approx(scores[each])
            assert summary.behind == pytest.approx(scores[best] - scores[each])
            for error, values in (
                (summary.standard_error, without[each]),
                (summary.behind_error, without[best] - without[each]),
            ):
                expected = np.sqrt(19 * np.mean((values - values.mean()) ** 2))
                assert error == pytest.approx(expected)


def test_of_many_examples_not_all_folds_are_held_out(train, fold_of, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "ENOUGH_EXAMPLES", NUM_EXAMPLES // NUM_FOLDS + 1)
    made = Trials(tmp_path, asked(), train, fold_of)
    assert made.num_folds == 2
    candidate, predictions = Candidate("erm", 0.1), predictions_of(train, 1.0, 0)
    for fold in range(2):
        made.add(candidate, fold, predictions.take(fold_of == fold))
    (summary,) = made.summarize([candidate], "total")
    judged = fold_of < 2
    expected = average_precision_score(train.labels.toarray()[judged], predictions.logits[judged])
    assert summary.mean == pytest.approx(expected)


def test_a_head_that_could_not_be_trained_counts_as_chance(train, fold_of, tmp_path):
    made = Trials(tmp_path, asked(), train, fold_of)
    candidate = Candidate("erm", 30.0)
    for fold in range(NUM_FOLDS):
        made.add(candidate, fold, None)
    (summary,) = made.summarize([candidate], "total")
    assert summary.mean == pytest.approx(1 / NUM_CLASSES)


def test_a_choice_goes_on_with_a_relative_path(train, fold_of, tmp_path, monkeypatch):
    Trials(
        tmp_path / "run", asked().with_settings(examples=str(tmp_path / "x.npz")), train, fold_of
    )
    monkeypatch.chdir(tmp_path)
    Trials(tmp_path / "run", asked(), train, fold_of)
    monkeypatch.chdir("/")
    with pytest.raises(ConfigError, match="started with other settings: examples"):
        Trials(tmp_path / "run", asked(), train, fold_of)


def test_the_choice_is_kept_and_the_predictions_are_not(train, fold_of, tmp_path):
    made = Trials(tmp_path, asked(), train, fold_of)
    candidate = Candidate("rs", 0.1)
    for fold in range(NUM_FOLDS):
        made.add(candidate, fold, predictions_of(train, 1, 0).take(fold_of == fold))
    assert made.chosen is None
    made.end(made.summarize([candidate], "total"), candidate)
    assert not (tmp_path / trials.FOLDER).exists()
    assert Trials(tmp_path, asked(), train, fold_of).chosen == candidate
    with pytest.raises(ConfigError, match="started with other settings: folds"):
        Trials(tmp_path, asked(folds=7), train, fold_of)
    other = make_data(NUM_CLASSES, NUM_EXAMPLES - 1, num_features=2).splits["train"]
    with pytest.raises(ConfigError, match="started with other training labels"):
        Trials(tmp_path, asked(), other, fold_of)
