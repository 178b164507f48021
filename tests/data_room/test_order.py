"""The order of examples is arithmetic: complete, shared out without overlap, and the same wherever one starts."""
import numpy as np
import pytest

from simclr_jax.data import order
from simclr_jax.errors import UsageError


def test_permutation_is_frozen():
    """These very numbers, on any machine and NumPy: a resumed run must not meet another order."""
    assert order.permutation(0, 0, 12).tolist() == [0, 2, 11, 9, 1, 8, 5, 4, 3, 10, 6, 7]
    assert order.permutation(7, 3, 12).tolist() == [2, 5, 9, 7, 3, 0, 6, 8, 4, 1, 11, 10]
    assert int((order.permutation(1, 2, 100_000) * np.arange(100_000)).sum()) == 250_260_318_014_247


def test_permutations_are_whole_and_differ_by_seed_and_epoch():
    seen = [order.permutation(seed, epoch, 101) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert all(np.array_equal(np.sort(p), np.arange(101)) for p in seen)
    assert len({p.tobytes() for p in seen}) == 6


@pytest.mark.scorecard(33)
def test_two_processes_share_out_two_epochs_that_batches_do_not_divide():
    """per epoch disjoint across hosts and complete; another order and other pairings the next epoch."""
    size, batch = 27, 6
    hosts = [order.make(3, size, batch, (p, 2)) for p in range(2)]
    steps = 2 * size // batch  # 9 steps are two epochs, the border inside a batch
    seen = [[np.stack(host(step), 1) for step in range(steps)] for host in hosts]
    rows = np.concatenate([r for host in seen for r in host])
    for epoch in (0, 1):
        assert sorted(rows[rows[:, 1] == epoch, 0]) == list(range(size))
    mates = []
    for epoch in (0, 1):
        batches = [{int(r[0]) for host in seen for r in host[s] if r[1] == epoch} for s in range(steps)]
        mates.append({(a, b) for members in batches for a in members for b in members if a < b})
    assert len(mates[0] & mates[1]) < 0.5 * len(mates[0])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_global_batch_does_not_depend_on_the_number_of_processes(count):
    """resuming on another number of processes sees the same examples at each step."""
    one = order.make(5, 30, 8)
    hosts = [order.make(5, 30, 8, (p, count)) for p in range(count)]
    for step in (0, 3, 4, 1000):
        together = np.concatenate([np.stack(h(step), 1) for h in hosts])
        assert np.array_equal(together, np.stack(one(step), 1))


def test_a_permutation_is_made_once_an_epoch(monkeypatch):
    made = []
    real = order.permutation
    monkeypatch.setattr(order, "permutation", lambda *a: made.append(a[1]) or real(*a))
    positions = order.make(0, 10, 4)
    for step in range(10):
        positions(step)
    assert made == [0, 1, 2, 3]


@pytest.mark.scorecard(38)
@pytest.mark.parametrize("size, batch, process, numbers", [
    (7, 8, (0, 1), ["7", "8"]), (100, 9, (0, 2), ["9", "2"]), (100, 8, (2, 2), ["(2, 2)"]), (100, 0, (0, 1), ["0"])])
def test_refusals_carry_the_numbers(size, batch, process, numbers):
    with pytest.raises(UsageError) as e:
        order.make(0, size, batch, process)
    assert all(n in str(e.value) for n in numbers) and "\n" not in str(e.value)
