"""Training: on weighted rows as if on every job, the best weights kept, the same numbers for the same seed."""

import numpy as np
import pytest

from calmlflow.hst.errors import CalmlflowError
from calmlflow.networks.architectures import TargetRange, build_classifier, build_regressor
from calmlflow.networks.distinct import distinct_rows
from calmlflow.networks.perceptron import Perceptron
from calmlflow.networks.training import RowSet, TrainingConfig, classifier_rows, regressor_rows, train_network

# Wide enough that no answer of these networks is cut.
TARGET = TargetRange(log_mean=1.0, log_sd=0.5, floor=1e-6, ceiling=1e6)
# The weights that the first epoch scores are the initial ones.
UNTRAINED = TrainingConfig(epochs=1, refit_epochs=0, restarts=1)
BRIEF = TrainingConfig(epochs=60, refit_epochs=0, restarts=1, learning_rate=0.01)


def draw(jobs: int, seed: int):
    """Features of jobs of which many are alike, and a bin and a value that follow from them, with noise."""
    generator = np.random.default_rng(seed)
    features = generator.integers(0, 3, (jobs, 9)).astype(float)
    features[:, 2:] = 0
    bins = np.minimum(features[:, 0] + (generator.random(jobs) < 0.2), 3).astype(int)
    return features, bins, np.exp(features[:, 1] + generator.normal(0, 0.3, jobs))


def row_set(network: str, features, bins, values):
    rows = distinct_rows(features)
    if network == "mem_clf":
        return classifier_rows(rows.features, rows, bins)
    return regressor_rows(rows.features, rows, values)


FIT, HELD_BACK = draw(400, 1), draw(100, 2)
BOTH = tuple(np.concatenate(parts) for parts in zip(FIT, HELD_BACK, strict=True))


def train(network: str, config: TrainingConfig, seed: int = 0, fit=FIT, held_back=HELD_BACK, both=BOTH, **more):
    sets = [row_set(network, *jobs) for jobs in (fit, held_back, both)]
    return train_network(
        network, *sets, config=config, seed=seed, target=None if network == "mem_clf" else TARGET, **more
    )


def job_scores(network: str, model, jobs) -> tuple[float, float]:
    """Loss and metric, one job after the other."""
    features, bins, values = jobs
    answers = model(features.astype(np.float32)).numpy().astype(float)
    if network == "mem_clf":
        return -np.log(answers[np.arange(len(bins)), bins]).mean(), np.mean(answers.argmax(axis=1) == bins)
    squared = np.mean((answers[:, 0] - values) ** 2)
    return squared, np.sqrt(squared)


@pytest.mark.parametrize(("network", "metric"), [("mem_clf", "accuracy"), ("mem_reg", "rmse")])
def test_the_history_speaks_of_jobs(network, metric):
    trained = train(network, UNTRAINED)
    assert list(trained.history) == ["loss", metric, "val_loss", f"val_{metric}"]
    found = [values.item() for values in trained.history.values()]
    expected = [*job_scores(network, trained.model, FIT), *job_scores(network, trained.model, HELD_BACK)]
    assert found == pytest.approx(expected, rel=1e-4)


def test_training_begins_at_the_weights_of_its_seed_and_goes_on_with_the_restart_that_validates_best():
    count, seed = 4, 6
    perceptron = Perceptron.of("mem_clf", 4)
    losses = []
    for parameters in perceptron.initial(count, seed):
        model = build_classifier()
        perceptron.put_into(model, parameters)
        losses.append(job_scores("mem_clf", model, HELD_BACK)[0])
    # Not the first one, which any training without restarts would take.
    assert np.argmin(losses) != 0
    trained = train("mem_clf", TrainingConfig(epochs=1, refit_epochs=0, restarts=count), seed)
    assert trained.history["val_loss"].item() == pytest.approx(min(losses), rel=1e-4)
    assert job_scores("mem_clf", trained.model, HELD_BACK)[0] == pytest.approx(min(losses), rel=1e-4)


@pytest.fixture(scope="module")
def overfitted():
    """A classifier whose validation jobs say the opposite of what it learns: every step after the first few hurts."""
    features, bins, values = FIT
    config = TrainingConfig(epochs=2000, refit_epochs=0, restarts=1, learning_rate=0.01, patience=60)
    seen: list[tuple[int, int, float]] = []
    held_back = (features[:100], 3 - bins[:100], values[:100])
    return train("mem_clf", config, held_back=held_back, on_progress=lambda *words: seen.append(words)), held_back, seen


def test_the_weights_that_validated_best_are_kept(overfitted):
    trained, held_back, _ = overfitted
    losses = trained.history["val_loss"]
    assert trained.best_epoch == losses.argmin()
    assert losses[-1] > 1.5 * losses.min()
    loss, accuracy = job_scores("mem_clf", trained.model, held_back)
    assert loss == pytest.approx(losses.min(), rel=1e-4)
    assert accuracy == pytest.approx(trained.history["val_accuracy"][trained.best_epoch], abs=1e-5)
    np.testing.assert_allclose(trained.validated, trained.model(distinct_rows(held_back[0]).features), rtol=1e-5)


def test_training_ends_when_validation_gets_no_better(overfitted):
    trained, _, seen = overfitted
    epochs = len(trained.history["loss"])
    # Decided after every 50 epochs.
    assert trained.best_epoch + 60 < epochs <= trained.best_epoch + 60 + 50
    assert [done for done, _, _ in seen] == list(range(50, epochs + 1, 50))
    assert {total for _, total, _ in seen} == {2000}


@pytest.mark.parametrize("network", ["mem_clf", "mem_reg"])
def test_what_can_be_learnt_is_learnt_and_the_same_seed_gives_the_same_numbers(network):
    one, same, other = (train(network, BRIEF, seed) for seed in (1, 1, 2))
    losses = one.history["loss"]
    assert len(losses) == BRIEF.epochs
    assert losses.min() < 0.6 * losses[0]
    for weight, again in zip(one.model.get_weights(), same.model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, again)
    for name, values in one.history.items():
        np.testing.assert_array_equal(values, same.history[name])
    assert np.any(one.history["loss"] != other.history["loss"])


def test_the_refit_learns_the_jobs_that_were_held_back():
    """One kind of job is only among the held-back ones, and needs bin 3, which no other job needs."""
    rare = (np.tile([0.0, 0, 5, 0, 0, 0, 0, 0, 0], (40, 1)), np.full(40, 3), np.full(40, 20.0))
    both = tuple(np.concatenate(parts) for parts in zip(FIT, rare, strict=True))
    features, bins, values = FIT
    fit = (features, np.minimum(bins, 2), values)
    both = (both[0], np.minimum(both[1], np.where(np.arange(len(both[1])) < len(bins), 2, 3)), both[2])
    seen: list[int] = []

    def on_progress(epoch: int, epochs: int, loss: float) -> None:
        seen.append(epoch)
        assert epochs == 60 + refit.refit_epochs

    refit = TrainingConfig(epochs=60, refit_epochs=200, restarts=1, learning_rate=0.01)
    before = train("mem_clf", BRIEF, fit=fit, held_back=rare, both=both)
    after = train("mem_clf", refit, fit=fit, held_back=rare, both=both, on_progress=on_progress)
    assert job_scores("mem_clf", before.model, rare)[1] == 0
    assert job_scores("mem_clf", after.model, rare)[1] == 1
    # What calibrates kill times must not have seen these jobs.
    np.testing.assert_array_equal(after.validated, before.validated)
    np.testing.assert_array_equal(after.history["val_loss"], before.history["val_loss"])
    assert (seen, after.best_epoch) == ([50, 60, 110, 160, 210, 260], before.best_epoch)


@pytest.mark.parametrize("linear_share", [0.0, 1.0])
def test_a_regressor_learns_the_mean_of_jobs_that_are_alike(linear_share):
    jobs = (np.ones((3, 9)), None, np.array([1.0, 2.0, 9.0]))
    config = TrainingConfig(epochs=300, refit_epochs=0, restarts=1, learning_rate=0.01, linear_share=linear_share)
    trained = train("mem_reg", config, fit=jobs, held_back=jobs, both=jobs)
    # Neither the median (2) nor the mean of the logarithms (2.6).
    np.testing.assert_allclose(trained.model(np.ones((1, 9))), 4.0, rtol=0.01)
    # By hand: (9 + 4 + 25) / 3, which nobody can go below.
    assert trained.history["loss"].min() == pytest.approx(38 / 3, rel=1e-3)


def test_the_linear_share_decides_which_rows_are_served():
    """Two rows, one with much the larger target, that no network can tell apart."""
    rows = RowSet(np.ones((2, 9), np.float32), np.array([2, 200], np.float32), np.array([0.5, 0.5], np.float32))
    answers = []
    for share in (0.0, 1.0):
        config = TrainingConfig(epochs=300, refit_epochs=0, restarts=1, learning_rate=0.01, linear_share=share)
        trained = train_network("mem_reg", rows, rows, rows, config, 0, TARGET)
        answers.append(trained.model(rows.inputs[:1]).numpy().item())
    # The error of the logarithm wants the geometric mean, the error itself the mean.
    assert answers == [pytest.approx(20, rel=0.05), pytest.approx(101, rel=0.05)]


def test_weight_decay_makes_weights_smaller():
    sizes = [
        sum(
            float(np.square(weight).sum())
            for weight in train(
                "mem_clf",
                TrainingConfig(epochs=60, refit_epochs=0, restarts=1, learning_rate=0.01, weight_decay=decay),
            ).model.get_weights()
        )
        for decay in (0.0, 1.0)
    ]
    assert sizes[1] < 0.8 * sizes[0]


def test_a_loss_that_is_not_finite_is_told():
    features, bins, values = FIT
    jobs = (np.where(features == 2, np.inf, features), bins, values)
    expected = r"mem_clf: the loss is not finite from epoch 0 on; .* learning_rate \(0.01\)"
    with pytest.raises(CalmlflowError, match=expected):
        train("mem_clf", BRIEF, fit=jobs, held_back=jobs, both=jobs)


def test_a_regressor_is_saved_as_it_was_trained():
    """What is minimised works on the network without the way back; what is given has it."""
    trained = train("mem_reg", BRIEF)
    model, standardised = build_regressor("mem_reg", TARGET)
    model.set_weights(trained.model.get_weights())
    features = FIT[0].astype(np.float32)
    expected = np.exp(standardised(features).numpy() * TARGET.log_sd + TARGET.log_mean)
    np.testing.assert_allclose(trained.model(features), expected, rtol=1e-4)
