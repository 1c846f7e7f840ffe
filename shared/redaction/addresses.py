"""Postal addresses by form: number and street word, street and number, with postcode and city, PO box.

English, German, French, Spanish and Dutch forms, in the capitals that people write them in. A place
without a number, a street without a street word ("Am Markt 5") and a city alone stay. Every pattern is
linear in the text.
"""

from __future__ import annotations

import re

from shared.redaction.names import LOWER, UPPER, has_one

_PART = rf"[{UPPER}][{LOWER}{UPPER}'’\-]{{1,30}}+"
_PLACE = rf"{_PART}(?: {_PART}){{0,2}}"
_BREAK = r"(?:, ?|\r?\n|,\r?\n| )"
_ROOM = r"(?:,? (?:Apt|Apartment|Unit|Suite|Ste|Flat|Floor|Wohnung|[Pp]iso|[Aa]ppt|[Hh]uis)\.? ?#?\w{1,6}|,? #\d{1,5}|,? [\w-]{2,9} [Ff]loor)?"
_STATE = (
    "(?:A[KLRZ]|C[AOT]|D[CE]|FL|GA|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|O[HKR]|PA|RI|S[CD]|T[NX]"
    "|UT|V[AT]|W[AIVY])"
)
_US = rf"{_STATE},? \d{{5}}(?:-\d{{4}})?(?![\w-])"
_UK = r"[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}(?![\w-])"
_TAIL = (
    rf"{_ROOM}(?:{_BREAK}(?:[A-Z]{{1,2}}-)?\d{{4,5}}(?: ?[A-Z]{{2}}(?![\w-]))?,? {_PLACE}"
    rf"|{_BREAK}{_PLACE}{_BREAK}(?:{_US}|{_UK}|\d{{4,5}}(?![\w-]))|{_BREAK}(?:{_US}|{_UK}))?"
)
_AFTER = r"(?=[ \t]*(?:[,.;:!?)\]\"'\r\n]|$)| (?:in|and|near|please|tomorrow|today|on|at)\b)"
"""What may follow a street: "10 Wall Street firms" are no address."""
_ENGLISH = re.compile(
    rf"(?<![\w.,:/$€£#+-])\d{{1,5}}[A-Za-z]?(?:-\d{{1,5}})? (?:[NSEW]\.? |North |South |East |West )?"
    rf"(?:{_PART} |\d{{1,3}}(?:st|nd|rd|th) ){{1,3}}?(?:(?:Street|Avenue|Road|Boulevard|Lane|Drive|Court"
    r"|Terrace|Parkway|Highway|Crescent|Gardens|Mews|Way|Place|Square|Close|Circle)(?![\w-])"
    r"|(?:St|Ave|Rd|Blvd|Ln|Dr|Ct|Pkwy|Hwy)(?![\w-])\.?)"
    rf"(?: [NS][EW]?(?![\w-]))?{_TAIL}{_AFTER}"
)
_STREET_NUMBER = r" \d{1,4} ?[a-z]?(?![\w%-]|[.,]\d)"
_GERMAN = re.compile(
    rf"(?<![\w-])(?:[{UPPER}][{LOWER}]{{2,24}}+[ \-]){{0,2}}(?:[{UPPER}][{LOWER}]{{1,40}}+"
    r"(?:(?<=straße)|(?<=strasse)|(?<=str)\.|(?<=gasse)|(?<=allee)|(?<=straat)|(?<=gracht)|(?<=laan))"
    rf"|(?<=[ \-])(?:Straße|Strasse|Str\.)){_STREET_NUMBER}{_TAIL}"
    rf"|(?<![\w-])[{UPPER}][{LOWER}]{{1,40}}+(?:(?<=weg)|(?<=platz)|(?<=plein)|(?<=damm)|(?<=ufer)|(?<=kade))"
    rf"{_STREET_NUMBER}{_BREAK}\d{{4,5}}(?: ?[A-Z]{{2}}(?![\w-]))? {_PLACE}"
)
_FRENCH = re.compile(
    r"(?<![\w.,:/-])\d{1,4}(?: ?bis| ?ter|[A-D])?,? (?:rue|avenue|boulevard|bd|allée|chemin|impasse|quai"
    r"|place|square|cours) (?:(?:de|du|des|la|le|les) |[dl]['’]){0,3}"
    rf"[{UPPER}][\w'’\-]{{1,30}}+(?: (?:(?:de|du|des|la|le) )?{_PART}){{0,3}}{_TAIL}"
)
_SPANISH = re.compile(
    r"(?<!\w)(?:(?:[Cc]alle|[Aa]venida|Paseo|Plaza|[Cc]amino) |C/ ?|Avda?\. )"
    rf"(?:(?:de|del|la|las|los|el) ){{0,3}}{_PART}(?: (?:(?:de|del|la|los) )?{_PART}){{0,3}},? "
    rf"(?:n[.ºo°]{{0,2}} ?)?\d{{1,3}}(?![\w%-]|[.,]\d)(?:, ?\d[ºª]? ?[A-Z]?(?!\w))?{_TAIL}"
)
_BOX = re.compile(
    r"(?<!\w)(?:P\. ?O\. ?|PO |P\.O |Post Office )[Bb]ox (?:[Nn]o\.? )?\d{1,6}(?![\w-])"
    rf"{_TAIL}|(?<!\w)(?:Postfach|Postbus|Apartado de [Cc]orreos|[Bb]oîte postale) \d{{1,6}}(?![\w-]){_TAIL}"
)
_UNIT = (
    "(?:S[ADS]|[KMGT][BW]|H[DPZ]|K[GM]|[CM]M|ML|PS|TV|AD|BC|CE|AM|PM|US|UK|E[UR]|UN|IT|AI|PC|VR|ID)"
)
_CITY = re.compile(
    rf"(?<![\w-]){_PLACE}, {_US}"
    r"|(?m:(?:(?<=^)|(?<=, )|(?<=,))(?:(?:D|F|E)-\d{5}|(?:CH|A|B)-\d{4}"
    rf"|(?!19|20)[1-9]\d{{3}} ?(?!{_UNIT})[A-Z]{{2}})"
    rf" [{UPPER}][{LOWER}]{{2,30}}+(?=[ \t]*(?:[,.\r\n]|$)))"
)
_ENGLISH_HINT = re.compile(rf"\d[A-Za-z]? [{UPPER}\d]")
_GERMAN_HINT = re.compile(r" (?=\d)(?<=(?:aße|sse|tr\.|lee|aat|cht|aan|weg|atz|ein|amm|fer|ade) )")
_FRENCH_HINT = re.compile(r"\d(?:[A-D]| ?bis| ?ter)?,? [rabciqps][a-zé]{1,8} ")
_SPANISH_WORDS = ("alle ", "venida ", "Paseo ", "Plaza ", "amino ", "C/", "Avd", "Av. ")
_BOX_WORDS = ("ox ", "ostfach ", "ostbus ", "orreos ", "ostale ")
_DIGIT = re.compile(r"\d")
_POSTCODE = re.compile(r"(?m:^|[ ,-])\d{4}")


def address_patterns(text: str) -> list[re.Pattern[str]]:
    """The patterns of which the text has what each needs; without a digit none."""
    digit = _DIGIT.search(text)
    if digit is None:
        return []
    at = max(0, digit.start() - 1)
    hints = (
        (_ENGLISH_HINT.search(text, at), _ENGLISH),
        (_GERMAN_HINT.search(text, at), _GERMAN),
        (_FRENCH_HINT.search(text, at), _FRENCH),
        (has_one(text, _SPANISH_WORDS), _SPANISH),
        (has_one(text, _BOX_WORDS), _BOX),
        (_POSTCODE.search(text, at), _CITY),
    )
    return [pattern for hint, pattern in hints if hint]
