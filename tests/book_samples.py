"""A book that tests write: invented text in the markup of OpenStax's repositories."""

from pathlib import Path

BOOKS = '<container xmlns="https://openstax.org/namespaces/book-container"><book slug="{0}" href="{1}"/></container>'
COLLECTION = '<c:collection xmlns:c="http://cnx.rice.edu/collxml" xmlns:md="http://cnx.rice.edu/mdml"><c:content>'
WORDS = "lets its waters rise and fall with the moon of the western hills all through the year"


def write_exercise(question: str, options: list[str], answer: str) -> str:
    items = "".join(f"<item>{option}</item>" for option in options)
    listed = f'<list list-type="enumerated" number-style="lower-alpha">{items}</list>' if options else ""
    solution = f"<solution><label/><para>{answer}</para></solution>" if answer else ""
    return f"<exercise><problem><para>{question}</para>{listed}</problem>{solution}</exercise>"


def write_module(name: str, body: str, exercises: str = "", terms: dict[str, str] | None = None) -> str:
    given = "".join(
        f"<definition><term>{term}</term><meaning>{meaning}</meaning></definition>"
        for term, meaning in (terms or {}).items()
    )
    return (
        f'<document xmlns="http://cnx.rice.edu/cnxml" xmlns:m="http://www.w3.org/1998/Math/MathML"><title>{name}</title>'
        f'<content>{body}<section class="review"><para>A summary of all that {WORDS}</para>{exercises}</section>'
        f"</content><glossary>{given}</glossary></document>"
    )


def write_book(folder: Path, modules: dict[str, tuple[str, str]], slug: str = "lakes") -> Path:
    """A repository of modules: id -> chapter ("" for none) and content."""
    collection, chapters = COLLECTION, dict.fromkeys(chapter for chapter, _ in modules.values())
    for chapter in chapters:
        listed = "".join(f'<c:module document="{id}"/>' for id, (where, _) in modules.items() if where == chapter)
        inner = f"<c:subcollection><md:title>{chapter}</md:title><c:content>{listed}</c:content></c:subcollection>"
        collection += inner if chapter else listed
    files = {f"modules/{id}/index.cnxml": content for id, (_, content) in modules.items()}
    files["META-INF/books.xml"] = BOOKS.format(slug, f"../collections/{slug}.collection.xml")
    files[f"collections/{slug}.collection.xml"] = collection + "</c:content></c:collection>"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def write_lakes(folder: Path, chapters: int = 3, size: int = 6) -> Path:
    """A book of chapters of `size` modules with two keyed questions, an open one and two terms each, and a preface."""
    modules = {"m0": ("", write_module("Preface", f"<para>This preface {WORDS}</para>"))}
    for n in range(1, chapters * size + 1):
        exercises = "".join(
            write_exercise(f"Where does lake {n} {verb}?", [f"hill {n}", "plain", "city"], key)
            for verb, key in (("rise", "A"), ("end", "b"))
        )
        exercises += write_exercise(f"Why is lake {n} cold?", [], f"Because spring {n} feeds it.")
        body = "".join(f"<para>Lake {n} in part {part} {WORDS}.</para>" for part in range(4))
        terms = {f"lake {n}": f"water number {n}", f"shore {n}": f"land at the water number {n}"}
        modules[f"m{n}"] = (f"Chapter {(n - 1) // size}", write_module(f"Lake {n}", body, exercises, terms))
    return write_book(folder, modules)
