"""How the app in `examples/space` becomes a Space: its folder is complete, and it starts from that alone."""

import os
import subprocess
import sys

import pytest
import yaml
from helpers.space import SPACE, deploy
from helpers.space import site as site


ASSEMBLED = {"LICENSE", "README.md", "app.py", "requirements.txt", "digits", "diffusers_ndc", "mnist"}


@pytest.fixture(scope="module")
def assembled(tmp_path_factory):
    return deploy.assemble(tmp_path_factory.mktemp("space"))


def test_the_assembled_folder_is_complete_and_small(assembled):
    assert {path.name for path in assembled.iterdir()} == ASSEMBLED
    inside = {str(path.relative_to(assembled)) for path in assembled.rglob("*") if path.is_file()}
    package = {str(path.relative_to(deploy.REPOSITORY)) for path in deploy.REPOSITORY.glob("diffusers_ndc/**/*.py")}
    assert package | {"mnist/model_index.json", "mnist/unet/diffusion_pytorch_model.safetensors"} <= inside
    assert not any("__pycache__" in path or "parquet" in path for path in inside)
    assert sum((assembled / path).stat().st_size for path in inside) < 8_000_000
    with pytest.raises(FileExistsError, match="must be new or empty"):
        deploy.assemble(assembled)


def test_the_space_asks_for_what_the_package_asks_for():
    setup = {line.strip() for line in (deploy.REPOSITORY / "setup.cfg").read_text().splitlines()}
    assert set((SPACE / "requirements.txt").read_text().split()) <= setup
    front = front_matter(SPACE)
    assert front["sdk"] == "gradio" and front["app_file"] == "app.py" and front["python_version"] == "3.12"
    assert len(front["short_description"]) <= 60 and front["suggested_hardware"] == "cpu-basic"


def front_matter(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---")[1])


def test_a_space_with_a_model_of_the_hub_asks_for_zero_gpu(tmp_path):
    folder = deploy.assemble(tmp_path / "space", "someone/model")
    front = front_matter(folder)
    assert front["suggested_hardware"] == "zero-a10g"
    assert front["models"] == front["preload_from_hub"] == ["someone/model"]
    assert (folder / "model.txt").read_text() == "someone/model\n" and not (folder / "mnist").exists()


@pytest.mark.slow
def test_the_app_starts_with_the_assembled_folder_alone(site, assembled):
    """In a fresh process, in another place, with the package that lies in the folder."""
    code = (
        "import app, diffusers_ndc; from diffusers_ndc.app import build; "
        "print(diffusers_ndc.__file__, app.SITE.model); demo = build(app.SITE); "
        "print(len(app.SITE.run_folders()), len(demo.fns) > 5)"
    )
    environment = {**os.environ, "PYTHONPATH": str(assembled)}
    result = subprocess.run(
        [sys.executable, "-B", "-c", code], capture_output=True, text=True, cwd=assembled, env=environment, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert str(assembled / "diffusers_ndc") in result.stdout and str(assembled / "mnist") in result.stdout
    assert result.stdout.split()[-2:] == ["4", "True"]


def test_deploy_makes_a_space_and_brings_it_up_to_date(hub, assembled):
    assert deploy.deploy("someone/certified") == f"{hub.endpoint}/spaces/someone/certified"
    there = hub.files("someone/certified", "spaces")
    expected = {str(path.relative_to(assembled)): path for path in assembled.rglob("*.*") if path.is_file()}
    assert {name: there.get(name) for name in expected} == {name: path.read_bytes() for name, path in expected.items()}
    hub.add("someone/certified", {"stale.py": b"", "app.py": b"old"}, "spaces")
    deploy.deploy("someone/certified")
    there = hub.files("someone/certified", "spaces")
    assert "stale.py" not in there and there["app.py"] == (SPACE / "app.py").read_bytes()


def test_deploy_says_what_is_wrong(hub, assembled, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["deploy.py", "someone/certified", "--dry-run", str(assembled)])
    with pytest.raises(SystemExit):
        deploy.main()
    assert "give either NAMESPACE/NAME or --dry-run" in capsys.readouterr().err
    hub.broken = True
    monkeypatch.setattr(sys, "argv", ["deploy.py", "someone/certified"])
    with pytest.raises(SystemExit, match="error: "):
        deploy.main()
