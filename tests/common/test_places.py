"""Which names can only be folders."""

import pytest

from diffusers_ndc.common.places import check_place


@pytest.mark.parametrize("name", ["a", "a/b", "a.b/c-d", "existing", "./existing", "existing/inner/most"])
def test_hub_ids_and_folders_pass(name, tmp_path, monkeypatch):
    (tmp_path / "existing" / "inner" / "most").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    check_place("--model", name)


@pytest.mark.parametrize("name", ["./a", "/no/where", "~/a", "a/b/c", "../a", "./file"])
def test_folders_that_do_not_exist_are_refused(name, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"`--model` must be an existing folder or a Hub id, got {name}"):
        check_place("--model", name)


def test_a_name_is_a_text():
    with pytest.raises(TypeError, match="`--model` must be of type str, got int"):
        check_place("--model", 5)
