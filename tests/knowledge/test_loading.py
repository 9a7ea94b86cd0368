"""Loading: each format's text, headings and facts; what cannot be read is said in a sentence."""

from __future__ import annotations

import gzip
import http.server
import io
import threading
from pathlib import Path

import docx
import pypdf
import pytest

from atlas.errors import DocumentError
from atlas.knowledge import Document, Loader
from atlas.knowledge.loading import find_sources

LOADER = Loader()


def load(folder: Path, name: str, content: str | bytes) -> Document:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return LOADER.load(str(path))


def outline(document: Document) -> list[tuple[int, str]]:
    """Return levels and titles, after a look whether each heading is where it says."""
    for heading in document.headings:
        assert heading.title in document.text[heading.offset :][:200].replace("`", "")
    return [(heading.level, heading.title) for heading in document.headings]


MARKDOWN = """---
title: The page
author: "Ann"
---
# One

words

## Two `code`

```
# no heading
```

Three
=====
"""


def test_markdown(tmp_path: Path) -> None:
    page = load(tmp_path, "page.md", MARKDOWN)

    assert page.text == MARKDOWN
    assert page.title == "The page"
    assert page.metadata["author"] == "Ann"
    assert [title for _, title in outline(page)] == ["One", "Two code", "Three"]


def test_restructured_text(tmp_path: Path) -> None:
    text = "=====\nTitle\n=====\n\n:Author: Ann\n\nPart\n----\n\nwords\n\nSub\n~~~\n\n.. note::\n\n   x\n\nLast\n----\n"

    page = load(tmp_path, "page.rst", text)

    assert page.text == text
    assert page.title == "Title"
    assert page.metadata["author"] == "Ann"
    assert outline(page) == [(1, "Title"), (2, "Part"), (3, "Sub"), (2, "Last")]


def test_html_as_a_reader_sees_it(tmp_path: Path) -> None:
    page = load(
        tmp_path,
        "page.html",
        "<html lang=en><head><title>The page</title><meta name=author content=Ann><style>b{}</style></head>"
        "<body><nav>menu</nav><h1>One</h1><p>first <b>bold</b>\n words<p>second</p><ul><li>a</li><li>b</li></ul>"
        "<pre>x =  1\ny</pre><script>bad()</script><!-- note --><h2>Two</h2><table><tr><td>c<td>d</table>",
    )

    assert (page.title, page.metadata["author"], page.metadata["language"]) == (
        "The page",
        "Ann",
        "en",
    )
    assert outline(page) == [(1, "One"), (2, "Two")]
    assert "first bold words\n\nsecond\n\na\nb\n\nx =  1\ny" in page.text
    assert "c | d" in page.text
    assert not any(word in page.text for word in ("menu", "bad", "note", "b{}"))


def test_xhtml(tmp_path: Path) -> None:
    content = (
        '<?xml version="1.0" encoding="iso-8859-1"?>\n<!DOCTYPE html>\n'
        '<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="fr"><head><title>Été</title>'
        '<meta property="article:author" content="Ann"/></head><body><p>Déjà vu</p></body></html>'
    ).encode("latin-1")

    page = load(tmp_path, "page.xhtml", content)

    assert (page.title, page.text.strip()) == ("Été", "Déjà vu")
    assert (page.metadata["language"], page.metadata["author"]) == ("fr", "Ann")


def test_pdf(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="damaged PDF"):
        load(tmp_path, "bad.pdf", b"%PDF-1.4 nothing")
    writer = pypdf.PdfWriter()
    writer.add_blank_page(100, 100)
    empty = io.BytesIO()
    writer.write(empty)
    with pytest.raises(DocumentError, match="holds no text"):
        load(tmp_path, "scan.pdf", empty.getvalue())
    writer.encrypt("secret")
    locked = io.BytesIO()
    writer.write(locked)
    with pytest.raises(DocumentError, match="locked by a password"):
        load(tmp_path, "locked.pdf", locked.getvalue())


def test_pdf_with_text_and_an_outline(tmp_path: Path) -> None:
    page = load(tmp_path, "page.pdf", a_pdf("Hello from a page"))

    assert "Hello from a page" in page.text
    assert page.metadata["pages"] == 1
    assert page.title == "The paper"


def a_pdf(words: str) -> bytes:
    """Return a small PDF that shows a line of text."""
    stream = f"BT /F1 12 Tf 20 50 Td ({words}) Tj ET".encode()
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 100]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        b"<</Title(The paper)/Author(Ann)>>",
    ]
    out = bytearray(b"%PDF-1.4\n")
    places = []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 7\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % p for p in places)
    out += b"trailer<</Size 7/Root 1 0 R/Info 6 0 R>>\nstartxref\n%d\n%%%%EOF\n" % start
    return bytes(out)


def test_docx(tmp_path: Path) -> None:
    file = docx.Document()
    file.core_properties.title = "The paper"
    file.core_properties.author = "Ann"
    file.add_heading("One", 1)
    file.add_paragraph("first words")
    file.add_heading("Two", 2)
    table = file.add_table(1, 2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "a", "b"
    content = io.BytesIO()
    file.save(content)

    page = load(tmp_path, "page.docx", content.getvalue())

    assert (page.title, page.metadata["author"]) == ("The paper", "Ann")
    assert outline(page) == [(1, "One"), (2, "Two")]
    assert page.text == "One\n\nfirst words\n\nTwo\n\na | b"
    with pytest.raises(DocumentError, match="damaged DOCX"):
        load(tmp_path, "bad.docx", b"PK nothing")


def test_tables_json_and_code(tmp_path: Path) -> None:
    assert load(tmp_path, "t.csv", "name,year\nAnn,2020\n").metadata["columns"] == "name, year"
    assert load(tmp_path, "t.tsv", "name\tyear\n").metadata["columns"] == "name, year"
    assert load(tmp_path, "t.json", '{"title": "The data", "x": 1}').title == "The data"
    assert load(tmp_path, "t.jsonl", '{"name": "a"}\n{"name": "b"}\n').title == "a"
    code = load(tmp_path, "t.py", "class A:\n    async def b(self): ...\n\ndef c(): ...\n")
    assert outline(code) == [(1, "class A"), (2, "def b"), (1, "def c")]
    assert code.kind == "code"
    with pytest.raises(DocumentError, match="cannot be read"):
        load(tmp_path, "bad.json", "{")


MAN = r"""'\" t
.ie \n(.g .ds Aq \(aq
.el       .ds Aq '
.if \n[.g] \{\
.  am URL
.    ad l
.  .
.\}
.TH CAT 1 2024-01-01 "Tools" "User"
.SH NAME
cat \- join \fIfiles\fR
.SH "THE OPTIONS"
.PP
Some \*(Aqwords\*(Aq and
more.\" a comment
.TP
.BR \-A ", " \-\-all
everything
.SS Sub
.nf
  kept   as is
.fi
"""
MDOC = r""".Dd January 1, 2024
.Dt LS 1
.Os
.Sh NAME
.Nm ls
.Nd list things
.Sh SYNOPSIS
.Nm
.Op Fl al
.Op Ar file ...
.Sh DESCRIPTION
See
.Xr cat 1 ,
or set
.Ev HOME .
"""


def test_manual_pages(tmp_path: Path) -> None:
    page = load(tmp_path, "cat.1.gz", gzip.compress(MAN.encode()))

    assert (page.title, page.metadata["section"], page.metadata["date"]) == (
        "cat",
        "1",
        "2024-01-01",
    )
    assert outline(page) == [(1, "NAME"), (1, "THE OPTIONS"), (2, "Sub")]
    assert "cat - join files\n" in page.text
    assert "Some 'words' and more.\n" in page.text
    assert "-A, --all everything" in page.text
    assert "  kept   as is\n" in page.text


def test_manual_pages_in_mdoc(tmp_path: Path) -> None:
    page = load(tmp_path, "ls.1", MDOC)

    assert page.title == "ls"
    assert "ls - list things" in page.text
    assert "ls [-al] [file ...]" in page.text
    assert "See cat(1), or set HOME." in page.text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("höher".encode(), "höher"),
        (b"\xef\xbb\xbfx", "x"),
        ("höher".encode("utf-16"), "höher"),
        ("höher".encode("latin-1"), "höher"),
        (b"a\r\nb\rc\n", "a\nb\nc\n"),
        (b"a\0b\x1b[0m", "a b [0m"),
    ],
)
def test_text_in_any_encoding(tmp_path: Path, content: bytes, text: str) -> None:
    assert load(tmp_path, "page.txt", content).text == text


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="No such file"):
        LOADER.load(str(tmp_path / "missing.md"))
    with pytest.raises(DocumentError, match="no format that can be read"):
        load(tmp_path, "x.bin", b"\0\1\2")
    with pytest.raises(DocumentError, match="holds no text"):
        load(tmp_path, "empty.md", " \n")
    (tmp_path / "large.txt").write_text("x" * 100)
    with pytest.raises(DocumentError, match="100 bytes or more; 10 are read at most"):
        Loader(max_bytes=10).load(str(tmp_path / "large.txt"))
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(b"x" * 100_000))
    with pytest.raises(DocumentError, match="1,000 are read at most"):
        Loader(max_bytes=1_000).load(str(tmp_path / "bomb.txt.gz"))


def test_a_format_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "x.shout").write_text("words")

    def shout(source: str, content: bytes) -> Document:
        return Document(source=source, text=content.decode().upper())

    page = Loader(formats={".shout": shout}).load(str(tmp_path / "x.shout"))

    assert (page.text, page.title) == ("WORDS", "x")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The sea is deep and the ships that sail on it are built for the waves of the sea.", "en"),
        ("Die See ist tief, und die Schiffe auf der See sind nicht für den Sturm gebaut, der wird.", "de"),
        ("La mer est grande et les bateaux qui sont sur la mer ne sont pas pour le vent du nord.", "fr"),
        ("El mar es profundo y los barcos que van por el mar no se hacen para la calma del sur.", "es"),
        ("Море глубокое, и корабли плывут.", "ru"),
        ("Море глибоке, і кораблі пливуть її шляхом.", "uk"),
        ("海は深い。船は海を渡る。", "ja"),
        ("海很深,船在海上航行。", "zh"),
        ("alpha beta gamma delta 12 13 14 port host name size path user mode type time", None),
        ("short words", None),
    ],
)  # fmt: skip
def test_the_language_of_a_text(tmp_path: Path, text: str, language: str | None) -> None:
    assert load(tmp_path, "page.txt", text.encode()).metadata.get("language") == language


def test_a_page_from_a_server() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/page"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Last-Modified", "Mon, 02 Jan 2023 03:04:05 GMT")
            self.end_headers()
            self.wfile.write(b"<title>Far</title><p>words" if found else b"")

        def log_message(self, *arguments: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        root = f"http://127.0.0.1:{server.server_port}"
        page = LOADER.load(f"{root}/page")
        with pytest.raises(DocumentError, match="answers 404"):
            LOADER.load(f"{root}/none")
        server.shutdown()
    with pytest.raises(DocumentError, match=r"/page' cannot be read: Connection refused"):
        LOADER.load(f"{root}/page")

    assert (page.title, page.text.strip()) == ("Far", "words")
    assert page.metadata["modified"] == "2023-01-02T03:04:05+00:00"


def test_sources_are_found_each_once(tmp_path: Path) -> None:
    for name in ("b.md", "a.txt", "sub/c.rst", "sub/x.bin", ".git/d.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")

    assert [Path(each).name for each in find_sources([tmp_path])] == ["a.txt", "b.md", "c.rst"]
    assert [
        Path(each).name for each in find_sources([str(tmp_path / "**/*.md"), tmp_path / "b.md"])
    ] == ["b.md"]
    assert find_sources(["http://example.org/x"]) == ["http://example.org/x"]
    with pytest.raises(DocumentError, match="stands for no file"):
        find_sources([tmp_path / "nothing"])
