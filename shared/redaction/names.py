"""Names of people where a text introduces them: "my name is", "I am Dr.", "Dear Mr", a signature.

High precision and no recall beyond that: a name that nothing introduces, in small letters, or in a
script without capitals has no form that a rule could tell. Every pattern is linear in the text.
"""

from __future__ import annotations

import re

UPPER = "A-ZÀ-ÖØ-ÞĀĂĄĆČĎĐĘĚĞİŁŃŇŐŘŚŞŠŤŮŰŹŻŽ"
LOWER = "a-zß-öø-ÿāăąćčďđęěğıłńňőřśşšťůűźżž"
_WORD = (
    rf"(?:[{UPPER}]['’])?[{UPPER}][{LOWER}]{{1,24}}+(?:['’\-]?[{UPPER}][{LOWER}]{{1,24}}+){{0,2}}"
)
_PARTICLE = r"(?:(?:van|von|de|der|den|del|della|da|di|du|la|le|bin|ibn|al|el|ter|zu) ){1,2}"
_NAME = rf"(?P<name>{_WORD}(?: (?:{_PARTICLE})?(?:[{UPPER}]\. ){{0,2}}{_WORD}){{0,3}})(?![\w\-])"
_TITLE = (
    r"(?:(?:Mr|Mrs|Ms|Miss|Mx|Dr|Prof|Professor|Doctor|Herr|Frau|Monsieur|Madame|Mme|Mlle|Señora?|Sra?"
    r"|Doña|Don|heer|mevrouw|Signora?)\.? ){1,2}"
)
_WORDS_OF_NOBODY = """
Sir Sirs Madam Customer Customers Client Team All Everyone Everybody Friend Friends Colleague Colleagues
Hiring Manager Support Editor Diary God Lord Reader Readers Parents Santa Valued Recipient Member Members
User Users Applicant Candidate Student Students Sales Service The Your Our My Please Sent Best Kind Regards
Thanks Thank Human Resources Assistant Admin Administrator Note Subject Date Hello Herr Frau Damen Kunde
Kundin Kollegen Freunde Madame Monsieur Señor Señora Cliente Amigo Amigos Klant Collega Heer Mevrouw
Mr Mrs Ms Miss Mx Dr Prof Professor Doctor Ami Amis Tous Client Clients Geld
"""
_NOBODY = frozenset(_WORDS_OF_NOBODY.split())
"""Words that stand where a name would, and name nobody."""
_INTRODUCED = re.compile(
    r"\b(?:[Mm]y (?:full |first |last |real )?name(?:['’]s| is)|[Mm]ein Name ist|[Ii]ch hei(?:ß|ss)e"
    r"|[Jj]e m['’]appelle|[Mm]on nom est|[Mm]e llamo|[Mm]i nombre es|[Mm]ijn naam is|[Ii]k heet"
    rf"|[Mm]i chiamo) (?:{_TITLE})?{_NAME}"
)
_TITLED = re.compile(
    r"(?<!\w)(?:I am|I['’]m|[Tt]his is|[Ii]ch bin|[Jj]e suis|[Ss]oy|[Ii]k ben) "
    rf"{_TITLE}{_NAME}"
)
_ADDRESSED = re.compile(
    r"(?m)^[ \t]{0,8}(?:Dear|Lieber?|Sehr geehrter?|Cher|Chère|Estimad[oa]|Querid[oa]|Beste|Geachte"
    rf"|Gentile) (?:{_TITLE})?{_NAME}(?=[ \t]?[,:!](?:\s|$)|[ \t]?$)"
)
_SIGNED = re.compile(
    r"(?m)^[ \t]{0,8}(?:(?:[Bb]est|[Kk]ind|[Ww]arm|[Mm]any)? ?[Rr]egards|[Ss]incerely(?: yours)?"
    r"|[Yy]ours (?:sincerely|truly|faithfully)|[Bb]est wishes|(?:Best|Cheers|(?:Many )?[Tt]hanks|Thank you)(?=,)"
    r"|(?:[Mm]it freundlichen|[Vv]iele|[Ll]iebe|[Bb]este|[Hh]erzliche) Gr(?:ü|ue)(?:ß|ss)en?"
    r"|[Cc]ordialement|[Bb]ien à vous|(?:[Uu]n )?[Ss]aludos?(?: cordiales)?|[Aa]tentamente"
    r"|[Mm]et vriendelijke groet(?:en)?|[Gg]roet(?:en|jes)?|[Cc]ordiali saluti|[Dd]istinti saluti)"
    rf"[ \t]?[,.!]?[ \t]{{0,8}}\r?\n(?:[ \t]{{0,8}}\r?\n)?[ \t]{{0,8}}[-–—]?[ \t]?(?:{_TITLE})?{_NAME}"
    r"(?=[ \t]{0,8}[,.]?[ \t]{0,8}\r?$)"
)
_INTRODUCTIONS = (
    "name is", "name's", "name’s", "Name ist", "ch hei", "'appelle", "’appelle", "on nom", "e llamo", "i nombre", "naam is",
    "k heet", "i chiamo",
)  # fmt: skip
_TITLES = re.compile(
    r"(?: am|'m|’m|is|bin|suis|oy|ben) (?:[MD][rsx]|Mi|Prof|Doc|Herr|Frau|M[omal]|Se|Sr|Do|heer|mev|Sig)"
)
_BEFORE_TITLES = (" M", " D", " Prof", " Herr", " Frau", " S", " heer", " mev")
"""How what `_TITLES` finds ends; whether a text has one costs half of a search."""
_GREETINGS = (
    "Dear ", "Liebe", "eehrte", "Cher", "Chère ", "Estimad", "Querid", "Beste ", "Geachte ", "Gentile ",
)  # fmt: skip
_CLOSINGS = (
    "egards", "incerely", "ours ", "wishes", "Best,", "Cheers,", "hanks,", "Thank you,", "Gr", "ordial",
    "ien à vous", "aludo", "tentamente", "groet", "istinti",
)  # fmt: skip


def name_patterns(text: str) -> list[re.Pattern[str]]:
    """The patterns of which the text has what each needs; a few substrings decide for most texts."""
    found: list[re.Pattern[str]] = []
    if has_one(text, _INTRODUCTIONS):
        found.append(_INTRODUCED)
    if has_one(text, _BEFORE_TITLES) and _TITLES.search(text):
        found.append(_TITLED)
    if has_one(text, _GREETINGS):
        found.append(_ADDRESSED)
    if "\n" in text and has_one(text, _CLOSINGS):
        found.append(_SIGNED)
    return found


def is_name(name: str) -> bool:
    """Whether it names somebody, and is no "Dear Customer" or "Support Team"."""
    words = name.split()
    return words[0] not in _NOBODY and words[-1] not in _NOBODY


def has_one(text: str, parts: tuple[str, ...]) -> bool:
    """Whether one of some parts is in a text."""
    # any() with a generator takes four times as long.
    for part in parts:  # noqa: SIM110
        if part in text:
            return True
    return False
