"""Bins of records: within their budget, and of about equal edges once they are dealt anew."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.data.packing import Budget, balance, pack
from sciml.errors import UserError


def test_a_record_over_the_budget_gets_its_own_bin():
    costs = np.array([[1, 10, 0], [1, 500, 0], [1, 10, 0], [1, 600, 0]])
    bins = pack(costs, Budget(max_nodes=100))
    assert sorted(map(sorted, bins)) == [[0, 2], [1], [3]]


@pytest.mark.parametrize("budget", [(None, None, None), (0, None, None), (1, -5, None)])
def test_wrong_budgets(budget):
    with pytest.raises(UserError, match="batch: "):
        Budget(*budget)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 80), min_size=2, max_size=60), st.integers(2, 8), st.integers(60, 200))
def test_dealing_anew_keeps_the_records_and_the_budget_and_evens_the_edges(nodes, count, max_nodes):
    costs = np.stack([np.ones(len(nodes), int), np.array(nodes), np.array(nodes) * 12], axis=1)
    budget = Budget(max_nodes=max_nodes)
    bins = pack(costs, budget)[:count]
    dealt = balance(costs, bins, budget)
    assert sorted(i for members in dealt for i in members) == sorted(i for members in bins for i in members)
    assert len(dealt) == len(bins)
    assert all(dealt)
    assert all(costs[members, 1].sum() <= max_nodes or len(members) == 1 for members in dealt)
    most = [max(costs[members, 2].sum() for members in found) for found in (dealt, bins)]
    assert most[0] <= most[1]
