"""What one step of one row may still spend: the rest of the pipeline's budget, and the step's own `limit`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


class BudgetExhausted(Exception):
    """A stage that does not call `grant` sent a request, and the budget has none left."""


@dataclass
class Allowance:
    """Requests and items that one step of one row may still use; `grant` takes from both."""

    requests: float = math.inf
    """Requests left of the pipeline's budget."""
    items: float = math.inf
    """Items (texts, questions, draws …) left of the step's limit."""
    over_limit: int = 0
    """Items refused so far."""
    consulted: bool = False
    """Whether the stage has called `grant`."""

    def grant(self, costs: Sequence[int]) -> int:
        """Number of items, counted from the first, that requests and limit are enough for.

        Args:
            costs: the requests that each item takes.
        """
        self.consulted = True
        granted = 0
        for cost in costs:
            if self.items < 1 or cost > self.requests:
                break
            self.requests -= cost
            self.items -= 1
            granted += 1
        self.over_limit += len(costs) - granted
        return granted

    def check(self) -> None:
        """To be called before each request. Raises BudgetExhausted unless the stage was granted its items."""
        if not self.consulted and self.requests < 1:
            raise BudgetExhausted
