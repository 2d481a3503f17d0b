"""What a run costs: while it goes on, against its limits, and estimated from the rows that are done."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from scalecap.config.settings import Settings
from scalecap.engines.settings import RoleSettings
from scalecap.interpreter.dispatch import RowUsage, RunUsage
from scalecap.run.journal import JOURNAL

TOKENS_PER_PRICE = 1_000_000
"""Tokens that a price is for."""


class Estimate(NamedTuple):
    """A total with its 95 % interval, from the mean of the rows that are done (Student's t)."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class CostEstimate:
    """What all rows of the data take."""

    rows: int
    """Of the data."""
    done: int
    """Rows that it is estimated from."""
    requests: Estimate
    prompt_tokens: Estimate
    generated_tokens: Estimate
    seconds: float | None = None
    """At the pace of this run's rows; a longer run is faster, since it keeps the engine busier."""
    cost: Estimate | None = None
    """In the currency of `engine.price`; None without prices."""

    def __str__(self) -> str:
        parts = [
            f"{_shown(self.requests)} requests",
            f"{_shown(self.prompt_tokens)} prompt tokens",
            f"{_shown(self.generated_tokens)} generated",
        ]
        if self.seconds is not None:
            parts.append(f"{_duration(self.seconds)} at this pace")
        if self.cost is not None:
            parts.append(f"a cost of {self.cost.mean:.4g} ({self.cost.low:.4g} to {self.cost.high:.4g})")
        return f"all {self.rows:,} rows, by {self.done} of them: about {', '.join(parts)}"


def extrapolate(values: Iterable[float], rows: int) -> Estimate:
    """The sum over `rows` rows of what these rows have; an infinite interval from a single one."""
    from scipy.stats import t

    seen = list(values)
    mean = math.fsum(seen) / len(seen)
    if len(seen) == 1:
        return Estimate(mean * rows, 0.0, math.inf)
    left = max(rows - len(seen), 0)  # those that are done are known
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in seen) / (len(seen) - 1))
    # Of the mean of the rows to come and of that of the rows seen.
    error = t.ppf(0.975, len(seen) - 1) * spread * math.sqrt(left * (1 + left / len(seen)))
    return Estimate(mean * rows, max(mean * rows - error, math.fsum(seen)), mean * rows + error)


def estimate_cost(
    usages: Iterable[RowUsage], rows: int, *, seconds: float | None = None, price: float | None = None
) -> CostEstimate | None:
    """What all `rows` rows take, from what these took; None when there are none.

    Args:
        seconds: that one row took.
        price: that one row took, on average.
    """
    seen = list(usages)
    if not seen or rows < 1:
        return None
    requests, prompt, generated = (extrapolate([usage[place] for usage in seen], rows) for place in range(3))
    pace = None if seconds is None else seconds * rows
    cost = None
    if price is not None:
        tokens = extrapolate([usage.prompt_tokens + usage.generated_tokens for usage in seen], rows)
        cost = Estimate(*(price * rows * each / (tokens.mean or 1.0) for each in tokens))
    return CostEstimate(rows, len(seen), requests, prompt, generated, pace, cost)


def recorded_usage(folder: Path) -> Iterator[RowUsage]:
    """What each row took that a run in the folder has done, by its journal."""
    try:
        with (folder / JOURNAL).open("rb") as file:
            for line in file:
                match json.loads(line):
                    case {"usage": [int(requests), int(prompt), int(generated)]}:
                        yield RowUsage(requests, prompt, generated)
    except (OSError, ValueError):  # no run there, or a line that was cut
        return


def token_cost(
    usage: RunUsage, asking: Mapping[str, str], roles: Mapping[str, RoleSettings], *, reused: bool = False
) -> float | None:
    """What the tokens of each step cost; None when a step's engine has no price.

    Args:
        asking: role of each step that asks a model, by its name.
        reused: counts tokens of replies from the cache too, at the full price.
    """
    total = 0.0
    for step, count in usage.steps.items():
        price = roles[asking[step]].engine.price
        if price.prompt is None or price.generated is None:
            return None
        cached = price.prompt if price.cached is None else price.cached
        more = (count.reused_prompt_tokens, count.reused_generated_tokens) if reused else (0, 0)
        total += (count.prompt_tokens - count.cached_tokens + more[0]) * price.prompt
        total += count.cached_tokens * cached + (count.generated_tokens + more[1]) * price.generated
    return total / TOKENS_PER_PRICE


def limit_reached(settings: Settings, usage: RunUsage, cost: float | None) -> str:
    """Which of `max_requests`, `max_tokens` and `max_cost` the run has reached; empty when none."""
    limits = {name: getattr(settings, name) for name in ("max_requests", "max_tokens", "max_cost")}
    if all(most is None for most in limits.values()):  # every row asks this
        return ""
    total = usage.total
    computed = total.requests - total.reused
    tokens = total.prompt_tokens + total.generated_tokens
    taken = {"max_requests": computed, "max_tokens": tokens, "max_cost": cost}
    for name, value in taken.items():
        most = limits[name]
        if most is not None and value is not None and value >= most:
            return f"{name}={most:g} is reached: {value:,.6g}; the same command goes on with as much again"
    return ""


def _shown(estimate: Estimate) -> str:
    high = f"{estimate.high:,.0f}" if math.isfinite(estimate.high) else "?"
    return f"{estimate.mean:,.0f} ({estimate.low:,.0f} to {high})"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
