import pytest

from rubric_influence.core.checks import RunStopped
from rubric_influence.pipeline.timings import hash_file, read_seconds, timed


def test_seconds_belong_to_the_content_that_was_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").touch()
    executed = tmp_path / "a.ipynb"
    with timed(executed):
        executed.write_text("first")
    assert read_seconds().keys() == {hash_file(executed)} == {"8b04d5e3775d298e78455efc5ca404d5"}
    executed.write_text("second")
    assert hash_file(executed) not in read_seconds()


def test_nothing_is_kept_outside_a_project_or_of_a_failure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    executed = tmp_path / "a.ipynb"
    with timed(executed):
        executed.write_text("first")
    assert read_seconds() == {}
    (tmp_path / "dvc.yaml").touch()
    with pytest.raises(RunStopped), timed(executed):
        raise RunStopped("no documents")
    assert read_seconds() == {} and not (tmp_path / "scratch").exists()
