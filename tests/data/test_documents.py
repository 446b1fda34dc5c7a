import gzip
import json
import re
import tracemalloc
from collections import Counter
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from document_samples import make_docx, make_epub, make_pdf, make_workbook, paragraph
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from rubric_influence.core.corpus_sections import DocumentColumns, LabCorpus, TextCorpus
from rubric_influence.core.records import Document
from rubric_influence.data.chunks import chunk_document
from rubric_influence.data.documents import check_documents, check_lengths, drop_duplicates, read_documents
from rubric_influence.lab.networks import build_tokenizer
from rubric_influence.pipeline.stages.corpus import build_corpus

FIELD = str(Path(__file__).resolve().parents[2] / "data/lab/fields/medicine.yaml")
LAB = {"kind": "lab", "field": FIELD, "documents": 6, "dev_documents": 2, "validation_entities": 3, "guard_entities": 1}
# One page that shows the words "aspirin thins blood"; pypdf rebuilds the cross-reference table that it lacks.
PDF = b"""%PDF-1.4
1 0 obj <</Type /Catalog /Pages 2 0 R>> endobj
2 0 obj <</Type /Pages /Kids [3 0 R] /Count 1>> endobj
3 0 obj <</Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] /Contents 4 0 R
  /Resources <</Font <</F 5 0 R>>>>>> endobj
4 0 obj <</Length 49>> stream
BT /F 12 Tf 20 100 Td (aspirin thins blood) Tj ET
endstream endobj
5 0 obj <</Type /Font /Subtype /Type1 /BaseFont /Helvetica>> endobj
trailer <</Root 1 0 R>>
startxref
0
%%EOF
"""


def write_lines(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_a_folder_gives_its_text_files_in_order_with_where_they_were(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "b.txt").write_text("  two\n")
    (tmp_path / "a.md").write_bytes(b"\xef\xbb\xbfone")  # with a byte order mark
    (tmp_path / "sub" / "c.TXT").write_text("thrée", encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\xff")
    (tmp_path / ".git" / "d.txt").write_text("hidden")
    assert read_documents(tmp_path).documents == [
        Document("one", "a", "a.md"),
        Document("two", "b", "b.txt"),
        Document("thrée", "c", "sub/c.TXT"),
    ]
    assert read_documents(tmp_path / "b.txt").documents == [Document("two", "b", "b.txt")]


def test_a_pdf_gives_the_text_of_its_pages(tmp_path):
    (tmp_path / "a.pdf").write_bytes(PDF)
    assert read_documents(tmp_path).documents == [Document("aspirin thins blood", "a", "a.pdf")]


def test_json_lines_give_text_with_title_or_else_id(tmp_path):
    path = write_lines(
        tmp_path / "d.jsonl", {"text": "a\u2028b", "title": "t", "id": 1}, {"text": "b", "id": 7}, {"text": "c"}
    )
    assert read_documents(path).documents == [
        Document("a\u2028b", "t", "d.jsonl, line 1"),
        Document("b", "7", "d.jsonl, line 2"),
        Document("c", "", "d.jsonl, line 3"),
    ]


def test_a_pubmedqa_document_is_the_abstract_without_question_and_conclusion(tmp_path):
    article = {"QUESTION": "q?", "CONTEXTS": ["aim", "result"], "LONG_ANSWER": "conclusion", "final_decision": "yes"}
    (tmp_path / "p.json").write_text(json.dumps({"123": article}))
    assert read_documents(tmp_path / "p.json").documents == [Document("aim\n\nresult", "123", "p.json, article 123")]


def test_all_unusable_files_are_told_at_once(tmp_path):
    (tmp_path / "fine.txt").write_text("fine")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    with pytest.raises(ValueError, match="correct or remove them") as error:
        read_documents(tmp_path)
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == 3
    assert "broken.pdf: not a readable PDF" in lines[0]
    assert "empty.txt: text is ' \\n', expected non-empty text" in lines[1]
    assert "latin.txt: not UTF-8 text (unexpected end of data at byte 0); convert it to UTF-8" in lines[2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "q", "answer": "a"}', r"no key 'text'; its keys are \['answer', 'question'\]"),
        ('{"text": ""}', "text is '', expected non-empty text"),
        ('{"text": ["a"]}', r"text is \['a'\]"),
        ('{"text": "\\ud800"}', "text holds half a surrogate pair"),
        ('"text"', "expected a JSON object, found 'text'"),
        ("{", "not JSON"),
    ],
)
def test_an_unusable_line_is_named_with_its_fault(tmp_path, line, message):
    (tmp_path / "d.jsonl").write_text('{"text": "fine"}\n' + line)
    with pytest.raises(ValueError, match=f"d.jsonl, line 2: {message}"):
        read_documents(tmp_path / "d.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.json", b'{"1": {"CONTEXTS": "c"}}', "article 1: CONTEXTS is 'c', expected a list"),
        ("p.json", b'{"1": {"CONTEXTS": []}}', "article 1: text is ''"),
        ("p.json", b"[1]", "p.json, item 1: expected a JSON object, found '1'"),
        ("p.json", b"\xff", "p.json: not UTF-8 text"),
        ("d.csv", b"text", r"no documents at .*d.csv; (.*\n.*)*d.csv: it has no rows"),
        ("d.png", b"a", "no documents at .*d.png; give a file or folder of .txt, .md, "),
        ("d.jsonl", b"\n", "no documents at .*d.jsonl"),
    ],
)
def test_a_file_without_documents_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_documents(tmp_path / name)


def test_an_absent_path_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no documents at .*none; give a file or folder of .txt"):
        read_documents(tmp_path / "none")


@given(
    st.sampled_from(["a.txt", "a.jsonl", "a.json", "a.pdf"]),
    st.binary(max_size=200)
    | st.text(alphabet='{}[]:"\\ud80textCONTEXTS 1\n', max_size=60).map(str.encode)
    | st.tuples(st.integers(0, len(PDF)), st.binary(max_size=8)).map(
        lambda cut: PDF[: cut[0]] + cut[1] + PDF[cut[0] + len(cut[1]) :]
    ),
)
def test_reading_any_bytes_gives_documents_or_a_value_error(tmp_path_factory, name, content):
    path = tmp_path_factory.mktemp("documents") / name
    path.write_bytes(content)
    try:
        documents = read_documents(path).documents
    except ValueError as error:
        assert name in str(error)
        return
    assert documents and all(document.text.strip() and len(document.id) == 16 for document in documents)


def test_documents_that_differ_in_blanks_alone_are_one():
    first, other = Document("a b", "first"), Document("a c")
    assert drop_duplicates([first, Document(" a\n\nb "), other]) == [first, other]


def test_prompts_that_do_not_fit_are_listed_with_their_token_counts(medicine):
    tokenizer = build_tokenizer(medicine)
    documents = [Document("a a a", "short"), Document("a a a a a", "long", "x.txt"), Document("{rubric} a a a a a a")]
    # The template adds <|user|>, "document", ":", <|end|> and <|assistant|>: five tokens, one a word.
    check_lengths(documents, tokenizer, "document : {document}", 12)
    check_lengths(documents[:1], tokenizer, "document : {document}", 8)
    with pytest.raises(ValueError) as error:
        check_lengths(documents, tokenizer, "document : {document}", 8)
    assert str(error.value).splitlines() == [
        "prompts longer than 8 tokens; lower corpus.max_document_words or raise synthesis.max_prompt_tokens:",
        "  long (x.txt): 10 tokens",
        f"  {documents[2].id} (): 12 tokens",
    ]


def test_the_labs_splits_ask_about_disjoint_entities(medicine):
    corpus = build_corpus(LabCorpus(**LAB, seed=0))
    names = {name: re.compile(rf"\b{name}\b") for name in medicine.entity_names}
    asked = {split: set() for split in ("validation", "guard", "dev", "test")}
    for item in corpus.exam:
        asked[item.split] |= {name for name, pattern in names.items() if pattern.search(item.question)}
    assert {split: len(found) for split, found in asked.items()} == dict(validation=3, guard=1, dev=2, test=4)
    assert asked["dev"] | asked["test"] == {document.title for document in corpus.documents}
    assert len(set.union(*asked.values())) == 10


def test_the_labs_exam_is_answered_by_its_documents(medicine):
    corpus = build_corpus(LabCorpus(**LAB, seed=0))
    texts = {document.title: document.text for document in corpus.documents}
    answered = [item for item in corpus.exam if item.split in ("dev", "test")]
    for item in answered:
        (name,) = [name for name in texts if f" {name} " in f" {item.question} "]
        assert f" {item.answer} " in f" {texts[name]} "
        assert [option for option in item.options if f" {option} " in f" {texts[name]} "] == [item.answer]
    wordings = {topic: len(medicine.attributes[topic].technical) for topic in medicine.exam_topics}
    assert Counter(item.topic for item in answered) == {topic: 6 * count for topic, count in wordings.items()}
    assert corpus.report["exam"]["dev"] + corpus.report["exam"]["test"] == len(answered)


def test_a_lab_corpus_depends_on_its_seed_alone():
    first, again, other = (build_corpus(LabCorpus(**LAB, seed=seed)) for seed in (0, 0, 1))
    assert first == again and first.documents != other.documents


def test_a_text_corpus_is_read_deduplicated_cut_and_reported(tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "a.txt").write_text("one two three. four five six.")
    (folder / "b.txt").write_text("one two three.\nfour five six.")
    (folder / "c.txt").write_text("one two three.")  # what the first chunk of a.txt says
    (folder / "d.txt").write_text("seven eight")
    rows = [{"question": f"q {n}", "options": {"A": "a", "B": "b"}, "answer_idx": "A"} for n in (*range(10), 0)]
    exam = write_lines(tmp_path / "exam.jsonl", *rows)
    section = dict(
        kind="text", documents=str(folder), exam=str(exam), exam_format="medqa", max_document_words=4, seed=0
    )
    corpus = build_corpus(TextCorpus(**section))
    assert {document.text for document in corpus.documents} == {"one two three.", "four five six.", "seven eight"}
    assert corpus.report == dict(
        documents_read=4,
        duplicates_dropped=2,
        chunks=3,
        left_out={"the text of an earlier document": 1},
        left_out_files=["b.txt: the text of an earlier document"],
        documents=3,
        words=dict(min=2, median=3, max=3),
        questions_read=11,
        repeated_questions_dropped=1,
        exam=dict(validation=2, guard=1, dev=2, test=5),
    )
    smaller = build_corpus(TextCorpus(**section, max_documents=2))
    assert smaller.documents == corpus.documents[:2] and smaller.report["documents"] == 2
    assert smaller.exam == corpus.exam


def test_pubmedqa_gives_its_thousand_abstracts(real_data):
    documents = read_documents(real_data("pubmedqa/ori_pqal.json")).documents
    assert len({document.id for document in documents}) == len(documents) == 1000
    assert documents[0].title == "21645374" and documents[0].text.startswith("Programmed cell death (PCD)")


def test_a_textbook_gives_its_modules_and_chunks(real_data):
    path = real_data("world_history/documents.jsonl")
    documents = read_documents(path).documents
    unique = drop_duplicates(documents)
    chunks = [chunk for document in unique for chunk in chunk_document(document, 1500)]
    assert (len(documents), len(unique), len(chunks)) == (157, 156, 516)
    assert " ".join(c.text for c in chunks).split() == " ".join(d.text for d in unique).split()
    cut = [len(chunk.text.split()) for chunk in chunks if chunk.title.endswith(")")]
    assert min(cut) > 500 and max(cut) <= 1500


def test_question_and_answer_lines_are_no_documents(real_data):
    with pytest.raises(ValueError, match=r"its keys are \['answer', 'focus', 'question', 'source', 'url'\]"):
        read_documents(real_data("medquad/qa.jsonl"))


@pytest.mark.parametrize(
    ("documents", "exam", "exam_format", "sizes"),
    [
        ("pubmedqa/ori_pqal.json", "pubmedqa/ori_pqal.json", "pubmedqa", (200, 100, 200, 500)),
        ("world_history/documents.jsonl", "mmlu_history", "mmlu", (124, 62, 124, 310)),
    ],
)
def test_real_corpora_build(real_data, documents, exam, exam_format, sizes):
    section = dict(documents=str(real_data(documents)), exam=str(real_data(exam)), exam_format=exam_format)
    corpus = build_corpus(TextCorpus(kind="text", **section, seed=0))
    assert tuple(corpus.report["exam"].values()) == sizes
    assert corpus.report["documents"] == len({document.id for document in corpus.documents})


def fill_folder(folder):
    """A folder of every format, mixed, with what is to be left out; the formats' texts begin with their endings."""
    (folder / "sub").mkdir(parents=True)
    words = "says that aspirin thins blood"
    rows = [{"text": f"parquet {words}", "title": "p"}]
    for name, content in {
        "a.txt": f"txt {words}".encode(),
        "b.markdown": f"markdown {words}".encode(),
        "c.html": f"<html><nav>menu</nav><p>html {words}</p></html>".encode(),
        "d.docx": make_docx(paragraph(f"docx {words}")),
        "e.epub": make_epub({"a.html": f"<p>epub {words}</p>"}, ["a.html"]),
        "f.pdf": make_pdf(f"pdf {words}", None, f"pdf {words} again"),
        "g.jsonl": json.dumps({"text": f"jsonl {words}", "id": 7, "source": "the web"}).encode(),
        "h.json": json.dumps([{"text": f"json {words}"}]).encode(),
        "i.csv": f'title,text\nt,"csv {words},\nreally"\n'.encode(),
        "j.tsv": f"\ufefftext\ttitle\ntsv {words}\t\n".encode(),
        "k.xlsx": make_workbook(S=[["title", "text"], [2024, f"xlsx {words}"]]),
        "l.txt.gz": gzip.compress(f"gz {words}".encode()),
        "m.jsonl.gz": gzip.compress(json.dumps({"text": f"jsonl.gz {words}"}).encode()),
        "sub/n.HTM": f"<p>htm {words}".encode(),
        "picture.png": b"\xff",
        "talk.pptx": b"PK",
        "LICENSE": b"MIT",
        ".hidden.txt": b"hidden",
    }.items():
        (folder / name).write_bytes(content)
    parquet.write_table(pa.Table.from_pylist(rows), folder / "o.parquet")
    set_of_rows = datasets.Dataset.from_list([{"text": f"arrow {words}"}, {"text": f"arrow too {words}"}])
    set_of_rows.save_to_disk(folder / "saved")
    return folder


def test_a_folder_of_all_formats_is_read_and_what_is_left_out_is_told(tmp_path):
    folder = fill_folder(tmp_path / "docs")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "x.txt").write_text("linked text")
    (folder / "link").symlink_to(tmp_path / "far")
    found = read_documents(folder)
    said = {document.source: (document.title, document.text.split()[0]) for document in found.documents}
    assert said == {
        "a.txt": ("a", "txt"),
        "b.markdown": ("b", "markdown"),
        "c.html": ("c", "html"),
        "d.docx": ("d", "docx"),
        "e.epub": ("e", "epub"),
        "f.pdf": ("f", "pdf"),
        "the web": ("7", "jsonl"),
        "h.json, item 1": ("", "json"),
        "i.csv, row 2": ("t", "csv"),
        "j.tsv, row 2": ("", "tsv"),
        "k.xlsx, sheet S, row 2": ("2024", "xlsx"),
        "l.txt.gz": ("l", "gz"),
        "link/x.txt": ("x", "linked"),
        "m.jsonl.gz, line 1": ("", "jsonl.gz"),
        "o.parquet, row 1": ("p", "parquet"),
        "saved/data-00000-of-00001.arrow, row 1": ("", "arrow"),
        "saved/data-00000-of-00001.arrow, row 2": ("", "arrow"),
        "sub/n.HTM": ("n", "htm"),
    }
    assert {item.source: item.reason for item in found.skipped} == {
        ".hidden.txt": "hidden",
        "LICENSE": "of a format that is not read (no ending)",
        "f.pdf, page 2": "a part of a document that cannot be read",
        "picture.png": "of a format that is not read (.png)",
        "saved/dataset_info.json": "the description of a data set",
        "saved/state.json": "the description of a data set",
        "talk.pptx": "of a format that is not read (.pptx)",
    }
    assert check_documents(folder) == (len(found.documents), found.skipped)


def test_faulty_documents_are_refused_or_on_wish_left_out(tmp_path):
    (tmp_path / "fine.txt").write_text("fine")
    (tmp_path / "scan.pdf").write_bytes(make_pdf("a cover of five whole words", None, None, None))
    (tmp_path / "rows.csv").write_text("text,n\ngood,1\n,2\n")
    with pytest.raises(ValueError, match="left out by corpus.skip_faulty_documents") as error:
        read_documents(tmp_path)
    assert "scan.pdf: no text layer: 3 of 4 pages are images (pages 2-4); run OCR" in str(error.value)
    assert "rows.csv, row 3: text is None, expected non-empty text" in str(error.value)
    found = read_documents(tmp_path, skip_faulty=True)
    assert [document.text for document in found.documents] == ["fine", "good"]
    assert [item.source for item in found.skipped] == ["rows.csv, row 3", "scan.pdf"]


def test_columns_of_other_names_are_read_where_the_profile_says_so(tmp_path):
    (tmp_path / "d.csv").write_text("name,body,note\nn,first,second\nm,alone,\n")
    with pytest.raises(ValueError, match=r"no key 'text'; its keys are \['body', 'name', 'note'\]; say in corpus.doc"):
        read_documents(tmp_path)
    found = read_documents(tmp_path, DocumentColumns(text=["body", "note"], title="name"))
    assert [(d.text, d.title) for d in found.documents] == [("first\n\nsecond", "n"), ("alone", "m")]
    single = read_documents(tmp_path, DocumentColumns(text=["body"])).documents
    assert [document.text for document in single] == ["first", "alone"]


def test_a_folder_of_unread_formats_alone_is_refused_with_what_is_there(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"no documents at (.*\n)+.*a.png: of a format that is not read \(.png\)"):
        read_documents(tmp_path)


def test_a_file_that_begins_with_faulty_rows_alone_is_not_read_to_its_end(tmp_path):
    write_lines(tmp_path / "d.jsonl", *[{"body": "a"}] * 5000)
    write_lines(tmp_path / "e.jsonl", *[{"body": "a"}] * 99, {"text": "b"}, *[{"body": "a"}] * 100)
    found = read_documents(tmp_path, skip_faulty=True)
    assert [document.text for document in found.documents] == ["b"]
    of_first = [item for item in found.skipped if item.source.startswith("d.jsonl")]
    assert len(of_first) == 101 and of_first[-1].fault == (
        "none of its first 100 rows holds a document; the rest is not read"
    )
    assert len(found.skipped) == 101 + 199


def test_a_cell_may_hold_a_whole_book(tmp_path):
    book = "word " * 50_000
    (tmp_path / "d.csv").write_text(f"text\n{book}\n")
    assert read_documents(tmp_path).documents[0].text == book


def test_a_large_file_is_checked_without_being_held(tmp_path):
    for name, write in (("d.jsonl", str.encode), ("d.jsonl.gz", lambda text: gzip.compress(text.encode()))):
        (tmp_path / name).write_bytes(write((json.dumps({"text": "word " * 2000}) + "\n") * 2000))  # 20 MB
    frame = pa.Table.from_pylist([{"text": "word " * 2000}] * 2000)
    parquet.write_table(frame, tmp_path / "d.parquet", row_group_size=100)
    (tmp_path / "d.csv").write_text("text\n" + ("word " * 2000 + "\n") * 2000)
    tracemalloc.start()
    try:
        assert check_documents(tmp_path)[0] == 8000
        assert tracemalloc.get_traced_memory()[1] < 6e6
    finally:
        tracemalloc.stop()


def test_the_tables_of_real_textbooks_are_read_as_they_are(real_data):
    path = real_data("textbooks/psychology/documents.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = read_documents(path)
    assert [(d.text, d.title) for d in found.documents] == [(row["text"], row["title"]) for row in rows]
    assert found.skipped == []
    assert len(read_documents(real_data("fairytales/documents.jsonl")).documents) == 129
