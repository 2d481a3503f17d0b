"""The tokens that a reply may begin with when it means one of a few options."""

from collections import Counter
from collections.abc import Callable, Sequence

from scalecap.engines.base import EngineError


def option_token_ids(encode: Callable[[str], list[int]], options: Sequence[str]) -> list[list[int]]:
    """Token ids by which each option may begin: "yes", " yes", "Yes", " Yes", "YES", " YES".

    A spelling counts when it is a single token. An option without any is known by the first
    tokens of its spellings instead. A token that more than one option begins with counts for none.

    Args:
        encode: text to token ids, without special tokens.
        options: at least two.

    Raises:
        EngineError: some option can't be told from the others by one token.
    """
    begins = [_begins(encode, option) for option in options]
    shared = Counter(token for tokens in begins for token in tokens)
    told = [sorted(token for token in tokens if shared[token] == 1) for tokens in begins]
    if unclear := [option for option, tokens in zip(options, told, strict=True) if not tokens]:
        raise EngineError(
            f"the model's tokens can't tell {', '.join(map(repr, unclear))} from the other options"
        )
    return told


def _begins(encode: Callable[[str], list[int]], option: str) -> set[int]:
    written = {option, option.lower(), option.capitalize(), option.upper()}
    encoded = [encode(space + word) for word in written for space in ("", " ")]
    return {ids[0] for ids in encoded if len(ids) == 1} or {ids[0] for ids in encoded if ids}
