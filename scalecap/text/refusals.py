"""Refusals: replies in which a model declines to answer ("I'm sorry, but I can't assist with that").

Rules for English, Chinese, German, French, Spanish, Portuguese, Italian, Russian, Japanese and Korean. Each
requires an apology or a first person at the beginning, followed by being unable to *help, describe,
answer …*: a model that can't *see a dog* has answered. A long reply is never a refusal.
"""

import re
import unicodedata

LONGEST = 300
"""Maximum number of characters of a refusal."""

_LEAD = r"[.!]?[^.!?:\"«»“„]{0,20}?\b"
"""What may stand between an apology and the verb in Romance languages; what a sign says is no refusal."""

_ENGLISH = (
    r"(?:(?:(?:i(?:'m| am) )?(?:(?:very|so|really|truly) )?(?:sorry|afraid)|(?:my )?apologies|i apologi[sz]e"
    r"|unfortunately|(?:as|i'm|i am) (?:just )?an? (?:ai|(?:large )?language model)(?: \w+){0,3})"
    r"[^.!?]{0,60}?[,.;:]? )?"
    r"(?:but |however,? |so )?(?:(?:i|we) ?|and )(?:"
    r"(?:can(?:'?t|not| not)|could(?:n'?t| not)|won'?t|will not|(?:am|'m|are|'re) (?:not able|unable) to"
    r"|(?:do not|don'?t) have the (?:ability|capability) to)"
    r"(?: (?:be able to |directly )?(?:assist|help(?! but)|comply|fulfill?|accommodate|provide|describe"
    r"|discuss|generate|engage|participate|continue|answer|respond|process|support|comment on"
    r"|identify (?:(?:or )?\w+ ){0,2}?(?:people|persons?|individuals?|anyone|someone|who)|do (?:that|this)"
    r"|(?:view|see|access|open|analy[sz]e|interpret)(?: (?:or|and) \w+)? (?:the |this |your |any )?"
    r"(?:images|(?:image|picture|photo)(?= you|[.,!]|$)))\b|[.!]?$)"
    r"|(?:am|'m) not comfortable (?:describing|with)\b| ?(?:must|have to) (?:\w+ )?(?:decline|refuse)\b)"
)
_CHINESE = (
    r"(?:你好[,!。]|您好[,!。])?(?:(?:(?:非常|很|十分|真的)?(?:抱歉|对不起|對不起|不好意思|遗憾|遺憾)"
    r"|作为|作為|我是|由于|由於|出于|出於|根据|根據|(?:这个|這個|该|該|此)(?:问题|問題|请求|請求|话题|話題))"
    r"[^。!?\n]{0,30}?[。!]?)?我?(?:暂时|暫時|目前|恐怕|还|還)?"
    r"(?:(?:无法|無法|不能|没有?办法|沒有?辦法|不便|不可以|不会|不會|拒绝|拒絕)"
    r"(?:(?:继续|繼續|直接)?(?:为|為|给|給|帮|幫)[您你]|对此|對此|就此|在此|继续|繼續|直接)?"
    r"(?:协助|協助|帮助|幫助|帮忙|幫忙|提供|描述|满足|滿足|回答|回应|回應|处理|處理|讨论|討論|生成|给出|給出|给到|給到"
    r"|(?:查看|看到|访问|訪問|打开|打開)(?:您|你|这|這|该|該|任何)?[^。,!?\n]{0,6}?(?:图片|圖片|图像|圖像|照片)(?:$|[。,!])"
    r"|(?:识别|識別|辨认|辨認|确认|確認)[^。,!?\n]{0,8}?(?:身份|人物|是谁|是誰)"
    r"|完成(?:您|你|这|這|该|該|此))|没有?学会回答|沒有?學會回答)"
)
_GERMAN = (
    r"(?:(?:es )?tut mir (?:sehr )?leid|entschuldigung|leider|ich (?:bedaure|fürchte|entschuldige mich)|ich"
    r"|als (?:ki|sprachmodell)|(?:das|dabei|da)(?= (?:kann|darf|möchte|werde) ich))\b[.!]?"
    r"[^.!?]{0,40}?(?:\b(?:kann|darf|möchte|werde)\b[^.!?]{0,60}?\b(?:nicht|kein\w*)\b"
    r"|\bbin nicht in der lage|\bmir nicht möglich)[^.!?]{0,40}?"
    r"(?:(?:helfen|weiterhelfen|behilflich|unterstützen|beschreiben|beantworten|bereitstellen|erfüllen|nachkommen"
    r"|bearbeiten|auskunft geben)\b|\b(?:personen|person nicht) (?:zu )?(?:identifizieren|erkennen)\b"
    r"|bilder (?:an)?(?:zu)?(?:sehen|zeigen)\b|\b(?:tun\b|nicht[.!]?$))"
)
_FRENCH = (
    r"(?:(?:je suis )?(?:vraiment |sincèrement )?(?:désolée?|navrée?)|pardon|malheureusement|je regrette"
    rf"|en tant (?:que|qu')[^.!?,]{{0,40}})?{_LEAD}"
    r"(?:je ne (?:peux|puis|suis pas (?:en mesure|capable|autorisée?))|je suis incapable"
    r"|je n'ai pas la (?:capacité|possibilité)|il m'est impossible)\b[^.!?]{0,30}?"
    r"(?:(?:aider|assister|répondre|fournir|décrire|satisfaire|accéder|traiter|donner suite"
    r"|faire (?:cela|ça))\b|identifier (?:des|les|la|cette|une) personnes?\b"
    r"|(?:voir|afficher|analyser) (?:les|des|d') ?images\b)"
)
_SPANISH = (
    r"(?:(?:lo )?(?:siento|lamento)|perd[oó]n\w*|disculp\w+|lamentablemente|me temo que"
    rf"|como [^.!?,]{{0,40}})?{_LEAD}"
    r"no (?:puedo|me es posible|soy capaz de|estoy en condiciones de|tengo la capacidad de"
    r"|estoy autorizad[oa] a) (?:\w+ ){0,2}?"
    r"(?:(?:ayudar|asistir|proporcionar|describir|cumplir|responder|procesar|atender|ofrecer|brindar"
    r"|facilitar)\w*|hacer (?:eso|esto)\b|identificar a (?:\w+ )?personas?\b"
    r"|(?:ver|visualizar|analizar) (?:las )?imágenes\b)"
)
_PORTUGUESE = (
    r"(?:(?:me )?desculp\w+|peço (?:desculpas?|perdão)|(?:sinto|lamento)(?: muito)?|perdão|infelizmente"
    rf"|receio que|(?:como|por ser) [^.!?,]{{0,40}})?{_LEAD}"
    r"não (?:posso|poderei|consigo|sou capaz de|me é possível|estou (?:em condições de|autorizad[oa] a)"
    r"|tenho (?:permissão para|a capacidade de))(?: \w+)?? "
    r"(?:(?:ajud|assisti|auxili|fornec|descrev|cumpri|respond|process|atend|oferec|comenta|discuti|realiza|continua|participa)[\w-]*"
    r"|fazer (?:isso|isto)\b|identificar (?:as |a )?pessoas?\b"
    r"|(?:ver|visualizar|analisar|acessar) (?:as )?imagens\b)"
)
_ITALIAN = (
    r"(?:mi (?:dispiace|spiace|scus[oi])|(?:sono )?spiacente|scus\w+|purtroppo|temo che"
    rf"|(?:come|in quanto) [^.!?,]{{0,40}})?{_LEAD}"
    r"non (?:posso|potrò|riesco a|sono (?:in grado di|capace di|autorizzat[oa] a)|mi è possibile"
    r"|ho la (?:capacità|possibilità) di)(?: \w+)?? "
    r"(?:(?:aiuta|assiste|forni|soddisfa|risponde|elabora|offri|commenta|discute|esegui|descrive|continua|partecipa)r\w*"
    r"|far(?:lo|e (?:questo|ciò))\b|identificare (?:le |la |una )?person[ae]\b"
    r"|(?:vedere|visualizzare|analizzare) (?:le )?immagini\b)"
)
_RUSSIAN = (
    r"(?:(?:извини|прости)(?:те)?|прошу прощения|приношу (?:свои )?извинения|к сожалению"
    r"|(?:мне )?(?:очень )?жаль|(?:я )?сожалею|боюсь|как [^.!?:«,]{0,40})?[.,!]? ?(?:но |что )?(?:я )?"
    r"не (?:могу|смогу|в состоянии|способ(?:ен|на)|имею (?:возможности|права))(?: \w+){0,2}? "
    r"(?:помочь|помогать|ответить|отвечать|описать|описывать|предоставить|выполнить|обсуждать|обработать"
    r"|комментировать|(?:с?делать )?это(?:го)?(?: с?делать)?[.,!]?$|определить личность"
    r"|(?:идентифицировать|опознать|распознавать) (?:людей|человека|лиц[ао]?)"
    r"|(?:видеть|просматривать|анализировать|открывать) изображения(?= на|[.,!]|$))(?!\w)"
)
_JAPANESE = (
    r"(?:(?:大変|誠に)?(?:申し訳(?:ありません|ございません|ない)|すみません|ごめんなさい|恐れ入ります)[^。!?\n]{0,30}?。?)?"
    r"[^。!?\n「『\"]{0,20}?(?:(?:お手伝い|お答え|回答|対応|説明|提供|お応え|支援|協力|描写|処理|応じる"
    r"|(?:人物|個人|誰)[^。!?\n]{0,6}?(?:特定|識別)|画像を(?:直接)?(?:見る|閲覧|表示))"
    r"(?:する)?(?:こと)?(?:は|が|を)?"
    r"(?:でき(?:ません|かねます|ない)|(?:いた|致)?しかねます|しておりません)|応じかねます|差し控え)"
)
_KOREAN_FIRST = (
    r"(?:(?:정말 |대단히 )?(?:죄송|미안|유감|안타깝)[^\s.,]{0,6}[.,]? |(?:저는|제가|저로서는) )"
    r"[^.!?:\"'“‘「]{0,30}?"
)
_KOREAN_TOPIC = (
    r"(?:(?:이|그|해당|요청하신|제공된) )?(?:요청|질문|이미지|사진|내용|주제)[^\s.]{0,3} (?:직접 )?"
)
_KOREAN = (
    rf"(?:(?:{_KOREAN_FIRST})?[^.!?:\"'“‘「]{{0,20}}?"
    r"(?:도와|도움을?|(?:답변|대답|설명|제공|처리|안내|말씀)\S{0,2})"
    r" ?드(?:릴 수(?:가|는)? 없|리기(?:가|는)? 어렵)"
    rf"|(?:{_KOREAN_FIRST}(?:{_KOREAN_TOPIC})?|{_KOREAN_TOPIC})"
    r"(?:(?:도울|도와줄|답할|응할|참여할|(?:설명|묘사|제공|처리|수행|답변|대답|응답|논의)할) 수(?:가|는)? 없"
    r"|(?<=이미지를 )(?:볼|확인할|분석할) 수 없|(?<=직접 )볼 수 없)"
    rf"|{_KOREAN_FIRST}(?:사람을?|인물을?|개인을?|누구인지) (?:식별|확인)할 수 없)"
    r"(?:습니다|어요|다|음|네요)(?=[.!]?(?: |$))"
)
_RULES = (
    *(_ENGLISH, _CHINESE, _GERMAN, _FRENCH, _SPANISH),
    *(_PORTUGUESE, _ITALIAN, _RUSSIAN, _JAPANESE, _KOREAN),
)
_REFUSAL = re.compile("|".join(f"(?:{rule})" for rule in _RULES))


def refuses(reply: str) -> bool:
    """Whether the reply is a refusal: a short one that begins as refusals do."""
    plain = unicodedata.normalize("NFKC", reply).casefold().replace("’", "'").strip(" \n\"'*“”「『")
    return len(plain) <= LONGEST and _REFUSAL.match(" ".join(plain.split())) is not None
