"""CNXML reads as plain text."""

import xml.etree.ElementTree as ET
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rubric_influence.data.cnxml import MARK, name_targets, parse_xml, read_text

HEAD = '<para xmlns="http://cnx.rice.edu/cnxml" xmlns:m="http://www.w3.org/1998/Math/MathML">'
WORDS = st.text("abc ,.é1", max_size=12)
INLINE = st.recursive(
    WORDS,
    lambda inner: st.tuples(st.sampled_from(["emphasis", "term", "foreign", "sub"]), st.lists(inner, max_size=3)),
    max_leaves=8,
)


def read(inner: str) -> str:
    root = parse_xml(f"{HEAD}{inner}</para>".encode())
    return read_text(root, name_targets(root) | {"f1": "figure", "t1": "table"})


@pytest.mark.parametrize(
    ("inner", "text"),
    [
        ("CO<sub>2</sub> and H<sub>2</sub>O", "CO2 and H2O"),
        ("10<sup>3</sup> cells a mm<sup>3</sup>", "10^3 cells a mm^3"),
        ("10<sup>–7</sup>, 2<sup>n + 1</sup>, x<sup>n</sup>", "10^–7, 2^(n + 1), x^n"),
        ("Ca<sup>2+</sup>, Na<sup>+</sup>, PO<sub>4</sub><sup>3–</sup>", "Ca^2+, Na+, PO4^3–"),
        ("the 20<sup>th</sup> and <sup>14</sup>C", "the 20th and 14C"),
        (
            'a <term>lake<emphasis effect="italics">let</emphasis></term>,\n  <link url="u">here</link>',
            "a lakelet, here",
        ),
        ('low (see <link target-id="f1"/> and <link target-id="t1"/>).', "low."),
        ('low (see <link target-id="f1"/>, left).', "low (see the figure, left)."),
        ('low (the heart). <link target-id="t1"/> shows it', "low (the heart). The table shows it"),
        ('as in <link document="m2" target-id="x"/>', "as in another section"),
        ("said<footnote>aside</footnote> so<cite><note>Smith</note></cite>.", "said so."),
        ("a<newline/>b <list><item>c</item><item>d</item></list>e", "a b c d e"),
        ("x<!-- hidden --><?pi data?>y &lt;b&gt; &amp;", "xy <b> &"),
    ],
)
def test_markup_reads_as(inner, text):
    assert read(inner) == text


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        ("<m:mfrac><m:mrow><m:mi>a</m:mi><m:mo>+</m:mo><m:mi>b</m:mi></m:mrow><m:mn>3</m:mn></m:mfrac>", "(a + b)/3"),
        ("<m:mi>y</m:mi><m:mo>=</m:mo><m:mo>−</m:mo><m:msup><m:mi>x</m:mi><m:mn>2</m:mn></m:msup>", "y = −x^2"),
        ("<m:msub><m:mi>V</m:mi><m:mtext>max</m:mtext></m:msub>", "V_max"),
        ("<m:msubsup><m:mtext>PO</m:mtext><m:mn>4</m:mn><m:mtext>3–</m:mtext></m:msubsup>", "PO4^3–"),
        ("<m:mover><m:mi>x</m:mi><m:mo>¯</m:mo></m:mover>", "x¯"),
        ("<m:msqrt><m:mi>x</m:mi><m:mo>+</m:mo><m:mn>1</m:mn></m:msqrt>", "√(x + 1)"),
        ("<m:mroot><m:mi>x</m:mi><m:mn>3</m:mn></m:mroot>", "(x)^(1/3)"),
        ("<m:semantics><m:mi>x</m:mi><m:annotation>\\x</m:annotation></m:semantics>", "x"),
        ("<m:mfrac><m:mi>a</m:mi></m:mfrac>", "a/"),
        (
            "<m:mtable><m:mtr><m:mtd><m:mi>a</m:mi></m:mtd><m:mtd><m:mi>b</m:mi></m:mtd></m:mtr><m:mtr/></m:mtable>",
            "a b",
        ),
    ],
)
def test_a_formula_reads_as(formula, text):
    assert read(f"so <m:math>{formula}</m:math>!") == f"so {text}!"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', r"declares a document type \(a\)"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "declares a document type"),
        ("<a/>".encode("utf-16"), "not UTF-8 text"),
        (b"<a>&b;</a>", "not XML"),
        (b"<a>", "not XML"),
        (b"", "not XML"),
        (b"<a>" * 300 + b"</a>" * 300, "nested over 200 deep"),
    ],
)
def test_an_unsafe_or_broken_file_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        parse_xml(data)


def mark_up(piece) -> str:
    if isinstance(piece, str):
        return escape(piece)
    tag, inner = piece
    return f"<{tag}>{''.join(map(mark_up, inner))}</{tag}>"


def flatten(piece) -> str:
    return piece if isinstance(piece, str) else "".join(map(flatten, piece[1]))


@given(st.lists(INLINE, max_size=6))
def test_inline_markup_loses_no_word(pieces):
    assert read("".join(map(mark_up, pieces))).split() == "".join(map(flatten, pieces)).split()


@given(
    st.text(max_size=40), st.sampled_from(["para", "sup", "math", "link", "mfrac", "msup", "note", "item", "mtable"])
)
def test_any_text_in_any_element_reads_in_one_line_without_marks(text, name):
    root = ET.Element("para")
    for _ in range(2):
        ET.SubElement(root, name).text = text
    read = read_text(root, {})
    assert read == " ".join(read.split()) and MARK not in read
