"""First-token ids of answer options."""

from collections import Counter
from collections.abc import Callable, Sequence

from scalecap.engines.base import EngineError


def option_token_ids(encode: Callable[[str], list[int]], options: Sequence[str]) -> list[list[int]]:
    """First-token ids of each option's spellings: "yes", " yes", "Yes", " Yes", "YES", " YES".

    Some tokenizers put a space before every text, so that a word has another token after a line break, with
    which many chat templates end. Both count. Spellings of a single token are used; if an option has none,
    the first tokens of all its spellings. A token that several options begin with is used for none of them.

    Args:
        encode: text to token ids, without special tokens.
        options: at least two.

    Raises:
        EngineError: an option has no first token of its own.
    """
    candidates = [_first_tokens(encode, option) for option in options]
    counts = Counter(token for tokens in candidates for token in tokens)
    unique = [sorted(token for token in tokens if counts[token] == 1) for tokens in candidates]
    if ambiguous := [option for option, tokens in zip(options, unique, strict=True) if not tokens]:
        raise EngineError(
            f"the first token can't tell {', '.join(map(repr, ambiguous))} from the other options:"
            " choose options that begin differently"
        )
    return unique


def _first_tokens(encode: Callable[[str], list[int]], option: str) -> set[int]:
    spellings = {option, option.lower(), option.capitalize(), option.upper()}
    encoded = [encode(space + word) for word in spellings for space in ("", " ")]
    line_break = encode("\n")
    after_break = [encode("\n" + word) for word in spellings]
    encoded += [ids[len(line_break) :] for ids in after_break if ids[: len(line_break)] == line_break]
    return {ids[0] for ids in encoded if len(ids) == 1} or {ids[0] for ids in encoded if ids}
