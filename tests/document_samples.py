"""Small files of the formats that documents come in, made by hand."""

import io
import zipfile
from xml.sax.saxutils import escape


def zip_files(files: dict[str, str]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


def make_docx(body: str) -> bytes:
    """A Word file with this body: `paragraph`s, of which "H" is the style of headings, or XML of one's own."""
    office = "http://schemas.openxmlformats.org"
    words = f'xmlns:w="{office}/wordprocessingml/2006/main" xmlns:m="{office}/officeDocument/2006/math"'
    heading = '<w:style w:type="paragraph" w:styleId="H"><w:name w:val="heading 1"/></w:style>'
    return zip_files(
        {
            "[Content_Types].xml": f'<Types xmlns="{office}/package/2006/content-types"/>',
            "_rels/.rels": f'<Relationships xmlns="{office}/package/2006/relationships"><Relationship Id="r" '
            f'Type="{office}/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/>'
            "</Relationships>",
            "word/styles.xml": f"<w:styles {words}>{heading}</w:styles>",
            "word/document.xml": f"<w:document {words}><w:body>{body}</w:body></w:document>",
        }
    )


def paragraph(text: str, style: str = "") -> str:
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{properties}<w:r><w:t>{escape(text)}</w:t></w:r></w:p>"


def make_table(*rows: tuple[str, ...]) -> str:
    cells = ["".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in row) for row in rows]
    return "<w:tbl>" + "".join(f"<w:tr>{row}</w:tr>" for row in cells) + "</w:tbl>"


CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="OPS/book.opf"/></rootfiles></container>'
)


def make_epub(chapters: dict[str, str], spine: list[str], properties: dict[str, str] | None = None) -> bytes:
    """A book of these files' bodies; `spine` names what is read, in order, `properties` those of a file."""
    items = "".join(
        f'<item id="{name}" href="{name}" media-type="application/xhtml+xml" '
        f'properties="{(properties or {}).get(name, "")}"/>'
        for name in chapters
    )
    order = "".join(f'<itemref idref="{name}"/>' for name in spine)
    package = (
        f'<package xmlns="http://www.idpf.org/2007/opf"><manifest>{items}</manifest><spine>{order}</spine></package>'
    )
    pages = {
        f"OPS/{name}": f'<?xml version="1.0" encoding="utf-8"?><html><head><title/></head><body>{body}</body></html>'
        for name, body in chapters.items()
    }
    return zip_files({"META-INF/container.xml": CONTAINER, "OPS/book.opf": package, **pages})


def make_workbook(**sheets: list[list[str | int | float | None]]) -> bytes:
    """An Excel file; a text cell that starts with "date:" holds that many days since 1899-12-30, shown as a date."""
    office, main = "http://schemas.openxmlformats.org", "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    relation = f"{office}/officeDocument/2006/relationships"
    files = {
        "[Content_Types].xml": f'<Types xmlns="{office}/package/2006/content-types"/>',
        "_rels/.rels": f'<Relationships xmlns="{office}/package/2006/relationships">'
        f'<Relationship Id="r" Type="{relation}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{relation}"><sheets>'
        + "".join(f'<sheet name="{name}" sheetId="{n}" r:id="r{n}"/>' for n, name in enumerate(sheets, start=1))
        + "</sheets></workbook>",
        "xl/styles.xml": f'<styleSheet xmlns="{main}"><cellXfs><xf numFmtId="0"/><xf numFmtId="14"/></cellXfs>'
        "</styleSheet>",
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{office}/package/2006/relationships">'
        + "".join(
            f'<Relationship Id="r{n}" Type="{relation}/worksheet" Target="worksheets/sheet{n}.xml"/>'
            for n in range(1, len(sheets) + 1)
        )
        + f'<Relationship Id="s" Type="{relation}/styles" Target="styles.xml"/></Relationships>',
    }
    for n, rows in enumerate(sheets.values(), start=1):
        data = ""
        for number, row in enumerate(rows, start=1):
            cells = (write_cell(f"{'ABCDEFG'[i]}{number}", value) for i, value in enumerate(row) if value is not None)
            data += f'<row r="{number}">{"".join(cells)}</row>'
        files[f"xl/worksheets/sheet{n}.xml"] = f'<worksheet xmlns="{main}"><sheetData>{data}</sheetData></worksheet>'
    return zip_files(files)


def write_cell(place: str, value: str | int | float) -> str:
    if not isinstance(value, str):
        return f'<c r="{place}"><v>{value}</v></c>'
    if value.startswith("date:"):
        return f'<c r="{place}" s="1"><v>{value.removeprefix("date:")}</v></c>'
    return f'<c r="{place}" t="inlineStr"><is><t>{escape(value)}</t></is></c>'


def make_pdf(*pages: str | None) -> bytes:
    """A PDF of pages with this text, or, for None, with a picture alone; "" is an empty page."""
    objects, kids = [], []
    for text in pages:
        drawn = b"/I Do" if text is None else b"BT /F 12 Tf 20 100 Td (%s) Tj ET" % text.encode() if text else b""
        number = 5 + 2 * len(kids)
        kids.append(b"%d 0 R" % number)
        objects.append(
            b"%d 0 obj <</Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] /Contents %d 0 R "
            b"/Resources <</Font <</F 3 0 R>> /XObject <</I 4 0 R>>>>>> endobj\n"
            b"%d 0 obj <</Length %d>> stream\n%s\nendstream endobj\n"
            % (number, number + 1, number + 1, len(drawn), drawn)
        )
    head = (
        b"%%PDF-1.4\n1 0 obj <</Type /Catalog /Pages 2 0 R>> endobj\n"
        b"2 0 obj <</Type /Pages /Kids [%s] /Count %d>> endobj\n"
        b"3 0 obj <</Type /Font /Subtype /Type1 /BaseFont /Helvetica>> endobj\n"
        b"4 0 obj <</Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8 "
        b"/Length 1>> stream\n0\nendstream endobj\n" % (b" ".join(kids), len(kids))
    )
    return head + b"".join(objects) + b"trailer <</Root 1 0 R>>\nstartxref\n0\n%%EOF\n"
