"""Which old leg becomes which wanted one, so that the least is copied."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

#: Up to so many on either side all ways are looked at; above it the cheapest pair goes first.
EXACT = 6


def match(costs: Sequence[Sequence[int]], new: Sequence[int]) -> list[int | None]:
    """For each wanted (column) the index of the old (row) that becomes it; None: a new one, at
    the cost that `new` says. A pair that costs as much as a new one is none."""
    rows, columns = len(costs), len(costs[0])
    if max(rows, columns) > EXACT:
        return _greedy(costs, new)

    @cache
    def best(column: int, used: int) -> tuple[int, tuple[int | None, ...]]:
        if column == columns:
            return 0, ()
        cost, rest = best(column + 1, used)
        found: tuple[int, tuple[int | None, ...]] = (new[column] + cost, (None, *rest))
        for row in range(rows):
            if used & 1 << row or costs[row][column] >= new[column]:
                continue
            cost, rest = best(column + 1, used | 1 << row)
            if costs[row][column] + cost < found[0]:
                found = costs[row][column] + cost, (row, *rest)
        return found

    return list(best(0, 0)[1])


def _greedy(costs: Sequence[Sequence[int]], new: Sequence[int]) -> list[int | None]:
    pairs = sorted(
        (cost, column, row)
        for row, line in enumerate(costs)
        for column, cost in enumerate(line)
        if cost < new[column]
    )
    chosen: list[int | None] = [None] * len(costs[0])
    used: set[int] = set()
    for _, column, row in pairs:
        if chosen[column] is None and row not in used:
            chosen[column] = row
            used.add(row)
    return chosen
