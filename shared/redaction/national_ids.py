"""National ids of people, by their form and their check digits (python-stdnum). Pure.

Only forms are here that a random number passes seldom: one in ten of those in groups, one in twenty of
the others. So a Dutch BSN (one of eleven numbers of nine digits) is not found, nor are ids without check
digits, such as the British NINO.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import cast

from stdnum.ar import cuit
from stdnum.be import nn
from stdnum.br import cpf
from stdnum.ca import sin
from stdnum.ch import ssn
from stdnum.cl import rut
from stdnum.cz import rc
from stdnum.de import idnr as de_idnr
from stdnum.ee import ik
from stdnum.es import dni, nie
from stdnum.fi import hetu
from stdnum.fr import nir
from stdnum.gr import amka
from stdnum.ie import pps
from stdnum.in_ import aadhaar
from stdnum.it import codicefiscale
from stdnum.kr import rrn
from stdnum.no import fodselsnummer
from stdnum.pl import pesel
from stdnum.ro import cnp
from stdnum.se import personnummer
from stdnum.tr import tckimlik
from stdnum.za import idnr as za_idnr

_MINUTE = r"20(?:1[5-9]|[2-9]\d)\d{4}-(?:[01]\d|2[0-3])[0-5]\d(?!\d)"
"""YYYYMMDD-HHMM since 2015, as logs and file names have it; one in ten is a Swedish id by its check
digit, and who was born since then seldom writes."""
_FORMS = (
    (r"\d{11}", (de_idnr, pesel, fodselsnummer, nn, cpf, tckimlik, ik, amka)),
    (r"\d{13}", (za_idnr, cnp)),
    (r"\d\d \d{3} \d{3} \d{3}", (de_idnr,)),
    (r"\d{6} \d{5}", (fodselsnummer,)),
    (r"\d{3}\.\d{3}\.\d{3}-\d\d", (cpf,)),
    (r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d", (nn,)),
    (r"\d{8}-?[A-Z]", (dni,)),
    (r"[XYZ]-?\d{7}-?[A-Z]", (nie,)),
    (r"[A-Z]{6}\d\d[A-Z]\d\d[A-Z]\d{3}[A-Z]", (codicefiscale,)),
    (r"[12] ?\d\d ?\d\d ?\d[\dAB] ?\d{3} ?\d{3} ?\d\d", (nir,)),
    (rf"(?!{_MINUTE})(?:\d\d)?\d{{6}}[-+]\d{{4}}", (personnummer,)),
    (r"\d{6}[-+A-FU-Y]\d{3}[\dA-Y]", (hetu,)),
    (r"\d{6}/\d{4}", (rc,)),
    (r"\d{6}-\d{7}", (rrn,)),
    (r"756\.?\d{4}\.?\d{4}\.?\d\d", (ssn,)),
    (r"\d{1,2}\.\d{3}\.\d{3}-[\dkK]", (rut,)),
    (r"2[0347]-\d{8}-\d", (cuit,)),
    (r"[2-9]\d{3} \d{4} \d{4}", (aadhaar,)),
    (r"\d{3}-\d{3}-\d{3}", (sin,)),
    (r"\d{7}[A-W][A-IW]?", (pps,)),
)
"""Forms, and whose ids are written so."""
_CHECKS = [
    tuple(cast("Callable[[str], bool]", country.is_valid) for country in countries)
    for _, countries in _FORMS
]
NATIONAL_ID = re.compile(
    r"(?<![\w.+-])(?=(?a:\d\d|\d[. ]|[XYZ][-\d]|[A-Z]{6}\d))(?:"
    + "|".join(f"((?a:{form}))(?![\\w-]|\\.\\d)" for form, _ in _FORMS)
    + ")"
)
FISCAL_TAIL = r"\d[A-Z]\d{3}[A-Z]"
"""The end of an Italian id, behind a digit: it has no long run of digits as all others have."""


def is_national_id(found: re.Match[str]) -> bool:
    """Whether what `NATIONAL_ID` found has the check digits of a country that writes ids so."""
    assert found.lastindex is not None
    return any(is_valid(found[0]) for is_valid in _CHECKS[found.lastindex - 1])
