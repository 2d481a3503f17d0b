"""What a run costs: so far, against its limits, and extrapolated from finished rows to all."""

import json
import math
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from scalecap.config.settings import Settings
from scalecap.engines.settings import RoleSettings
from scalecap.interpreter.dispatch import RowUsage, RunUsage
from scalecap.run.journal import JOURNAL

TOKENS_PER_PRICE = 1_000_000
"""Prices are per million tokens."""
NO_ESTIMATE = "No estimate: the number of rows of the data is unknown."


class Estimate(NamedTuple):
    """A total with its 95 % prediction interval, from the mean of the finished rows (Student's t)."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class CostEstimate:
    """What all rows of the data take, extrapolated from finished ones."""

    rows: int
    """Rows of the data."""
    done: int
    """Finished rows that the estimate is made from."""
    requests: Estimate
    prompt_tokens: Estimate
    generated_tokens: Estimate
    seconds: float | None = None
    """At the pace so far; a longer run is faster, since it keeps the engine busier."""
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
        return f"all {self.rows:,} rows, extrapolated from {self.done}: about {', '.join(parts)}"


def extrapolate(values: Iterable[float], rows: int) -> Estimate:
    """The sum over `rows` rows, from the values of some of them; an infinite interval from a single one."""
    from scipy.stats import t

    seen = list(values)
    mean = math.fsum(seen) / len(seen)
    if len(seen) == 1:
        return Estimate(mean * rows, 0.0, math.inf)
    left = max(rows - len(seen), 0)  # finished rows are known
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in seen) / (len(seen) - 1))
    # Variance of the rows to come plus that of the mean of those seen.
    error = t.ppf(0.975, len(seen) - 1) * spread * math.sqrt(left * (1 + left / len(seen)))
    return Estimate(mean * rows, max(mean * rows - error, math.fsum(seen)), mean * rows + error)


def estimate_cost(
    usages: Iterable[RowUsage], rows: int, *, seconds: float | None = None, price: float | None = None
) -> CostEstimate | None:
    """Extrapolates the usage of some rows to all `rows` rows; None when there are none.

    Args:
        seconds: per row.
        price: per row, on average.
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


def recorded_usage(folder: Path) -> Collection[RowUsage]:
    """The usage of each finished row in the journal of a run's folder; none when there is no journal."""
    found: dict[int, RowUsage] = {}
    with suppress(OSError, ValueError), (folder / JOURNAL).open("rb") as file:  # no run there, or a torn line
        for line in file:
            match json.loads(line):
                case {"index": int(index), "usage": [int(requests), int(prompt), int(generated)]}:
                    found[index] = RowUsage(requests, prompt, generated)
    return found.values()


def token_cost(
    usage: RunUsage,
    roles_by_step: Mapping[str, str],
    roles: Mapping[str, RoleSettings],
    *,
    reused: bool = False,
) -> float | None:
    """The cost of all tokens; None when the engine of a step has no price.

    Args:
        roles_by_step: the role of each step that calls a model, by the step's name.
        reused: also counts the tokens of replies from the cache, at the full price.
    """
    total = 0.0
    for step, count in usage.steps.items():
        if step not in roles_by_step:  # it sends no requests, and only has flags
            continue
        price = roles[roles_by_step[step]].engine.price
        if price.prompt is None or price.generated is None:
            return None
        cached = price.prompt if price.cached is None else price.cached
        more = (count.reused_prompt_tokens, count.reused_generated_tokens) if reused else (0, 0)
        total += (count.prompt_tokens - count.cached_tokens + more[0]) * price.prompt
        total += count.cached_tokens * cached + (count.generated_tokens + more[1]) * price.generated
    return total / TOKENS_PER_PRICE


def limit_reached(settings: Settings, usage: RunUsage, cost: float | None) -> str:
    """Which of `max_requests`, `max_tokens` and `max_cost` is reached, as a message; empty when none is."""
    limits = {name: getattr(settings, name) for name in ("max_requests", "max_tokens", "max_cost")}
    if all(limit is None for limit in limits.values()):  # called once per row
        return ""
    total = usage.total
    computed = total.requests - total.reused
    tokens = total.prompt_tokens + total.generated_tokens
    taken = {"max_requests": computed, "max_tokens": tokens, "max_cost": cost}
    for name, value in taken.items():
        limit = limits[name]
        if limit is not None and value is not None and value >= limit:
            shown = f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"
            return f"{name}={limit} reached ({shown}); the same command resumes with a new allowance"
    return ""


def _shown(estimate: Estimate) -> str:
    high = f"{estimate.high:,.0f}" if math.isfinite(estimate.high) else "?"
    return f"{estimate.mean:,.0f} ({estimate.low:,.0f} to {high})"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
