"""A key that a run needs reaches the server, and no file and no output of the run."""

import gzip
import json
import zlib
from pathlib import Path

import pytest
from clones import clone_project, list_run_stages, run_command, set_params
from faulty_server import FaultyServer

KEY = "-".join(("sk", "in", "no", "file"))  # not whole in this file either, which the clone has too


class RepeatsTheKey(FaultyServer):
    """Refuses with a message that repeats the key, as some servers do."""

    async def write(self, writer, status, body, extra=""):
        await super().write(writer, 401, json.dumps({"error": {"message": f"wrong key: {KEY}"}}).encode(), extra)


def read_files(folder: Path) -> dict[Path, bytes]:
    """Every file's content, unpacked where it is compressed."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for unpack in (gzip.decompress, zlib.decompress):
                try:
                    content = unpack(content)
                    break
                except (OSError, EOFError, zlib.error):
                    continue
            found[path] = content
    return found


@pytest.mark.slow
def test_the_pipelines_files_notebooks_locks_caches_and_messages_do_not_hold_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    project = clone_project(tmp_path)
    with FaultyServer(faults=0.2, kinds=("429", "500", "dropped"), malformed=0.0) as server:
        endpoint = {"base_url": server.url, "api_key_env": "TEACHER_KEY", "backoff": 0.01, "attempts": 20}
        models = {"teacher": {"path": "teacher", "engine": "openai", "endpoint": endpoint}}
        small = {"corpus": {"documents": 12, "dev_documents": 2, "validation_entities": 6, "guard_entities": 6}}
        changes = small | {"seeds": [0], "models": models, "budget": {"initial_pairs": 2, "final_pairs": 2}}
        set_params(project, "params.yaml", changes)
        done = run_command(["dvc", "repro", "initial"], project)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert list_run_stages(done.stdout) == ["corpus", "initial"]
        assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    with RepeatsTheKey() as server:
        models["teacher"]["endpoint"] = endpoint | {"base_url": server.url}
        set_params(project, "params.yaml", changes)
        refused = run_command(["dvc", "repro", "initial"], project)
    assert refused.returncode != 0 and "HTTP 401" in refused.stdout + refused.stderr
    assert KEY not in done.stdout + done.stderr + refused.stdout + refused.stderr

    files = read_files(project)
    names = {path.relative_to(project).as_posix() for path in files}
    assert {"dvc.lock", "params.yaml", "reports/02_initial.ipynb"} <= names
    for part in (".dvc/cache/", "scratch/answers/", "scratch/initial/", "metrics/"):
        assert any(name.startswith(part) for name in names), part
    assert [path for path, content in files.items() if KEY.encode() in content] == []
