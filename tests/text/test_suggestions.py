"""Names beside a misspelt one."""

import pytest

from scalecap.text.suggestions import nearest


@pytest.mark.parametrize(
    ("name", "valid", "told"),
    [
        ("verfy", ["verify", "caption"], "nearest: verify"),
        ("zzz", ["verify", "caption"], "there are: caption, verify"),
        ("x", [], "there are none"),
        ("zzz", [f"name{number}" for number in range(51)], "nothing is near it"),
    ],
)
def test_nearest(name: str, valid: list[str], told: str):
    assert nearest(name, valid) == told
