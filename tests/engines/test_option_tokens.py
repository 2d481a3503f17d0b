import pytest

from scalecap.engines.base import EngineError
from scalecap.engines.option_tokens import option_token_ids

WORDS = ["yes", " yes", "Yes", " Yes", "no", " no", "No", "NO"]


def encode(text: str) -> list[int]:
    """A tokenizer with a few words; everything else is encoded letter by letter."""
    return [WORDS.index(text)] if text in WORDS else [ord(letter) for letter in text]


def test_whole_words_only_where_there_are_any() -> None:
    assert option_token_ids(encode, ("yes", "no")) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_tokenizer_that_puts_a_space_before_every_text() -> None:
    """As SentencePiece does: "yes" is `▁yes`, but `yes` after a line break."""
    pytest.importorskip("tokenizers", reason='needs pip install "scalecap[cpu]"')
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import Metaspace

    merges = [("y", "e"), ("ye", "s"), ("Y", "e"), ("Ye", "s"), ("n", "o"), ("N", "o")]
    merges += [("▁", word) for word in ("yes", "Yes", "no", "No")]
    pieces = dict.fromkeys(
        ["<unk>", "\n", *"▁yesnoYESNO", *(piece for a, b in merges for piece in (a, b, a + b))]
    )
    tokenizer = Tokenizer(BPE({piece: id for id, piece in enumerate(pieces)}, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Metaspace(prepend_scheme="first", split=False)
    yes, no = option_token_ids(lambda text: tokenizer.encode(text).ids, ("yes", "no"))
    assert {tokenizer.id_to_token(id) for id in yes} == {"yes", "▁yes", "Yes", "▁Yes"}
    assert {tokenizer.id_to_token(id) for id in no} == {"no", "▁no", "No", "▁No"}


def test_first_letters_where_there_is_no_whole_word() -> None:
    yes, no, neither = option_token_ids(encode, ("yes", "no", "n/a"))
    assert neither == sorted(map(ord, " nN"))
    assert (yes, no) == ([0, 1, 2, 3], [4, 5, 6, 7])


def test_shared_beginnings_count_for_no_option() -> None:
    left, right = option_token_ids(encode, ("left", "right"))
    assert left == sorted(map(ord, "lL"))
    assert right == sorted(map(ord, "rR"))


@pytest.mark.parametrize("options", [("yes", "Yes"), ("blue", "black")])
def test_options_that_begin_alike(options: tuple[str, str]) -> None:
    with pytest.raises(EngineError, match="can't tell"):
        option_token_ids(encode, options)
