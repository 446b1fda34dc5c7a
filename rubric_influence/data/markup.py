"""Text of HTML, Word files (.docx) and EPUB: Markdown without links, pictures and emphasis, a blank line a paragraph.

Libraries are imported where they are used: they would slow down the start of every command.
"""

import codecs
import posixpath
import re
import xml.etree.ElementTree as ET
import zipfile
import zlib
from io import BytesIO
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag

UNSEEN = "script, style, noscript, template, head, svg, iframe, [hidden], [aria-hidden=true]"
NAVIGATION = (
    "nav, aside, footer, button, select, dialog, menu, [role=navigation], [role=banner], [role=contentinfo], "
    "[role=complementary], [role=search], header:not(main header, article header, :has(h1))"
)
LINKS, LINKED = 3, 0.8  # a block of so many links that make up this part of its words is navigation
BLOCKS = ["div", "ul", "ol", "section", "table", "td", "p"]
MAIN = 0.3  # the part of a page's words that its one <main> or <article> must hold to stand for it
# What browsers take these names for; Python takes them at their word.
CHARSETS = {"ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "gb2312": "gb18030", "gbk": "gb18030"}
CHARSETS |= {"shift_jis": "cp932", "euc_kr": "cp949", "tis-620": "cp874", "big5": "big5hkscs"}
# XHTML closes an empty <a id="x"/>, which HTML takes for an opening tag; void elements are without an end in both.
CLOSED = re.compile(r"<(?!area|base|br|col|embed|hr|img|input|link|meta|source|track|wbr)([a-z][\w:]*)([^<>]*)/>", re.I)
ROOM = 2**30  # bytes that a .docx or .epub may unpack to
BLANK_ENDS = re.compile(r"[ \t\xa0]+\n")


def read_html(content: bytes) -> str:
    """The text of a page without scripts and navigation. Raises ValueError for what is not readable."""
    root: Tag = parse(decode_html(content))
    drop(root.select(UNSEEN))
    whole = count(root)
    for names in ("main, [role=main]", "article"):
        found = root.select(names)
        if len(found) == 1 and count(found[0]) >= MAIN * whole:
            root = found[0]
            break
    navigation = root.select(NAVIGATION) + [block for block in root.find_all(BLOCKS) if is_navigation(block)]
    drop([part for part in navigation if part.name == "nav" or count(part) <= whole / 2])  # some have all in an aside
    return write_markdown(root)


def decode_html(content: bytes) -> str:
    """Text in UTF-8, or in the charset that the page declares. Raises ValueError where it is in neither."""
    from bs4.dammit import EncodingDetector

    content, marked = EncodingDetector.strip_byte_order_mark(content)
    declared = marked or EncodingDetector.find_declared_encoding(content, is_html=True) or ""
    try:
        name = codecs.lookup(declared).name if declared else ""
    except LookupError:
        name = ""
    alone = marked or name.startswith(("iso2022", "hz"))  # whose bytes pass for UTF-8
    for encoding in [name] if alone else ["utf-8", CHARSETS.get(name, name)]:
        try:
            return content.decode(encoding or "utf-8")
        except (UnicodeError, LookupError):
            continue
    said = f"nor in {declared!r}, which it declares" if declared else "and declares no charset"
    raise ValueError(f"not UTF-8 text {said}; convert it to UTF-8")


def open_zip(content: bytes) -> zipfile.ZipFile:
    """Raises ValueError for an archive that would fill the memory."""
    archive = zipfile.ZipFile(BytesIO(content))
    if sum(entry.file_size for entry in archive.infolist()) > ROOM:
        raise ValueError(f"it unpacks to over {ROOM // 2**30} GiB, pictures included")
    return archive


def read_docx(content: bytes) -> tuple[str, str]:
    """The text of a Word file, with its headings, lists, tables and footnotes; and what of it cannot be read."""
    import mammoth

    try:
        with open_zip(content) as file:
            equations = len(re.findall(rb"<m:oMath[ >]", file.read("word/document.xml")))
        titled = "p[style-name='Title'] => h1:fresh"
        page = mammoth.convert_to_html(BytesIO(content), convert_image=lambda image: [], style_map=titled).value
    except Exception as error:  # mammoth fails on broken files in many ways
        raise ValueError(f"not a readable .docx ({type(error).__name__}: {error}); save it again, unlocked") from None
    return write_markdown(parse(page)), f"{equations} equations" if equations else ""


def read_epub(content: bytes) -> str:
    """The text of a book's chapters in reading order, without its table of contents.

    Raises ValueError for what is no EPUB, and for a book under copy protection.
    """
    broken = (zipfile.BadZipFile, ET.ParseError, KeyError, StopIteration, RuntimeError, OSError, zlib.error)
    try:
        with open_zip(content) as book:
            names = list_chapters(book)
            if "META-INF/encryption.xml" in book.namelist():
                locked = book.read("META-INF/encryption.xml").decode("utf-8", "replace")
                if any(unquote(name) in unquote(locked) for name in names):
                    raise ValueError("copy protection (DRM)")
            chapters = [decode_html(book.read(name)) for name in names]
    except (*broken, ValueError) as error:
        raise ValueError(f"not a readable EPUB ({error})") from None
    texts = []
    for chapter in chapters:
        soup = parse(CLOSED.sub(r"<\1\2></\1>", chapter))
        drop(soup.select(UNSEEN))
        texts.append(write_markdown(soup))
    return "\n\n".join(filter(None, texts))


def list_chapters(book: zipfile.ZipFile) -> list[str]:
    """The names of a book's files in reading order, without the table of contents and what is to be read on wish."""
    container = ET.fromstring(book.read("META-INF/container.xml"))
    package = next(e.get("full-path", "") for e in container.iter() if e.tag.endswith("}rootfile"))
    root = ET.fromstring(book.read(package))
    items = {e.get("id"): e for e in root.iter() if e.tag.endswith("}item")}
    chapters = []
    for reference in root.iter():
        item = items.get(reference.get("idref")) if reference.tag.endswith("}itemref") else None
        if item is not None and reference.get("linear") != "no" and "nav" not in item.get("properties", "").split():
            place = posixpath.join(posixpath.dirname(package), unquote(item.get("href", "")))
            if "html" in item.get("media-type", ""):
                chapters.append(posixpath.normpath(place))
    return chapters


def parse(page: str) -> "BeautifulSoup":
    from bs4 import BeautifulSoup

    return BeautifulSoup(re.sub(r"^\s*<\?xml[^>]*\?>", "", page), "lxml")


def drop(elements: "list[Tag]") -> None:
    for element in elements:
        element.extract()


def count(element: "Tag") -> int:
    """The words in it."""
    return len(element.get_text(" ").split())


def is_navigation(block: "Tag") -> bool:
    """Whether the block is little else than links."""
    links = block.find_all("a", href=True)
    if len(links) < LINKS:
        return False
    return sum(count(link) for link in links) >= LINKED * count(block)


def write_markdown(root: "Tag") -> str:
    """Raises ValueError for what is nested too deeply."""
    from markdownify import ATX, MarkdownConverter

    tables = root.find_all("table")
    layouts = [t for t in tables if t.get("role") == "presentation" or t.find(["table", "h1", "h2", "h3"])]
    ours = set(map(id, layouts))
    parts = [part for part in root.find_all(["tr", "td", "th"]) if id(part.find_parent("table")) in ours]
    for element in [*layouts, *parts]:
        element.name = "div"  # its cells hold paragraphs, not figures
    converter = MarkdownConverter(
        heading_style=ATX,
        bullets="-",
        strip=["a", "img", "b", "strong", "em", "i"],
        escape_asterisks=False,
        escape_underscores=False,
        table_infer_header=True,
    )
    try:
        text = converter.convert_soup(root)
    except RecursionError:
        raise ValueError("its elements are nested too deeply; save it as text") from None
    text = BLANK_ENDS.sub("\n", text.replace("\xad", ""))
    return re.sub(r"\n{3,}", "\n\n", text).strip()
