import io
import zipfile

import pytest
from document_samples import make_docx, make_epub, make_table, paragraph, zip_files
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.data.markup import decode_html, read_docx, read_epub, read_html

PAGE = """<!DOCTYPE html><html><head><title>no</title><style>no {}</style></head><body>
<nav><a href="/">no</a></nav><header>no</header><script>var no = 1;</script>
<h1>Doses</h1><p>First <b>bold</b> and <a href="x">linked</a> text_a &amp; caf&eacute;*.</p>
<table><tr><th>Drug</th><th>Dose</th></tr><tr><td><p>Aspirin</p></td><td>100&nbsp;mg</td></tr></table>
<ul><li>one</li><li>two<ul><li>within</li></ul></li></ul>
<div><a href="1">no</a> <a href="2">no</a> <a href="3">no</a></div>
<pre>a  b
 c</pre><p>H<sub>2</sub>O<br>melts</p><form><p>Last.</p></form><footer>no</footer></body></html>"""
TEXT = """# Doses

First bold and linked text_a & café*.

| Drug | Dose |
| --- | --- |
| Aspirin | 100\xa0mg |

- one
- two
  - within

```
a  b
 c
```

H2O
melts

Last."""


def test_a_page_is_its_text_with_tables_and_lists_and_without_navigation():
    assert read_html(PAGE.encode()) == TEXT


def test_the_one_main_part_of_a_page_is_its_text():
    page = "<body><p>before it</p><main><header>head</header><p>the very text of it</p></main></body>"
    assert read_html(page.encode()) == "head\n\nthe very text of it"


def test_a_page_that_has_all_its_text_in_an_aside_or_in_links_keeps_it():
    assert read_html(b"<body><aside><p>all of the text</p></aside></body>") == "all of the text"
    links = "".join(f"<li><a href={n}>law {n}</a></li>" for n in range(4))
    assert read_html(f"<body><ul>{links}</ul></body>".encode()).count("law") == 4


def test_a_layout_made_of_a_table_keeps_its_paragraphs():
    inner = "<table><tr><td>a</td><td>b</td></tr></table>"
    page = f"<table><tr><td><h2>Head</h2><p>one</p><p>two</p></td><td>{inner}</td></tr></table>"
    assert read_html(page.encode()) == "## Head\n\none\n\ntwo\n\n| a | b |\n| --- | --- |"


@pytest.mark.parametrize(
    ("text", "declared", "encoding"),
    [
        ("café 5 €", "iso-8859-1", "cp1252"),  # as browsers read it
        ("café", "nonsense", "utf-8"),
        ("café", "iso-8859-1", "utf-8"),  # declared by a server's template, in vain
        ("кофе", "windows-1251", "cp1251"),
        ("日本語", "iso-2022-jp", "iso2022_jp"),
        ("日本語", "utf-8", "utf-16"),  # with a byte order mark
        ("日本語", "Shift_JIS", "cp932"),
        ("café", "utf-8", "utf-8-sig"),
    ],
)
def test_a_page_is_read_in_the_charset_that_it_is_in(text, declared, encoding):
    page = f'<html><head><meta charset="{declared}"></head><p>{text}</p></html>'
    assert f"<p>{text}</p>" in decode_html(page.encode(encoding))


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (b"caf\xe9", "not UTF-8 text and declares no charset; convert it to UTF-8"),
        (b"<meta charset=utf-8>caf\xe9", "not UTF-8 text nor in 'utf-8', which it declares"),
        (b"<meta charset=base64>caf\xe9", "nor in 'base64'"),
    ],
)
def test_a_page_in_no_known_charset_is_refused(page, message):
    with pytest.raises(ValueError, match=message):
        decode_html(page)


def test_a_word_file_is_its_headings_paragraphs_and_tables():
    table = make_table(("Drug", "Dose"), ("Aspirin", "100 mg"))
    content = make_docx(paragraph("Doses", "H") + paragraph("Take < 3.") + table + paragraph("End."))
    assert read_docx(content) == (
        "# Doses\n\nTake < 3.\n\n| Drug | Dose |\n| --- | --- |\n| Aspirin | 100 mg |\n\nEnd.",
        "",
    )


def test_equations_that_a_word_file_loses_are_counted():
    text, missing = read_docx(
        make_docx(paragraph("Be it so:") + "<w:p><m:oMath><m:r><m:t>x</m:t></m:r></m:oMath></w:p>")
    )
    assert (text, missing) == ("Be it so:", "1 equations")


def test_a_book_is_its_chapters_in_reading_order_without_contents():
    chapters = {
        "toc.xhtml": "<p>contents</p>",
        "b.xhtml": '<h1>Two</h1><p>sec\xadond<a id="x"/> text&nbsp;here</p><script src="s"/><p>more</p>',
        "a.xhtml": "<h1>One</h1><p>first</p>",
        "note.xhtml": "<p>not in the spine</p>",
    }
    book = make_epub(chapters, ["toc.xhtml", "a.xhtml", "b.xhtml"], {"toc.xhtml": "nav"})
    assert read_epub(book) == "# One\n\nfirst\n\n# Two\n\nsecond text\xa0here\n\nmore"


def test_a_protected_book_is_refused():
    book = make_epub({"a.xhtml": "<p>secret</p>"}, ["a.xhtml"])
    locked = '<encryption><CipherReference URI="OPS/a.xhtml"/></encryption>'
    content = io.BytesIO(book)
    with zipfile.ZipFile(content, "a") as archive:
        archive.writestr("META-INF/encryption.xml", locked)
    with pytest.raises(ValueError, match=r"not a readable EPUB \(copy protection \(DRM\)\)"):
        read_epub(content.getvalue())


@pytest.mark.parametrize("read", [read_docx, read_epub])
@pytest.mark.parametrize("content", [b"", b"PK", zip_files({"a": "b"}), zip_files({"META-INF/container.xml": "<"})])
def test_what_is_no_such_file_is_refused(read, content):
    with pytest.raises(ValueError, match="not a readable"):
        read(content)


def test_a_file_that_would_fill_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr("rubric_influence.data.markup.ROOM", 1000)
    for read, content in ((read_docx, make_docx(paragraph("word " * 300))), (read_epub, zip_files({"a": "a" * 1001}))):
        with pytest.raises(ValueError, match="it unpacks to over"):
            read(content)


DEEP = b"<div>" * 3000 + b"text"


@given(st.text(alphabet="<>/abdivtrpl =\"'&;!-", max_size=120).map(str.encode) | st.binary(max_size=60) | st.just(DEEP))
def test_any_bytes_are_a_text_or_a_value_error(content):
    try:
        assert isinstance(read_html(content), str)
    except ValueError as error:
        assert str(error)
