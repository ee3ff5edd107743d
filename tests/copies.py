"""A text and the ways in which a copy of it is written: (title, text)."""

from __future__ import annotations

import unicodedata

PLAIN = "The café of the lake\nis open until ten. It serves tea."
COPIES = {
    "trailing space": ("", PLAIN + " "),
    "line end": ("", PLAIN.replace("\n", "\r\n") + "\n"),
    "double space": ("", PLAIN.replace(". ", ".  ")),
    "no-break space": ("", PLAIN.replace(" lake", "\u00a0lake")),
    "zero-width space": ("", PLAIN.replace("open", "op\u200ben")),
    "case": ("", PLAIN.upper()),
    "NFD": ("", unicodedata.normalize("NFD", PLAIN)),
    "in the title": (PLAIN, ""),
    "begun in the title": ("The café of the lake", "is open until ten. It serves tea."),
}
