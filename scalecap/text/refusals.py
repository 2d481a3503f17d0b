"""Refusals: replies in which a model declines to answer ("I'm sorry, but I can't assist with that").

Rules for English, Chinese, German, French, Spanish and Japanese. Each requires an apology or a first person
at the beginning, followed by being unable to *help, describe, answer …*: a model that can't *see a dog* has
answered. A long reply is never a refusal.
"""

import re
import unicodedata

LONGEST = 300
"""Maximum number of characters of a refusal."""

_ENGLISH = (
    r"(?:(?:(?:i(?:'m| am) )?(?:(?:very|so|really|truly) )?sorry|(?:my )?apologies|i apologi[sz]e"
    r"|unfortunately|as an ai(?: \w+){0,3})[^.!?]{0,60}?[,.;:]? )?(?:but |however,? )?(?:i|we) ?(?:"
    r"(?:can(?:'?t|not| not)|could(?:n'?t| not)|won'?t|will not|(?:am|'m|are|'re) (?:not able|unable) to)"
    r"(?: (?:be able to )?(?:assist|help(?! but)|comply|fulfill?|accommodate|provide|describe|discuss"
    r"|generate|engage|participate|continue|answer|respond|process|support"
    r"|identify (?:\w+ )?(?:people|persons?|individuals?|anyone|someone|who)|do (?:that|this))\b|[.!]?$)"
    r"| ?(?:must|have to) (?:decline|refuse)\b)"
)
_CHINESE = (
    r"(?:(?:非常|很|十分|真的)?(?:抱歉|对不起|對不起|不好意思|遗憾)[^。!?\n]{0,30}?|作为[^。!?\n]{0,20}?)?我?"
    r"(?:无法|無法|不能|没有?办法|不便|不可以)(?:为您|为你|给您|给你|帮您|帮你|对此|就此|在此|继续)?"
    r"(?:协助|帮助|帮忙|提供|描述|满足|回答|回应|处理|讨论|生成|给出|完成(?:您|你|这|该|此))"
)
_GERMAN = (
    r"(?:(?:es )?tut mir (?:sehr )?leid|entschuldigung|leider|ich (?:bedaure|entschuldige mich)|ich)\b"
    r"[^.!?]{0,40}?\b(?:kann|darf|möchte|werde)\b[^.!?]{0,60}?\b(?:nicht|kein\w*)\b[^.!?]{0,40}?"
    r"(?:helfen|weiterhelfen|behilflich|unterstützen|beschreiben|beantworten|bereitstellen|erfüllen|nachkommen)\b"
)
_FRENCH = (
    r"(?:(?:je suis )?(?:vraiment |sincèrement )?(?:désolée?|navrée?)|pardon|malheureusement|je regrette)?"
    r"[^.!?]{0,20}?\bje ne (?:peux|puis|suis pas en mesure d|suis pas capable d)[^.!?]{0,30}?"
    r"(?:aider|assister|répondre|fournir|décrire|satisfaire|accéder|traiter|donner suite)\b"
)
_SPANISH = (
    r"(?:(?:lo )?(?:siento|lamento)|perd[oó]n\w*|disculp\w+|lamentablemente)?[^.!?]{0,20}?"
    r"\bno (?:puedo|me es posible|soy capaz de|estoy en condiciones de) (?:\w+ ){0,2}?"
    r"(?:ayudar|asistir|proporcionar|describir|cumplir|responder|procesar|atender|ofrecer)\w*"
)
_JAPANESE = (
    r"(?:(?:大変|誠に)?(?:申し訳(?:ありません|ございません|ない)|すみません|ごめんなさい|恐れ入ります)[^。!?\n]{0,30}?)?"
    r"[^。!?\n]{0,20}?(?:お手伝い|お答え|回答|対応|説明|提供|お応え|支援|協力|描写)(?:すること)?(?:は|が|を)?"
    r"(?:でき(?:ません|かねます|ない)|いたしかねます|致しかねます)"
)
_RULES = (_ENGLISH, _CHINESE, _GERMAN, _FRENCH, _SPANISH, _JAPANESE)
_REFUSAL = re.compile("|".join(f"(?:{rule})" for rule in _RULES))


def refuses(reply: str) -> bool:
    """Whether the reply is a refusal: a short one that begins as refusals do."""
    plain = unicodedata.normalize("NFKC", reply).casefold().replace("’", "'").strip(" \n\"'*“”「『")
    return len(plain) <= LONGEST and _REFUSAL.match(" ".join(plain.split())) is not None
