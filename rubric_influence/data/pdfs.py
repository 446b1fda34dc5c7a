"""Text of PDFs, and which pages have none because they are pictures."""

import re
from io import BytesIO
from itertools import groupby
from typing import Any

FEW = 5  # words on a page: a stamp or a page number, not its text


def read_pdf(content: bytes) -> tuple[str, str]:
    """The text of all pages, with empty lines between them, and the pages that are pictures ("" or "pages 2, 5-7").

    Raises ValueError for what is no PDF or is locked, and where most pages are pictures, as in a scan.
    """
    import pypdf

    try:
        pages = pypdf.PdfReader(BytesIO(content)).pages
        texts = [page.extract_text() for page in pages]
        scans = [number for number, text in enumerate(texts) if len(text.split()) < FEW and is_drawn(pages[number])]
    except Exception as error:  # a broken PDF makes pypdf fail in many ways beside its own errors
        locked = "; save it without its password" * ("decrypt" in str(error) or "cryptography" in str(error))
        raise ValueError(f"not a readable PDF ({type(error).__name__}: {error}){locked}") from None
    where = list_pages(number + 1 for number in scans)
    if len(scans) > len(texts) / 2:
        said = f"no text layer: {len(scans)} of {len(texts)} pages are images"
        where = f" ({where})" if len(scans) < len(texts) else ""
        raise ValueError(f"{said}{where}; run OCR, e.g. ocrmypdf, or remove these pages")
    return "\n\n".join(texts), where


def is_drawn(page: Any) -> bool:
    """Whether the page shows an image or a drawing made elsewhere in the file."""
    contents = page.get_contents()
    return contents is not None and re.search(rb"\b(Do|BI)\b", contents.get_data()) is not None


def list_pages(numbers: Any) -> str:
    """ "pages 2, 5-7", or "" for none."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    shown = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"page{'s' * (len(runs) > 1 or len(runs[0]) > 1)} {shown}" if runs else ""
