"""Which language a text is in, by its most common small words or by its script.

Good enough to filter by, and no model is needed: a text of some sentences is told apart surely, and
of anything else (lists, tables, two languages in one) nothing is said.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

__all__ = ["language_of"]

_SEEN: Final = 6_000
_LEAST_WORDS: Final = 12
# Among the words of running text, small ones are a third; in lists and tables they are rare.
_LEAST_SHARE: Final = 0.12
_AHEAD: Final = 1.4

_SMALL_WORDS: Final = {
    language: frozenset(words.split())
    for language, words in {
        "en": "the of and to in is that for with this are be as on or not by from if which it can",
        "de": "der die das und ist nicht ein eine zu den mit von für auf sich dem werden wird oder",
        "fr": "le la les des et est une un que pour dans pas qui sur avec par du ce au ou sont il",
        "es": "el la los las de y es que en un una para por con no se del como al su más o",
        "it": "il la di che e è un una per con non del della sono si da nel le gli al come",
        "pt": "o a os as de e é que em um uma para por com não se do da no na como mais ou",
        "nl": "de het een en van is niet op te dat voor met zijn die wordt of aan door bij naar",
        "sv": "och att det som en på är för med inte av den till ett om kan har de eller från",
        "da": "og at det som en på er for med ikke af den til et om kan har de eller fra",
        "pl": "i w na nie z do się jest to że dla od o jak lub po przez są oraz tym",
        "cs": "a v na se je to že pro s z do jako nebo které není jsou při po od ve",
        "tr": "ve bir bu için ile de da olarak daha ne olan en gibi çok kadar ya var değil",
    }.items()
}
_SCRIPTS: Final = (
    ("ja", re.compile(r"[\u3040-\u30ff]")),
    ("ko", re.compile(r"[\uac00-\ud7af]")),
    ("zh", re.compile(r"[\u4e00-\u9fff]")),
    ("el", re.compile(r"[\u0370-\u03ff]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
    ("ar", re.compile(r"[\u0600-\u06ff]")),
    ("hi", re.compile(r"[\u0900-\u097f]")),
    ("th", re.compile(r"[\u0e00-\u0e7f]")),
    ("uk", re.compile(r"[іїєґІЇЄҐ]")),
    ("ru", re.compile(r"[\u0400-\u04ff]")),
)
_LETTER: Final = re.compile(r"[^\W\d_]")
_WORD: Final = re.compile(r"[^\W\d_]+")


def language_of(text: str) -> str | None:
    """Return the language that a text is in as two letters (ISO 639-1); None when it is not clear."""
    begin = text[:_SEEN]
    if not begin.isascii():
        letters = len(_LETTER.findall(begin))
        for language, signs in _SCRIPTS:
            # Japanese and Ukrainian are told by signs that are few among those they share.
            share = 0.02 if language in {"ja", "uk"} else 0.3
            if letters and len(signs.findall(begin)) > share * letters:
                return language
    words = Counter(_WORD.findall(begin.lower()))
    total = words.total()
    if total < _LEAST_WORDS:
        return None
    found = sorted(
        (sum(words[word] for word in small) / total, language)
        for language, small in _SMALL_WORDS.items()
    )
    (second, _), (best, language) = found[-2:]
    return language if best >= _LEAST_SHARE and best >= _AHEAD * second else None
