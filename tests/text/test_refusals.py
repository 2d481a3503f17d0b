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
    "I'm afraid I can't help with that.",
    "As a language model, I cannot view images directly.",
    "I'm sorry, but I can't view or analyze images.",
    "I'm unable to see the image you've provided. Could you describe it?",
    "I don't have the ability to view images.",
    "I'm not comfortable describing this image.",
    "I'm just a language model, so I can't help you with that.",
    "I'm sorry, but I cannot identify or describe individuals.",
    "I must respectfully decline to describe this image.",
    "你好，这个问题我暂时无法回答，让我们换个话题再聊聊吧。",
    "您好，我无法给到相关内容。",
    "抱歉，我不能继续为您提供帮助。",
    "我是一个人工智能助手，无法识别图片中人物的身份。",
    "出于隐私考虑，我无法识别图中的人物。",
    "根据相关法律法规，我不能描述这张图片。",
    "抱歉，我无法直接查看图片。",
    "不好意思，我还没有学会回答这个问题。",
    "抱歉，我無法協助您處理這個請求。",
    "對不起，我無法滿足您的要求。",
    "Ich bin nicht in der Lage, dieses Bild zu beschreiben.",
    "Als KI-Sprachmodell kann ich diese Anfrage nicht bearbeiten.",
    "Leider ist es mir nicht möglich, Ihnen dabei zu helfen.",
    "Das kann ich leider nicht beantworten.",
    "Es tut mir leid, aber ich kann keine Personen identifizieren.",
    "Ich kann leider keine Bilder ansehen.",
    "Das kann ich leider nicht tun.",
    "En tant que modèle de langage, je ne peux pas répondre à cette question.",
    "Il m'est impossible de décrire cette image.",
    "Je n'ai pas la capacité de voir les images.",
    "Désolé, je ne peux pas faire cela.",
    "Je ne peux pas identifier les personnes.",
    "Como modelo de lenguaje de IA, no puedo ver imágenes.",
    "Lo siento, pero no puedo hacer eso.",
    "Me temo que no puedo brindar esa información.",
    "No puedo identificar a personas reales.",
    "申し訳ありませんが、お答えしかねます。",
    "申し訳ありませんが、画像内の人物を特定することはできません。",
    "申し訳ございませんが、そのご要望には応じかねます。",
    "画像を直接見ることはできません。",
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
    "I'm afraid of dogs, says the sign.",
    "We can see the image of a cat on the wall.",
    "I can't see the picture on the wall well, but it seems to show a boat.",
    "As a whole, we can see a park.",
    "根据图片，我不能确定车的颜色。",
    "我是一只猫，牌子上写着。",
    "由于光线太暗，无法看清图片中的人。",
    "这个问题牌上写着字。",
    "Das Bild kann nicht vollständig erkannt werden.",
    "Das Kind kann nicht sehen, wer ihm helfen möchte, denn es schläft.",
    "Als Hintergrund kann man nicht viel erkennen.",
    "Il m'est impossible de voir un chien.",
    "Como fondo no se ve nada.",
    "画像に人物は見えません。",
    "画像を見ると、犬がいます。",
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
