"""Helpers: threads beside a device, none on the CPU."""

import threading

import pytest
import torch

from thought_saes.common.helpers import helpers, made_ahead


def test_on_the_cpu_all_is_done_at_once_by_the_thread_that_asks() -> None:
    with helpers(torch.device("cpu")) as pool:
        assert pool.submit(threading.get_ident).result() == threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            pool.submit(lambda: 1 / 0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])  # the name alone decides
@pytest.mark.parametrize("n_ahead", [0, 2])
def test_what_is_made_ahead_comes_in_order_and_no_more_of_it_than_was_allowed(device: str, n_ahead: int) -> None:
    begun: list[int] = []

    def make(number: int) -> int:
        begun.append(number)
        return -number

    with helpers(torch.device(device)) as pool:
        found = []
        for made in made_ahead(pool, make, range(6), n_ahead):
            found.append(made)
            assert len(begun) <= len(found) + n_ahead
    assert found == [0, -1, -2, -3, -4, -5]
    assert sorted(begun) == list(range(6))


def test_an_error_in_a_helper_is_raised_where_its_work_is_asked_for() -> None:
    with helpers(torch.device("cuda")) as pool, pytest.raises(ZeroDivisionError):
        list(made_ahead(pool, lambda number: 1 // number, [1, 0], 1))
