import pytest
import torch

from cilkit.learners import ridge


def problem(n, m=40, classes=4, seed=0, scale=3.0):
    """ReLU features of a random projection and one-hot labels, float64, as RanPAC has them; 10 more are held out."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n + 10,), generator=generator)
    centres = torch.randn(classes, 12, generator=generator, dtype=torch.float64)
    features = centres[labels] + scale * torch.randn(n + 10, 12, generator=generator, dtype=torch.float64)
    inputs = torch.relu(features @ torch.randn(12, m, generator=generator, dtype=torch.float64))
    targets = ridge.one_hot(labels, classes, torch.float64)
    return inputs[:n], targets[:n], inputs[n:], targets[n:]


def solves(inputs, targets, held_inputs, held_targets, grid=ridge.GRID):
    """One general solve a value, as in the released code."""
    gram, cross = inputs.T @ inputs, inputs.T @ targets
    eye = torch.eye(len(gram), dtype=gram.dtype)
    fits = [held_inputs @ torch.linalg.solve(gram + value * eye, cross) for value in grid]
    return torch.stack([torch.nn.functional.mse_loss(fit, held_targets) for fit in fits])


def primal(inputs, targets, *held):
    return ridge.losses_primal(inputs.T @ inputs, inputs.T @ targets, *held)


@pytest.mark.parametrize(("way", "n"), [(ridge.losses_dual, 25), (primal, 25), (primal, 90), (ridge.losses_dual, 90)])
@pytest.mark.parametrize("seed", range(3))
def test_one_eigendecomposition_gives_the_losses_and_the_choice_of_a_solve_a_value(way, n, seed):
    data = problem(n, seed=seed)
    expected, found = solves(*data), way(*data)
    torch.testing.assert_close(found[3:], expected[3:], rtol=1e-5, atol=1e-10)  # below, the solves are noise if n < M
    assert found.argmin() == expected.argmin()


@pytest.mark.parametrize("way", [ridge.losses_dual, primal])
def test_repeated_samples_add_no_noise_where_lambda_is_tiny(way):
    """A singular Gram matrix: the limit is the pseudo-inverse's."""
    inputs, targets, *held = problem(20)
    fit = held[0] @ torch.linalg.pinv(inputs) @ targets
    twice = torch.cat([inputs, inputs]), torch.cat([targets, targets])
    found = way(*twice, *held)
    torch.testing.assert_close(found[0], torch.mean((fit - held[1]) ** 2), rtol=1e-6, atol=0)


def test_sequential_equals_joint_in_any_order_of_tasks_and_batches():
    inputs, targets, *_ = problem(300, m=60)
    joint = torch.linalg.solve(inputs.T @ inputs + 10 * torch.eye(60, dtype=torch.float64), inputs.T @ targets)
    for seed in range(3):
        gram, cross = torch.zeros(60, 60, dtype=torch.float64), torch.zeros(60, 4, dtype=torch.float64)
        for rows in torch.randperm(300, generator=torch.Generator().manual_seed(seed)).split(37):
            gram += inputs[rows].T @ inputs[rows]
            cross += inputs[rows].T @ targets[rows]
        found = ridge.solve(gram, cross, 10.0)
        assert (found - joint).norm() / joint.norm() < 1e-10


def test_a_gram_matrix_that_rounding_made_indefinite_is_solved_all_the_same():
    inputs, targets, *_ = problem(20, m=60)
    gram = inputs.T @ inputs * 1e6
    gram -= 1e-6 * torch.eye(60, dtype=torch.float64)  # what rounding may do to the 40 directions without data
    found = ridge.solve(gram, inputs.T @ targets * 1e6, 1e-8)
    torch.testing.assert_close(inputs @ found, targets, atol=1e-6, rtol=0)
