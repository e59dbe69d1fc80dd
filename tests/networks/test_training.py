"""Training: on weighted rows as if on every job, the best weights of each member kept, the same numbers for a seed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from calmlflow.errors import CalmlflowError
from calmlflow.networks.architectures import TargetRange
from calmlflow.networks.config import TrainingConfig
from calmlflow.networks.rows import distinct_rows, training_rows
from calmlflow.networks.training import train_network
from tests.samples.network_samples import member_answers

# Wide enough that no answer of these networks is cut.
TARGET = TargetRange(log_mean=1.0, log_sd=0.5, floor=1e-6, ceiling=1e6)
# The weights that the first epoch scores are the initial ones.
UNTRAINED = TrainingConfig(epochs=1, refit_epochs=0, members=3)
BRIEF = TrainingConfig(epochs=60, refit_epochs=0, members=2, learning_rate=0.01)


def draw(jobs: int, seed: int):
    """Features of jobs of which many are alike, and a bin and a value that follow from them, with noise."""
    generator = np.random.default_rng(seed)
    features = generator.integers(0, 3, (jobs, 9)).astype(float)
    features[:, 2:] = 0
    bins = np.minimum(features[:, 0] + (generator.random(jobs) < 0.2), 3).astype(int)
    return features, bins, np.exp(features[:, 1] + generator.normal(0, 0.3, jobs))


def joined(*parts):
    """One set of jobs, in order."""
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


JOBS = draw(500, 1)


def evenly(jobs, members: int):
    return np.arange(len(jobs[0])) % members


def train(network: str, config: TrainingConfig, jobs=JOBS, dealt=None, seed: int = 0, target=TARGET, **more):
    features, bins, values = jobs
    rows = distinct_rows(features)
    given = bins if network == "mem_clf" else values
    dealt = evenly(jobs, config.members) if dealt is None else dealt
    prepared = training_rows(rows.features, rows, given, dealt, network == "mem_clf")
    return train_network(network, prepared, config, seed, None if network == "mem_clf" else target, **more)


def job_scores(network: str, answers, jobs, chosen=slice(None)) -> tuple[float, float]:
    """Loss and metric of what is said of each job, one job after the other."""
    _, bins, values = jobs
    answers = np.asarray(answers, dtype=float)[chosen]
    if network == "mem_clf":
        bins = bins[chosen]
        return -np.log(answers[np.arange(len(bins)), bins]).mean(), np.mean(answers.argmax(axis=1) == bins)
    squared = np.mean((answers[:, 0] - values[chosen]) ** 2)
    return squared, np.sqrt(squared)


def answers_of_members(network: str, trained, members: int, jobs):
    """Shape (members, n, 4) or (members, n, 1)."""
    features = jobs[0].astype(np.float32)
    return member_answers(trained.model, members, features, None if network == "mem_clf" else TARGET)


@pytest.mark.parametrize(("network", "metric"), [("mem_clf", "accuracy"), ("mem_reg", "rmse")])
def test_the_history_speaks_of_jobs_and_left_out_of_those_that_a_member_did_not_see(network, metric):
    # Parts of different sizes: the members count alike all the same.
    dealt = np.repeat([0, 1, 2], [250, 150, 100])
    trained = train(network, UNTRAINED, dealt=dealt)
    answers = answers_of_members(network, trained, 3, JOBS)
    learnt = [job_scores(network, answers[member], JOBS, dealt != member) for member in range(3)]
    validated = [job_scores(network, answers[member], JOBS, dealt == member) for member in range(3)]
    assert list(trained.history) == ["loss", metric, "val_loss", f"val_{metric}"]
    found = [values.item() for values in trained.history.values()]
    assert found == pytest.approx([*np.mean(learnt, axis=0), *np.mean(validated, axis=0)], rel=1e-4)
    expected = answers[dealt, np.arange(len(dealt))]
    assert trained.left_out.shape == expected.shape
    np.testing.assert_allclose(trained.left_out, expected, rtol=1e-4)
    # Which the others would not have said.
    assert not np.allclose(answers[(dealt + 1) % 3, np.arange(len(dealt))], expected, rtol=1e-2)


def test_what_is_left_out_is_answered_within_the_range_that_was_seen():
    target = TargetRange(log_mean=1.0, log_sd=0.5, floor=2.5, ceiling=3.0)
    left_out = train("mem_reg", UNTRAINED, target=target).left_out
    assert (left_out.min(), left_out.max()) == (pytest.approx(2.5), pytest.approx(3.0))
    assert np.any((left_out > 2.51) & (left_out < 2.99))


def test_each_member_keeps_the_weights_that_validated_best_on_its_own_part():
    """The jobs that member 0 leaves out say the opposite of what it learns; those of the others do not."""
    features, bins, values = JOBS
    dealt = np.repeat([0, 1, 2], [40, 230, 230])
    jobs = features, np.where(dealt == 0, 3 - bins, bins), values

    def left_out_losses(trained):
        return np.array([job_scores("mem_clf", trained.left_out, jobs, dealt == member)[0] for member in range(3)])

    config = TrainingConfig(epochs=200, refit_epochs=0, members=3, learning_rate=0.01)
    trained = train("mem_clf", config, jobs, dealt)
    kept, initial = left_out_losses(trained), left_out_losses(train("mem_clf", UNTRAINED, jobs, dealt))
    # The weights of any one epoch are bad for one of them.
    assert kept[0] <= initial[0]
    assert max(kept[1:] / initial[1:]) < 0.6
    assert kept.mean() < 0.9 * trained.history["val_loss"].min()
    # And what is kept is what the model is made of.
    answers = answers_of_members("mem_clf", trained, 3, jobs)
    np.testing.assert_allclose(answers[dealt, np.arange(len(dealt))], trained.left_out, rtol=1e-4, atol=1e-7)


def test_the_best_epoch_is_that_of_the_lowest_validation_loss_and_training_ends_soon_after():
    """Members that leave out the opposite of what they learn: every step after the first few hurts both."""
    features, bins, values = JOBS
    dealt = evenly(JOBS, 2)
    jobs = (features, np.where(dealt == 0, bins, 3 - bins), values)
    seen: list[tuple[int, int, float]] = []
    config = TrainingConfig(epochs=2000, refit_epochs=0, members=2, learning_rate=0.01, patience=60)
    trained = train("mem_clf", config, jobs, dealt, on_progress=lambda *words: seen.append(words))
    losses = trained.history["val_loss"]
    assert trained.best_epoch == losses.argmin()
    assert losses[-1] > 1.5 * losses.min()
    kept = np.mean([job_scores("mem_clf", trained.left_out, jobs, dealt == member)[0] for member in range(2)])
    # A member's own best may lie beside the best of the mean, never above it.
    assert 0.9 * losses.min() < kept <= losses.min() * (1 + 1e-4)
    # Whether validation still gets better is decided after every 50 epochs.
    epochs = len(trained.history["loss"])
    assert trained.best_epoch + 60 < epochs <= trained.best_epoch + 60 + 50
    assert [done for done, _, _ in seen] == list(range(50, epochs + 1, 50))
    assert {total for _, total, _ in seen} == {2000}
    assert [loss for _, _, loss in seen] == pytest.approx(trained.history["val_loss"][49::50].tolist())


@pytest.mark.parametrize("network", ["mem_clf", "mem_reg"])
def test_what_can_be_learnt_is_learnt_and_the_same_seed_gives_the_same_numbers(network):
    one, same, other = (train(network, BRIEF, seed=seed) for seed in (1, 1, 2))
    losses = one.history["loss"]
    assert len(losses) == BRIEF.epochs
    assert losses.min() < 0.6 * losses[0]
    for weight, again in zip(one.model.get_weights(), same.model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, again)
    for name, values in one.history.items():
        np.testing.assert_array_equal(values, same.history[name])
    np.testing.assert_array_equal(one.left_out, same.left_out)
    assert np.any(one.history["loss"] != other.history["loss"])


@pytest.mark.parametrize("network", ["mem_clf", "mem_reg"])
def test_a_job_has_no_part_in_what_is_said_of_it_when_it_was_left_out(network):
    """A job in a row of its own, with another target: the member that leaves it out says the same to the last bit."""
    # So few and small steps that every one helps: a job does have a say in when its member was best. And no share of
    # the linear loss, whose scale is the variance of all targets.
    config = TrainingConfig(epochs=20, refit_epochs=5, members=2, learning_rate=0.001, linear_share=0.0)
    alone = np.array([[1.0, 1, 1, 0, 0, 0, 0, 0, 0]])
    dealt = np.append(evenly(JOBS, 2), 1)
    one, other = (
        train(network, config, joined(JOBS, (alone, [rung], [value])), dealt) for rung, value in ((1, 3.0), (3, 9.0))
    )
    np.testing.assert_array_equal(one.left_out[dealt == 1], other.left_out[dealt == 1])
    # The other member learnt from it.
    assert np.any(one.left_out[dealt == 0] != other.left_out[dealt == 0])


def test_the_refit_learns_the_jobs_that_were_left_out():
    """One kind of job is left out by member 0 altogether, and needs bin 3, which no other job needs."""
    features, bins, values = JOBS
    rare = (np.tile([0.0, 0, 5, 0, 0, 0, 0, 0, 0], (40, 1)), np.full(40, 3), np.full(40, 20.0))
    jobs = joined((features, np.minimum(bins, 2), values), rare)
    dealt = np.append(evenly(JOBS, 2), np.zeros(40, dtype=int))
    is_rare = np.arange(len(dealt)) >= len(bins)
    seen: list[int] = []

    def on_progress(epoch: int, epochs: int, loss: float) -> None:
        seen.append(epoch)
        assert epochs == 60 + refit.refit_epochs

    refit = TrainingConfig(epochs=60, refit_epochs=200, members=2, learning_rate=0.01)
    before = train("mem_clf", BRIEF, jobs, dealt)
    after = train("mem_clf", refit, jobs, dealt, on_progress=on_progress)
    answers = [*answers_of_members("mem_clf", before, 2, jobs)[:1], *answers_of_members("mem_clf", after, 2, jobs)]
    assert [job_scores("mem_clf", of_member, jobs, is_rare)[1] for of_member in answers] == [0, 1, 1]
    # What calibrates kill times must not have seen these jobs.
    np.testing.assert_array_equal(after.left_out, before.left_out)
    np.testing.assert_array_equal(after.history["val_loss"], before.history["val_loss"])
    assert (seen, after.best_epoch) == ([50, 60, 110, 160, 210, 260], before.best_epoch)


def test_the_refit_goes_on_though_all_jobs_are_harder_than_those_that_were_left_out():
    """Member 0 leaves out jobs that are all alike: it validated better on them than anybody can be on all jobs."""
    easy = (np.zeros((300, 9)), np.zeros(300, dtype=int), np.ones(300))
    jobs = joined(JOBS, easy)
    dealt = np.repeat([1, 0], [len(JOBS[0]), 300])
    losses = []
    for refit_epochs in (0, 100):
        config = TrainingConfig(epochs=60, refit_epochs=refit_epochs, members=2, learning_rate=0.01)
        answers = answers_of_members("mem_clf", train("mem_clf", config, jobs, dealt), 2, jobs)
        losses.append([job_scores("mem_clf", of_member, jobs)[0] for of_member in answers])
    left_out = job_scores("mem_clf", answers[0], jobs, dealt == 0)[0]
    assert left_out < losses[1][0] < losses[0][0]
    assert losses[1][1] < losses[0][1]


def test_the_refit_knows_nothing_of_the_steps_before_it():
    """Adam's first step goes as far as the learning rate says in each direction; with momentum it would not."""
    before, after = (
        train("mem_clf", TrainingConfig(50, refit, members=2, learning_rate=1e-4, weight_decay=0.0)).model.get_weights()
        for refit in (0, 2)
    )
    steps = np.concatenate([np.abs(one - other).ravel() for one, other in zip(before, after, strict=True)])
    # Of two epochs the second is the better one, so one step is kept; none for units that no job turns on.
    moved = steps[steps > 0]
    assert len(moved) > 0.2 * len(steps)
    assert np.mean(np.abs(moved / 1e-4 - 1) < 0.05) > 0.8


@pytest.mark.parametrize("linear_share", [0.0, 1.0])
def test_a_regressor_learns_the_mean_of_jobs_that_are_alike(linear_share):
    jobs = (np.ones((6, 9)), np.zeros(6, dtype=int), np.array([1.0, 2.0, 9.0, 1.0, 2.0, 9.0]))
    config = TrainingConfig(epochs=300, refit_epochs=0, members=2, learning_rate=0.01, linear_share=linear_share)
    trained = train("mem_reg", config, jobs, np.repeat([0, 1], 3))
    # Neither the median (2) nor the mean of the logarithms (2.6).
    np.testing.assert_allclose(trained.model(np.ones((1, 9))), 4.0, rtol=0.01)
    # By hand: (9 + 4 + 25) / 3, which nobody can go below.
    assert trained.history["loss"].min() == pytest.approx(38 / 3, rel=1e-3)


def test_the_linear_share_decides_which_rows_are_served():
    """Two rows, one with much the larger target, that no network can tell apart."""
    rows = distinct_rows(np.repeat([[0.0] * 9, [1.0] * 9], 2, axis=0))
    prepared = training_rows(np.ones((2, 9)), rows, [2.0, 2.0, 200.0, 200.0], [0, 1, 0, 1], is_classifier=False)
    answers = []
    for share in (0.0, 1.0):
        config = TrainingConfig(epochs=300, refit_epochs=0, members=2, learning_rate=0.01, linear_share=share)
        trained = train_network("mem_reg", prepared, config, 0, TARGET)
        answers.append(trained.model(prepared.inputs[:1]).numpy().item())
    # The error of the logarithm wants the geometric mean, the error itself the mean.
    assert answers == [pytest.approx(20, rel=0.05), pytest.approx(101, rel=0.05)]


def test_weight_decay_makes_weights_smaller():
    sizes = []
    for decay in (0.0, 1.0):
        config = TrainingConfig(epochs=60, refit_epochs=0, members=2, learning_rate=0.01, weight_decay=decay)
        weights = train("mem_clf", config).model.get_weights()
        sizes.append(sum(float(np.square(weight).sum()) for weight in weights))
    assert sizes[1] < 0.8 * sizes[0]


def test_a_loss_that_is_not_finite_is_told():
    features, bins, values = JOBS
    jobs = (np.where(features == 2, np.inf, features), bins, values)
    expected = r"mem_clf: the loss is not finite from epoch 0 on; .* learning_rate \(0.01\)"
    with pytest.raises(CalmlflowError, match=expected):
        train("mem_clf", BRIEF, jobs)


def test_networks_train_where_spacekit_has_changed_how_tensorflow_counts():
    """It turns NumPy behaviour on for the whole process, where operators refuse variables."""
    code = """
import numpy as np
from tests.networks import test_training as own
expected = own.train("mem_reg", own.BRIEF).history["loss"]
from tensorflow.python.ops.numpy_ops import np_config
np_config.enable_numpy_behavior()
np.testing.assert_allclose(own.train("mem_reg", own.BRIEF).history["loss"], expected, rtol=1e-3)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
