import pytest
from document_samples import make_pdf

from rubric_influence.data.pdfs import list_pages, read_pdf

TEXT = "aspirin thins blood within some hours"


def test_pages_are_parted_by_an_empty_line_and_an_empty_page_is_no_scan():
    assert read_pdf(make_pdf(TEXT, "", "second page of it all")) == (f"{TEXT}\n\n\n\nsecond page of it all", "")


def test_a_scan_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="no text layer: 3 of 3 pages are images; run OCR, e.g. ocrmypdf"):
        read_pdf(make_pdf(None, None, None))


def test_a_cover_with_scans_is_no_document():
    with pytest.raises(ValueError, match=r"no text layer: 3 of 4 pages are images \(pages 2-4\); run OCR"):
        read_pdf(make_pdf(TEXT, None, None, None))


def test_the_pages_of_a_text_that_are_pictures_are_told():
    assert read_pdf(make_pdf(TEXT, None, TEXT, None, None, TEXT, TEXT))[1] == "pages 2, 4-5"
    assert read_pdf(make_pdf(TEXT, None))[1] == "page 2"


def test_runs_of_pages_are_put_together():
    assert list_pages([]) == "" and list_pages([3]) == "page 3" and list_pages([1, 2, 3, 7]) == "pages 1-3, 7"


def test_a_broken_pdf_is_refused():
    with pytest.raises(ValueError, match=r"not a readable PDF \(.*\)"):
        read_pdf(b"%PDF-1.4 nothing")
