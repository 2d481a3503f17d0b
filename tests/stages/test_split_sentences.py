import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalecap.stages.split_sentences import split_sentences

BOTH = [
    ("", []),
    (" \n\t", []),
    ("no terminator", ["no terminator"]),
    ("One. Two! Three? Four.", ["One.", "Two!", "Three?", "Four."]),
    ("It is 3.5 m high. A cat.", ["It is 3.5 m high.", "A cat."]),
    ("See www.a.org now. Yes.", ["See www.a.org now.", "Yes."]),
    ("First.\nSecond.", ["First.", "Second."]),
    ("。 空白。 有。", ["。", "空白。", "有。"]),
]
SEED = [
    ("Dr. Who waves.", ["Dr.", "Who waves."]),
    ("一只狗。一只猫。", ["一只狗。一只猫。"]),
    ("A sign\nwith two lines", ["A sign\nwith two lines"]),
    ("She says: “Stop.” He stops.", ["She says: “Stop.” He stops."]),
]
DEFAULT = [
    ("Dr. Who and Mrs. Hudson wave. They smile.", ["Dr. Who and Mrs. Hudson wave.", "They smile."]),
    ("A tool, e.g. a hammer. A nail.", ["A tool, e.g. a hammer.", "A nail."]),
    ("A tool (e.g. A4 paper).", ["A tool (e.g. A4 paper)."]),
    ("J. K. Rowling at the U.S. Embassy. It rains.", ["J. K. Rowling at the U.S. Embassy.", "It rains."]),
    ("Pens, paper, etc. lie there. So do cups, etc. A cat sleeps.",
     ["Pens, paper, etc. lie there.", "So do cups, etc.", "A cat sleeps."]),
    ("It is 5 p.m. in the picture.", ["It is 5 p.m. in the picture."]),
    ("It is 5 p.m. The light is low.", ["It is 5 p.m.", "The light is low."]),
    ("Bus no. 7 waits. There is no. There is one.", ["Bus no. 7 waits.", "There is no.", "There is one."]),
    ("there is a dog. there is a tree.", ["there is a dog.", "there is a tree."]),
    ("There are 3. They run.", ["There are 3.", "They run."]),
    ("Seen:\n1. A dog. It runs.\n2. A cat.", ["Seen:", "1. A dog.", "It runs.", "2. A cat."]),
    ("The sign says plan B. The map shows X. Their car is red.",
     ["The sign says plan B.", "The map shows X.", "Their car is red."]),
    ("A flag of the U.S. The capital is Washington, D.C. It rains.",
     ["A flag of the U.S.", "The capital is Washington, D.C.", "It rains."]),
    ("A. A. Milne reads.\nB. The cat is black.", ["A. A. Milne reads.", "B. The cat is black."]),
    ("It is dated Sept. 5. It rained in Oct. The end.",
     ["It is dated Sept. 5.", "It rained in Oct.", "The end."]),
    ("The tower (est. 1900) is tall. It stands.", ["The tower (est. 1900) is tall.", "It stands."]),
    ("Das ist z. B. ein Hund, bzw. z.B. ein Wolf. Er bellt.",
     ["Das ist z. B. ein Hund, bzw. z.B. ein Wolf.", "Er bellt."]),
    ("La Sra. García y el Sr. Ruiz leen. El Sig. Rossi mide aprox. 2 m.",
     ["La Sra. García y el Sr. Ruiz leen.", "El Sig. Rossi mide aprox. 2 m."]),
    ("Это волк, т. е. хищник. Он серый.", ["Это волк, т. е. хищник.", "Он серый."]),
    ("A sign says Main St. The other says 5th Ave. and St. Paul Blvd. It is green.",
     ["A sign says Main St.", "The other says 5th Ave. and St. Paul Blvd.", "It is green."]),
    ("A Ph.D. student reads.", ["A Ph.D. student reads."]),
    ("He is Sammy Davis Jr. He sings.", ["He is Sammy Davis Jr.", "He sings."]),
    ("A dog... or a wolf. Or… a fox.", ["A dog... or a wolf.", "Or… a fox."]),
    ("It fades... The end.", ["It fades...", "The end."]),
    ("She says: “Stop.” He stops.", ["She says: “Stop.”", "He stops."]),
    ('The sign says "Stop!" and shines.', ['The sign says "Stop!" and shines.']),
    ("On lit « Stop ! » et « Rue. » Un chien court.", ["On lit « Stop ! » et « Rue. »", "Un chien court."]),
    ("एक कुत्ता है। वह भूरा है।", ["एक कुत्ता है।", "वह भूरा है।"]),
    ("هل هذا كلب؟ نعم. یہ کتا ہے۔ وہ بھورا ہے۔", ["هل هذا كلب؟", "نعم.", "یہ کتا ہے۔", "وہ بھورا ہے۔"]),
    ("**A dog.** It runs.", ["**A dog.**", "It runs."]),
    ("Really?! Yes.", ["Really?!", "Yes."]),
    ("一只狗在草地上。旁边有一棵树！是吗？是。", ["一只狗在草地上。", "旁边有一棵树！", "是吗？", "是。"]),
    ("牌子上写着“停！”。很旧。", ["牌子上写着“停！”。", "很旧。"]),
    ("犬がいる。「止まれ！」と書いてある。", ["犬がいる。", "「止まれ！」と書いてある。"]),
    ("「セール！」の看板がある。「来て。」とても大きい。",
     ["「セール！」の看板がある。", "「来て。」", "とても大きい。"]),
    ("牌子上写着“停！”的字样。一只狗。", ["牌子上写着“停！”的字样。", "一只狗。"]),
    ("他说：“你好。”然后走了。犬と猫。の。", ["他说：“你好。”", "然后走了。", "犬と猫。", "の。"]),
    ("高3.5米。A cat. 一只狗。", ["高3.5米。", "A cat.", "一只狗。"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "sentences"), BOTH + SEED)
def test_seed(text, sentences):
    assert split_sentences(text, rule="seed") == sentences


@pytest.mark.parametrize(("text", "sentences"), BOTH + DEFAULT)
def test_default(text, sentences):
    assert split_sentences(text) == sentences


_captions = st.lists(
    st.sampled_from(
        ["Dr.", "a dog", "e.g.", "。", "！", "“", "”", ".", "!", "?", "…", " ", "\n", "3.5", "J."]
    )
    | st.text(max_size=8)
).map("".join)


@pytest.mark.parametrize("rule", ["seed", "default"])
@given(text=_captions)
def test_nothing_is_lost_but_white_space(rule, text):
    sentences = split_sentences(text, rule=rule)
    assert re.sub(r"\s", "", "".join(sentences)) == re.sub(r"\s", "", text)
    assert all(sentence == sentence.strip() != "" for sentence in sentences)


@given(text=_captions)
def test_a_sentence_ends_only_at_a_mark_or_a_line(text):
    for line in text.splitlines():
        for sentence in split_sentences(line)[:-1]:
            assert re.search(r"[.!?…。！？]", sentence)
