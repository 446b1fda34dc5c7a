import shutil

import pytest
import torch
from safetensors.torch import save_file

from rubric_influence.core.fingerprints import fingerprint, hash_weights
from rubric_influence.core.model_sections import ModelSpec
from rubric_influence.core.paths import FINAL, TUNED_ARMS, UNTUNED, enter_project, list_arms, seed_folder
from rubric_influence.engines.base import name_model


@pytest.fixture
def weights(tmp_path):
    """A folder with two small safetensors files."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("a", "b"):
        save_file({"weight": torch.arange(8.0)}, folder / f"{name}.safetensors")
    return folder


def test_every_arm_has_a_meaning_and_the_untuned_target_is_none(lab_config):
    assert list_arms(lab_config()) == list(TUNED_ARMS)
    assert UNTUNED not in TUNED_ARMS


def test_without_a_privileged_rubric_there_is_no_such_arm(lab_config):
    arms = list_arms(lab_config({"prompts": {"privileged_rubrics": []}}))
    assert arms == [arm for arm in TUNED_ARMS if arm != "privileged_rubric"]


def test_seeds_have_folders_of_their_own():
    assert seed_folder(FINAL / "initial", 3).as_posix() == "data/final/initial/seed-3"


def test_a_notebook_enters_the_project_from_any_folder_in_it(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    inner = tmp_path / "notebooks" / "drafts"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert enter_project() == tmp_path
    assert enter_project() == tmp_path == tmp_path.cwd()


def test_outside_a_project_there_is_nothing_to_enter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no dvc.yaml in .* or above it; start inside a clone"):
        enter_project()


def test_a_copy_of_weights_has_their_hash(weights, tmp_path):
    copy = shutil.copytree(weights, tmp_path / "elsewhere")
    (copy / "README.md").write_text("not weights")
    assert hash_weights(copy) == hash_weights(weights)


def test_other_values_names_or_files_have_another_hash(weights):
    hashes = [hash_weights(weights)]
    save_file({"weight": torch.arange(8.0) + 1e-6}, weights / "a.safetensors")
    hashes.append(hash_weights(weights))
    (weights / "a.safetensors").rename(weights / "c.safetensors")
    hashes.append(hash_weights(weights))
    (weights / "c.safetensors").unlink()
    hashes.append(hash_weights(weights))
    assert len(set(hashes)) == 4


def test_the_ends_of_a_large_file_are_hashed(weights):
    large = torch.zeros(1 << 20)  # 4 MiB
    hashes = set()
    for place in (None, 0, -1):
        changed = large.clone()
        if place is not None:
            changed[place] = 1
        save_file({"weight": changed}, weights / "a.safetensors")
        hashes.add(hash_weights(weights))
    assert len(hashes) == 3


def test_a_fingerprint_tells_profiles_and_weights_apart(weights):
    spec = ModelSpec(path=str(weights))
    first = fingerprint(spec)
    assert fingerprint(ModelSpec(path=str(weights))) == first
    assert fingerprint(spec.model_copy(update={"dtype": "float32"})) != first
    save_file({"weight": torch.ones(8)}, weights / "b.safetensors")
    assert fingerprint(spec) != first


def test_a_model_of_the_hub_is_told_apart_by_name_and_revision():
    specs = [ModelSpec(path="org/a"), ModelSpec(path="org/b"), ModelSpec(path="org/a", revision="v2")]
    assert len({fingerprint(spec) for spec in specs}) == 3


def test_an_adapter_is_told_from_others_by_its_weights_and_its_alpha_not_by_its_place(weights, tmp_path):
    spec = ModelSpec(path=str(weights))
    settings = weights / "adapter_config.json"
    settings.write_text('{"lora_alpha": 8}')
    adapted = spec.model_copy(update={"adapter": str(weights)})
    first, name = fingerprint(adapted), name_model(adapted)
    assert first != fingerprint(spec)
    copy = shutil.copytree(weights, tmp_path / "elsewhere")
    assert fingerprint(spec.model_copy(update={"adapter": str(copy)})) == first
    settings.write_text('{"lora_alpha": 16}')
    assert fingerprint(adapted) != first and name_model(adapted) != name
    settings.write_text('{"lora_alpha": 8}')
    assert fingerprint(adapted) == first and name_model(adapted) == name
    save_file({"weight": torch.arange(1.0, 9.0)}, weights / "a.safetensors")
    assert name_model(adapted) != name  # and with it the key of every answer
