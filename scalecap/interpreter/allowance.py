"""What a step of a row may still ask: the rest of the pipeline's budget, and the step's own limit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


class NothingLeft(Exception):
    """A stage that does not ask what it may has begun to ask, and no request is left."""


@dataclass
class Allowance:
    """What one step of one row may ask. It grows smaller as items are granted."""

    left: float = math.inf
    """Requests left of the budget."""
    limit: float = math.inf
    """Items (texts, questions, draws …) that the step may still ask about."""
    unasked: int = 0
    """Items refused so far."""
    consulted: bool = False
    """Whether the stage has asked what it may."""

    def grant(self, costs: Sequence[int]) -> int:
        """How many of these items may be asked about: the first ones, as far as requests and limit go.

        Args:
            costs: the requests that each item takes.
        """
        self.consulted = True
        granted = 0
        for cost in costs:
            if self.limit < 1 or cost > self.left:
                break
            self.left -= cost
            self.limit -= 1
            granted += 1
        self.unasked += len(costs) - granted
        return granted

    def check(self) -> None:
        """Raises NothingLeft where a stage asks that was granted nothing, and nothing is left."""
        if not self.consulted and self.left < 1:
            raise NothingLeft
