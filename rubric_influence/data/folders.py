"""The files of a folder and its subfolders, links followed, and what of it is left out and why."""

import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from rubric_influence.core.files import parse_json, read_text

HIDDEN = "hidden"
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
DESCRIBES = "the description of a data set"


@dataclass(frozen=True)
class Skipped:
    source: str  # a file within the folder, with row or pages, or a folder
    reason: str  # the same text for all of a kind, to be counted by
    fault: str = ""  # what is wrong with this one, where it is to be read and cannot


def list_files(path: Path) -> tuple[list[Path], list[Skipped]]:
    """The files of a folder and its subfolders, in order, or the one file; and what is left out.

    A linked folder or file is read once: neither where it is in the folder anyhow, nor in a circle.
    """
    if not path.is_dir():
        return [path], []
    files: list[Path] = []
    skipped: list[Skipped] = []
    links: deque[Path] = deque()
    top = os.path.realpath(path)
    seen = {top}  # true paths of what is read
    pending = [(path, top)]

    def skip(place: Path, reason: str, fault: str = "") -> None:
        skipped.append(Skipped(place.relative_to(path).as_posix(), reason, fault))

    while pending or links:
        if not pending:  # links come last, so that a file that is there under its own name has that name
            link = links.popleft()
            target = os.path.realpath(link)
            if not os.path.exists(target):
                skip(link, "a link to nothing")
            elif target in seen or f"{top}/".startswith(f"{target.rstrip('/')}/"):
                skip(link, "a link to what is read already")
            elif os.path.isdir(target):
                seen.add(target)
                pending.append((link, target))
            else:
                seen.add(target)
                files.append(link)
            continue
        folder, true = pending.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            skip(folder, "folders that cannot be read", f"cannot be read ({error.strerror}); allow it or move it away")
            continue
        for entry in entries:
            place, target = folder / entry.name, f"{true}/{entry.name}"
            if entry.name.startswith((".", "~$")):  # Office's mark of an open file
                skip(place, HIDDEN)
            elif entry.is_symlink():
                links.append(place)
            elif target in seen:
                skip(place, "a link to what is read already")
            elif entry.is_dir():
                seen.add(target)
                pending.append((place, target))
            elif entry.is_file():
                seen.add(target)
                files.append(place)
            else:
                skip(place, "neither file nor folder")
        links = deque(sorted(links))
    files, descriptions = split_descriptions(sorted(files))
    skipped += [Skipped(place.relative_to(path).as_posix(), reason) for place, reason in descriptions]
    return files, sorted(skipped, key=lambda item: item.source)


def split_descriptions(files: list[Path]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The files without those that describe a Hugging Face data set or are left over from its making; and these.

    A data set saved by `datasets` names its files in state.json; others beside it are caches of `map` and `filter`.
    """
    named: dict[Path, set[str]] = {}
    tables = {file.parent for file in files if file.suffix.lower() in (".parquet", ".arrow")}
    homes = tables.union(*(folder.parents for folder in tables))
    for file in files:
        if file.name == "state.json" and (names := read_names(file)):
            named[file.parent] = names
    kept, left_out = [], []
    for file in files:
        card = file.name.lower() == "readme.md" and file.parent in homes
        if card or (file.name in DESCRIPTIONS and file.parent in homes):
            left_out.append((file, DESCRIBES))
        elif file.suffix == ".arrow" and file.name not in named.get(file.parent, {file.name}):
            left_out.append((file, "a cache of datasets"))
        else:
            kept.append(file)
    return kept, left_out


def read_names(state: Path) -> set[str]:
    """The files that a state.json names; none where it is something else."""
    try:
        content = parse_json(read_text(state))
    except (OSError, ValueError):
        return set()
    rows = content.get("_data_files") if isinstance(content, dict) else None
    return {str(row.get("filename")) for row in rows if isinstance(row, dict)} if isinstance(rows, list) else set()
