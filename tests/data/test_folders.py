import json

import pytest

from rubric_influence.data.folders import Skipped, list_files


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def listed(folder):
    files, skipped = list_files(folder)
    return [file.relative_to(folder).as_posix() for file in files], {item.source: item.reason for item in skipped}


def test_files_come_in_order_and_hidden_ones_are_told(tmp_path):
    touch(tmp_path, "b.txt", "a/z.txt", ".git/c.txt", ".git/d.txt", "~$b.docx")
    assert listed(tmp_path) == (["a/z.txt", "b.txt"], {".git": "hidden", "~$b.docx": "hidden"})
    assert list_files(tmp_path / "b.txt") == ([tmp_path / "b.txt"], [])


def test_links_are_followed_once_and_never_in_a_circle(tmp_path):
    touch(tmp_path, "docs/own.txt", "docs/sub/deep.txt", "far/one.txt", "far/two.txt", "single.txt")
    docs = tmp_path / "docs"
    (docs / "a_link").symlink_to(tmp_path / "far")
    (docs / "b_link").symlink_to(tmp_path / "far")
    (docs / "c.txt").symlink_to(tmp_path / "single.txt")
    (docs / "d.txt").symlink_to(docs / "own.txt")
    (docs / "a_link" / "back").symlink_to(docs)
    (docs / "sub" / "up").symlink_to(tmp_path)
    (docs / "gone").symlink_to(tmp_path / "nothing")
    (docs / "self").symlink_to(docs / "self")
    again = "a link to what is read already"
    assert listed(docs) == (
        ["a_link/one.txt", "a_link/two.txt", "c.txt", "own.txt", "sub/deep.txt"],
        {"a_link/back": again, "b_link": again, "d.txt": again, "sub/up": again}
        | dict.fromkeys(("gone", "self"), "a link to nothing"),
    )


def test_a_folder_that_a_link_leads_into_is_read_once(tmp_path):
    touch(tmp_path, "docs/own.txt", "far/in/deep.txt", "far/flat.txt")
    (tmp_path / "docs/x").symlink_to(tmp_path / "far/in")
    (tmp_path / "docs/y").symlink_to(tmp_path / "far")
    files, skipped = listed(tmp_path / "docs")
    assert files == ["own.txt", "x/deep.txt", "y/flat.txt"]
    assert skipped == {"y/in": "a link to what is read already"}


def test_of_a_saved_data_set_its_rows_are_read_and_no_caches_and_descriptions(tmp_path):
    touch(tmp_path, "dataset_dict.json", "train/dataset_info.json", "train/data-00000-of-00001.arrow")
    touch(tmp_path, "train/cache-1f.arrow", "notes/state.json")
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (tmp_path / "train/state.json").write_text(json.dumps(state))
    files, skipped = listed(tmp_path)
    assert files == ["notes/state.json", "train/data-00000-of-00001.arrow"]
    assert skipped.pop("train/cache-1f.arrow") == "a cache of datasets"
    assert set(skipped) == {"dataset_dict.json", "train/dataset_info.json", "train/state.json"}


def test_a_card_of_parquet_files_is_no_document_and_another_readme_is(tmp_path):
    touch(tmp_path, "set/README.md", "set/data/train.parquet", "book/README.md")
    assert listed(tmp_path)[1] == {"set/README.md": "the description of a data set"}


def test_a_folder_that_may_not_be_read_is_a_fault(tmp_path, monkeypatch):
    touch(tmp_path, "a.txt", "closed/b.txt")
    scan = __import__("os").scandir  # permissions do not bind root, so the refusal is the operating system's by proxy

    def refuse(folder):
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr("rubric_influence.data.folders.os.scandir", refuse)
    (fault,) = list_files(tmp_path)[1]
    assert fault == Skipped(
        "closed", "folders that cannot be read", "cannot be read (Permission denied); allow it or move it away"
    )


@pytest.mark.parametrize("content", ["", "[1]", '{"_data_files": 3}', '{"_data_files": [{"filename": null}]}'])
def test_a_state_that_is_none_hides_nothing(tmp_path, content):
    touch(tmp_path, "a.txt")
    (tmp_path / "state.json").write_text(content)
    assert "a.txt" in listed(tmp_path)[0]
