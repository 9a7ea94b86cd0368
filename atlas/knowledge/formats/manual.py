"""Manual pages, written for man(7) or mdoc(7), to plain text with headings.

The markup is read as text: no program is started and nothing in a page is executed. What only
matters for looks (fonts, indents, sizes) is dropped; macros that a page defines for itself too.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from atlas.knowledge.documents import Document, Field, Heading
from atlas.knowledge.formats.plain import decoded

__all__ = ["read_manual", "read_manual_page"]

_SIGNS: Final = {
    "-": "-", "hy": "-", "mi": "-", "en": "–", "em": "—", "aq": "'", "oq": "'", "cq": "'", "lq": '"',
    "rq": '"', "dq": '"', "bu": "•", "co": "©", "rs": "\\", "ti": "~", "ha": "^", "ga": "`", "lt": "<",
    "gt": ">", "<=": "≤", ">=": "≥", "!=": "≠", "mu": "×", "->": "→", "<-": "←", "at": "@", "sh": "#",
    "Do": "$", "ss": "ß", ":a": "ä", ":o": "ö", ":u": "ü", "'e": "é", "`e": "è", "R": "®", "Tm": "™",
}  # fmt: skip
_ESCAPE: Final = re.compile(
    r"\\(?:f(?:\(..|\[[^\]]*\]|.)|s(?:[-+]?\d{1,2}|\[[^\]]*\])|\*(?P<string>\(..|\[[^\]]*\]|.)"
    r"|\((?P<two>..)|\[(?P<long>[^\]]*)\]|[hvwbCDLlNoXxYZ]'[^']*'|[mMFknV](?:\(..|\[[^\]]*\]|.)"
    r"|(?P<one>.)|$)"
)
_STRINGS: Final = {'L"': '"', 'R"': '"', "lq": '"', "rq": '"', "R": "®", "Tm": "™", "Aq": "'"}
_HEADINGS: Final = {"SH": 1, "Sh": 1, "SS": 2, "Ss": 2}
_BREAKS: Final = {
    "PP",
    "P",
    "LP",
    "Pp",
    "IP",
    "HP",
    "sp",
    "Bl",
    "El",
    "RS",
    "RE",
    "Bd",
    "Ed",
    "TS",
    "TE",
}
_LINES: Final = {"br", "TP", "TQ", "It", "nf", "fi", "EX", "EE"}
_WORDS: Final = {"B", "I", "R", "SM", "SB", "BI", "BR", "IB", "IR", "RB", "RI", "UR", "MT", "URL"}
_JOINED: Final = {"BI", "BR", "IB", "IR", "RB", "RI"}
# Words of mdoc that stand for a sign, before or around their arguments.
_PREFIXES: Final = {"Fl": "-", "Cm": "", "Ar": "", "Pa": "", "Ev": "", "Dv": "", "Li": "", "Va": "",
    "Fa": "", "Ft": "", "Fn": "", "Em": "", "Sy": "", "Ic": "", "Ql": "", "Vt": "", "In": "",
    "Fd": "", "Er": "", "Tn": "", "No": "", "Lk": "", "Mt": "", "An": "", "Ms": "", "Ad": ""}  # fmt: skip
_AROUND: Final = {
    "Op": "[]", "Oo": "[", "Oc": "]", "Dq": "“”", "Do": "“", "Dc": "”", "Sq": "‘’", "Pq": "()",
    "Po": "(", "Pc": ")", "Bq": "[]", "Brq": "{}", "Qq": '""', "Aq": "<>", "Ql": "‘’",
}  # fmt: skip


def read_manual_page(source: str, content: bytes) -> Document:
    """Return the file of a manual page as a document."""
    return read_manual(source, decoded(content))


def read_manual(source: str, content: str) -> Document:
    """Return a manual page as a document.

    Its title is its name, and what the page says of itself in a line when it has that.

    Args:
        source: Where it came from.
        content: The page's markup.
    """
    page = _Page()
    for line in _lines(content):
        page.add(line)
    metadata: dict[str, Field] = {"format": "manual"}
    metadata |= {name: value for name, value in page.facts.items() if value}
    return Document(
        source=source,
        text="".join(page.parts),
        title=page.title,
        headings=page.headings,
        metadata=metadata,
    )


def _lines(content: str) -> Iterator[str]:
    """Yield the lines that make text: no comments, no definitions of macros, no branches for looks."""
    depth = 0  # of a conditional block, which is for looks in practice
    ends = ""
    for line in content.replace("\\\n", "").splitlines():
        if ends:
            ends = "" if re.match(rf"[.']\s*{re.escape(ends)}", line) else ends
            continue
        if depth:
            depth += line.count(r"\{") - line.count(r"\}")
            continue
        begins = re.match(r"[.']\s*(de1?|am|ig)\b\s*(?:\S+\s*)?(\S*)", line)
        if begins:
            ends = begins[2] or "."
            continue
        if re.match(r"[.']\s*(if|ie|el|while)\b", line):
            depth = line.count(r"\{") - line.count(r"\}")
            continue
        yield re.sub(r"\\[\"#].*", "", line) if '\\"' in line or "\\#" in line else line


@dataclass(slots=True)
class _Page:
    title: str = ""
    headings: list[Heading] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    name: str = ""
    heading_next: int = 0
    verbatim: bool = False
    after_heading: bool = False
    parts: list[str] = field(default_factory=list)
    strings: dict[str, str] = field(default_factory=lambda: dict(_STRINGS))
    length: int = 0
    tail: str = "\n\n"  # the last two characters, so that no two blank lines follow each other

    def add(self, line: str) -> None:
        if not line.startswith((".", "'")):
            self._words(self._plain(line))
            return
        match = re.match(r"[.']\s*(\S+)\s?(.*)", line)
        if match:
            self._macro(match[1], match[2].strip())

    def _macro(self, macro: str, rest: str) -> None:
        if macro in _HEADINGS:
            if rest:
                self._heading(_HEADINGS[macro], self._plain(" ".join(_arguments(rest))))
            else:
                self.heading_next = _HEADINGS[macro]
        elif macro in {"TH", "Dt"}:
            self._about(_arguments(rest), dated=macro == "TH")
        elif macro == "Dd":
            self.facts["date"] = self._plain(rest).strip("$").removeprefix("Mdocdate: ").strip()
        elif macro == "Os":
            return
        elif macro == "ds":
            name, _, value = rest.partition(" ")
            self.strings[name] = self._plain(value.strip().removeprefix('"'))
        elif macro in _BREAKS:
            if not self.after_heading:
                self._break()
            if macro == "IP" and rest:
                self._line(self._plain(_arguments(rest)[0]))
        elif macro in _LINES:
            self._newline()
            self.verbatim = (
                macro in {"nf", "EX"} if macro in {"nf", "fi", "EX", "EE"} else self.verbatim
            )
            if macro == "It" and rest:
                self._line(self._mdoc(rest))
        elif macro in _WORDS:
            joint = "" if macro in _JOINED else " "
            self._words(self._plain(joint.join(_arguments(rest))))
        elif macro == "Nd":
            self._words("- " + self._plain(rest))
        elif macro[:1].isupper() and macro[1:2].islower():
            self._words(self._mdoc(f"{macro} {rest}"))

    def _about(self, arguments: list[str], *, dated: bool) -> None:
        plain = [self._plain(each) for each in arguments] + [""] * 3
        self.title = plain[0].lower() if plain[0].isupper() else plain[0]
        self.facts["section"] = plain[1]
        if dated:
            self.facts["date"] = plain[2]

    def _heading(self, level: int, title: str) -> None:
        self._break()
        title = " ".join(title.split())
        self.headings.append(Heading(self.length, level, title))
        self._line(title)
        self.after_heading, self.verbatim = True, False

    def _words(self, words: str) -> None:
        if self.heading_next:
            level, self.heading_next = self.heading_next, 0
            self._heading(level, words)
            return
        if self.verbatim:
            self._put(words.rstrip() + "\n")
            return
        words = " ".join(words.split())
        if not words:
            self._break()
            return
        open_line = self.tail[-1] != "\n"
        self._put(f" {words}" if open_line and words[0] not in ",.;:)]" else words)

    def _line(self, words: str) -> None:
        self._put(words.strip() + "\n")

    def _newline(self) -> None:
        if self.tail[-1] != "\n":
            self._put("\n")

    def _break(self) -> None:
        self._newline()
        if self.tail != "\n\n":
            self._put("\n")

    def _put(self, text: str) -> None:
        if text == "\n" and self.tail == "\n\n":
            return
        self.parts.append(text)
        self.after_heading = False
        self.length += len(text)
        self.tail = (self.tail + text)[-2:]

    def _plain(self, text: str) -> str:
        return _ESCAPE.sub(self._sign, text) if "\\" in text else text

    def _sign(self, match: re.Match[str]) -> str:
        if match["string"] is not None:
            return self.strings.get(match["string"].lstrip("([").rstrip("]"), "")
        if match["two"] or match["long"]:
            name = match["two"] or match["long"]
            if re.fullmatch(r"u[0-9A-F]{4,5}", name):
                return chr(int(name[1:], 16))
            return _SIGNS.get(name, "")
        return {
            "e": "\\",
            "-": "-",
            " ": " ",
            "~": " ",
            "0": " ",
            "'": "'",
            "`": "`",
            ".": ".",
        }.get(match["one"] or "", "")

    def _mdoc(self, rest: str) -> str:
        """Return the text of a line of mdoc words."""
        words: list[str] = []
        closing = ""
        prefix = ""
        arguments = _arguments(rest)
        for index, argument in enumerate(arguments):
            if argument == "Nm":
                following = arguments[index + 1 : index + 2]
                if not following or following[0] in _PREFIXES or following[0] in _AROUND:
                    words.append(self.name)
                elif not self.name:
                    self.name = self._plain(following[0])
            elif argument == "Xr" and len(arguments) > index + 2:
                arguments[index + 1] += f"({arguments[index + 2]})"
                arguments[index + 2] = ""
            elif argument in _PREFIXES:
                prefix = _PREFIXES[argument]
            elif argument in _AROUND:
                signs = _AROUND[argument]
                words.append(signs[0])
                closing = signs[1:] + closing
            elif argument in {"Ns", "Xo", "Xc", "Ap", "Pf"}:
                continue
            elif argument:
                words.append(prefix + self._plain(argument))
        text = " ".join(words) + closing
        return re.sub(r"([\[({“‘<]) ", r"\1", re.sub(r" ([\])}”’>,;:]|\.(?!\.))", r"\1", text))


def _arguments(rest: str) -> list[str]:
    """Return the arguments of a macro; quoted ones may hold spaces."""
    if '"' not in rest:
        return rest.split()
    lexer = shlex.shlex(rest, posix=True)
    lexer.whitespace_split, lexer.quotes, lexer.escape, lexer.commenters = True, '"', "", ""
    try:
        return list(lexer)
    except ValueError:  # a quote without its partner
        return rest.replace('"', "").split()
