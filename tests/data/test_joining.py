import pytest

from rubric_influence.core.corpus_sections import TextCorpus
from rubric_influence.core.records import Document
from rubric_influence.data.corpora import build_text
from rubric_influence.data.joining import join_alike

HEART = Document("The heart pumps blood through the arteries.", "Heart", "a.txt")
BLOOD = Document("Blood flows from the heart into arteries and veins.", "Blood", "b.txt")
BONE = Document("Bones store calcium; marrow lies inside them.", "Bone", "c.txt")
MARROW = Document("Marrow inside bones makes cells.", "", "d.txt")


def test_a_document_is_joined_with_those_most_like_it():
    heart, bone = join_alike([HEART, BONE], [HEART, BLOOD, BONE, MARROW], 2)
    assert heart.text == f"Heart\n\n{HEART.text}\n\nBlood\n\n{BLOOD.text}"
    assert (heart.title, heart.source) == ("Heart + Blood", "a.txt; b.txt")
    assert bone.text.endswith(MARROW.text) and (bone.title, bone.source) == ("Bone", "c.txt; d.txt")


def test_scripts_without_blanks_are_compared_by_their_words():
    heart, blood, bone = (Document(text) for text in ("心脏泵血到动脉。", "动脉和心脏里的血。", "骨头储存钙质。"))
    (joined,) = join_alike([heart], [bone, heart, blood], 2)
    assert joined.text == f"{heart.text}\n\n{blood.text}"


def test_too_few_documents_are_told():
    with pytest.raises(ValueError, match="corpus.documents_together is 3, and there are 2 documents"):
        join_alike([HEART], [HEART, BLOOD], 3)


def test_a_corpus_gives_joined_documents_of_its_files(tmp_path):
    (tmp_path / "texts").mkdir()
    for document in (HEART, BLOOD, BONE, MARROW):
        (tmp_path / "texts" / document.source).write_text(document.text)
    rows = "".join(f"What is organ {n}?,heart,bone,lung,liver,A\n" for n in range(20))
    (tmp_path / "exam.csv").write_text(rows)
    texts = {"kind": "text", "documents": str(tmp_path / "texts"), "exam": str(tmp_path / "exam.csv"), "seed": 0}
    corpus = build_text(TextCorpus(**texts, exam_format="mmlu", documents_together=2))
    assert len(corpus.documents) == 4 and len({document.id for document in corpus.documents}) == 4
    assert all(document.source.count(";") == 1 for document in corpus.documents)
