import pytest

from scalecap.text.refusals import LONGEST, refuses

REFUSALS = [
    "I'm sorry, but I can't assist with that.",
    "I’m sorry, I can’t help with identifying people.",
    "I am sorry, but I cannot describe this image.",
    "Sorry, I can't do that.",
    "I'm sorry, but I can't.",
    "\n**I'm sorry, but I can't provide a description of this picture.**",
    '"I cannot fulfill this request."',
    "I can't assist with that request.",
    "I'm unable to help with that.",
    "I am not able to provide a description of the people in this image.",
    "I won't be able to assist with this.",
    "Unfortunately, I cannot comply with this request.",
    "As an AI language model, I can't discuss this topic.",
    "My apologies, but I must decline this request.",
    "I can't identify people in images.",
    "I cannot identify the person in this picture.",
    "抱歉，我无法协助处理该请求。",
    "很抱歉，我不能提供对这张图片的描述。",
    "对不起，我无法回答这个问题。",
    "我无法满足您的要求。",
    "作为一个人工智能助手，我不能讨论这个话题。",
    "Es tut mir leid, aber dabei kann ich Ihnen nicht helfen.",
    "Ich kann diese Anfrage leider nicht erfüllen.",
    "Tut mir leid, ich kann dieses Bild nicht beschreiben.",
    "Leider kann ich Ihnen dazu keine Fragen beantworten.",
    "Je suis désolé, mais je ne peux pas vous aider avec cette demande.",
    "Désolée, je ne peux pas décrire cette image.",
    "Je ne suis pas en mesure de répondre à cette demande.",
    "Lo siento, pero no puedo ayudar con eso.",
    "Lo siento, no puedo proporcionar esa información.",
    "No puedo describir esta imagen.",
    "申し訳ありませんが、そのご要望にはお応えできません。",
    "申し訳ございませんが、お手伝いできません。",
    "すみません、この画像の説明はできません。",
]
ANSWERS = [
    "",
    "No.",
    "Yes, I can.",
    "A dog stands on the grass.",
    "I can see a cake.",
    "I can't help but smile at this cake.",
    "I can't see a dog in the picture.",
    "I'm sorry, but I can't see any dog in the image.",
    "I cannot determine the colour of the car.",
    "I cannot identify any text in the image.",
    "Sorry, We're Closed, says a sign on the door. We cannot tell what is behind it.",
    "The sign says: I'm sorry, but I can't assist with that.",
    "Unfortunate weather: we see rain on the window.",
    "图中无法识别文字。",
    "抱歉，图片中没有狗。",
    "我无法看清图中的文字。",
    "Ich kann keinen Hund erkennen.",
    "Leider ist das Bild unscharf.",
    "Es tut mir leid, aber auf dem Bild ist kein Hund.",
    "Je ne peux pas voir de chien sur l'image.",
    "Malheureusement, l'image est floue.",
    "No puedo ver ningún perro en la imagen.",
    "Lo siento, no hay ningún perro.",
    "申し訳ありませんが、画像に犬は見えません。",
    "犬は確認できません。",
    "Describe more details about the dog.",
]


@pytest.mark.parametrize("reply", REFUSALS)
def test_refusals(reply: str) -> None:
    assert refuses(reply)


@pytest.mark.parametrize("reply", ANSWERS)
def test_answers_are_not_refusals(reply: str) -> None:
    assert not refuses(reply)


def test_a_long_reply_is_an_answer_however_it_begins() -> None:
    beginning = "I can't describe how lovely this is. "
    assert refuses(beginning)
    assert not refuses(beginning + "There is a dog. " * (LONGEST // 16))


@pytest.mark.parametrize(
    "text", ["ich " * 70, "je ne " * 49, "sorry, " * 40, "抱歉" * 150, "no puedo a " * 27]
)
def test_near_refusals_take_no_time(text: str) -> None:
    """No rule backtracks without end; the test would hang."""
    assert not refuses(text)
