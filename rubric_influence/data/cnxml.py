"""CNXML, the markup of OpenStax's books: parsed without entities and read as plain text, formulas (MathML) included."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping

# What stands in a paragraph without being read with it.
ASIDE = frozenset({"caption", "exercise", "figure", "footnote", "iframe", "label", "media", "note", "table", "title"})
BLOCKS = {"equation", "item", "list", "newline", "para", "quote", "space"}  # a blank parts them from what is around
OPERATORS = frozenset("=≠≈≡≅+-−–±×÷·<>≤≥→←↔⇌")
# Links to figures, tables and sections are empty. What is written for one has this mark until the text is whole.
MARK = "\ue000"
POINTERS = re.compile(rf" ?\((?:see )?{MARK}\w+ \w+(?:(?:,| and|, and| or) {MARK}\w+ \w+)*\)", re.IGNORECASE)
OPENING = re.compile(rf"(?:^|(?<=[.?!:] )){MARK}\w")
ACCENTS = "¯ˉ‾^~→"  # over a letter
DEEPEST = 200  # elements inside each other; real books have some twenty


class Builder(ET.TreeBuilder):
    """Refuses a document type, whose entities could grow without bound or name other files."""

    def doctype(self, name: str, public_id: str | None, system_id: str | None) -> None:
        raise ValueError(f"it declares a document type ({name}), which no CNXML file needs; remove the declaration")


def parse_xml(data: bytes) -> ET.Element:
    """The root. Raises ValueError for what is no UTF-8, no XML, nested too deeply, or declares a document type."""
    try:
        root = ET.fromstring(data.decode("utf-8-sig"), ET.XMLParser(target=Builder()))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start}); convert it to UTF-8") from None
    except ET.ParseError as error:
        raise ValueError(f"not XML ({error})") from None
    level, depth = [root], 0
    while level := [child for element in level for child in element]:
        if (depth := depth + 1) > DEEPEST:
            raise ValueError(f"its elements are nested over {DEEPEST} deep, which no book needs")
    return root


def local_name(element: ET.Element) -> str:
    """The element's name without its namespace."""
    return element.tag.rpartition("}")[2]


def name_targets(root: ET.Element) -> dict[str, str]:
    """Element id -> element name, for the links of a module."""
    return {element.get("id", ""): local_name(element) for element in root.iter()}


def read_text(element: ET.Element, targets: Mapping[str, str], without: frozenset[str] = frozenset()) -> str:
    """The element's text in one line, without ASIDE and the elements named in `without`.

    CO2, HCO3–, Ca^2+, 10^3 and 20th are sub- and superscripts. A link without a text reads "the figure", "the table",
    ... by `targets`; parentheses with nothing but such links are left out.
    """
    parts: list[str] = []
    write(element, parts, targets, ASIDE | without)
    text = POINTERS.sub("", " ".join("".join(parts).split()))
    return " ".join(OPENING.sub(lambda match: match[0].upper(), text).replace(MARK, "").split())


def write(element: ET.Element, parts: list[str], targets: Mapping[str, str], skipped: frozenset[str]) -> None:
    """Append the texts in an element to `parts`."""
    name = local_name(element)
    if name == "math":
        parts.append(write_math(element))
        return
    start = len(parts)
    blank = " " if name in BLOCKS else ""
    parts.append(blank + (element.text or ""))
    for child in element:
        if local_name(child) not in skipped:
            write(child, parts, targets, skipped)
        parts.append(child.tail or "")
    parts.append(blank)
    if name == "sup":
        before, text = "".join(parts[:start])[-1:], "".join(parts[start:])
        parts[start:] = [raise_text(before, text)]
    elif name == "link" and not "".join(parts[start:]).strip():
        parts[start:] = [name_target(element, targets)]


def raise_text(before: str, text: str) -> str:
    """A superscript after the character `before`: "20th" and "Na+" need no sign, while "103" would not be 10^3."""
    text = text.strip()
    raised = re.search(r"[\d\s]", text) or (len(text) == 1 and text.isalpha())
    return "^" + group(text) if raised and before.strip() else text


def name_target(link: ET.Element, targets: Mapping[str, str]) -> str:
    """What a link without a text points to."""
    elsewhere = "another section" if link.get("document") else "the link"
    target = targets.get(link.get("target-id", ""))
    return MARK + (f"the {target}" if target else elsewhere)


def group(text: str) -> str:
    """The text in parentheses where it would not stay together without them."""
    return f"({text})" if re.search(r"[\s/=×]|.[+−–-]\w", text) and not re.fullmatch(r"\([^()]*\)", text) else text


def write_math(element: ET.Element) -> str:
    """A formula in one line: (a + b)/c, x^2, V_max, √(x)."""
    name = local_name(element)
    parts = [write_math(child) for child in element]
    first, second, third = ([part.strip() for part in parts] + [""] * 3)[:3]
    match name:
        case "mfrac":
            return f"{group(first)}/{group(second)}"
        case "msup" | "msub" | "munder" | "mover" | "msubsup" | "munderover":
            low, high = ("", second) if name in ("msup", "mover") else (second, third)
            return first + lower(low) + (f"^{group(high)}" if high.strip(ACCENTS) else high)
        case "msqrt":
            return f"√({join_row(element, parts).strip()})"
        case "mroot":
            return f"({first})^(1/{second})"
        case "mtable":
            return "; ".join(part.strip() for part in parts if part.strip())
        case "mtr" | "mlabeledtr":
            return " ".join(part.strip() for part in parts)
        case "semantics":
            return first
        case "annotation" | "annotation-xml" | "mphantom":
            return ""
        case "mspace":
            return " "
    return join_row(element, parts) if parts else element.text or ""


def join_row(element: ET.Element, parts: list[str]) -> str:
    """The children's texts in a row, with blanks around the operators that have something before them."""
    row = ""
    for child, part in zip(element, parts, strict=True):
        before = row.rstrip()[-1:]
        operates = local_name(child) == "mo" and part.strip() in OPERATORS and before not in {"", "(", "[", *OPERATORS}
        row += f" {part.strip()} " if operates else part
    return row


def lower(text: str) -> str:
    """A subscript: H2O needs no sign, V_max does."""
    return text if not text or text.isdigit() else f"_{group(text)}"
