"""A metric of the embedded world, in a module as a user would have it."""

from collections.abc import Mapping
from typing import Any

from scalecap.scenes.measure import judge
from scalecap.stages import Measures, stage


@stage
def net(texts: list[str], truth: Mapping[str, Any]) -> Measures:
    """True facts less wrong ones, and the share of wrong ones."""
    told = judge(" ".join(texts), truth)
    return {"facts": told.true - told.wrong, "wrong": {"count": told.wrong, "of": told.true + told.wrong}}
