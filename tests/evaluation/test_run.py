"""Runs of the evaluation: what they record, how they are continued, and which errors they raise."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import psutil
import pytest
from accelerate.state import AcceleratorState
from datasets import ClassLabel, Dataset, Features, Image, load_dataset
from diffusers import DDPMScheduler
from filelock import FileLock
from helpers.networks import (
    PROMPTS,
    pixel_model,
    tiny_text_encoder,
    tiny_text_unet,
    tiny_tokenizer,
    tiny_unet,
    tiny_vae,
)
from helpers.paths import EXAMPLES
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from diffusers_ndc import Certificate, LatentDiffusionClassifierPipeline, NoisedDiffusionClassifierPipeline
from diffusers_ndc.common.json import differences
from diffusers_ndc.diffusion import batch_size as trials
from diffusers_ndc.evaluation.records import RecordWriter, read_records, read_run
from diffusers_ndc.evaluation.replay import replay
from diffusers_ndc.evaluation.run import LOCK_FILE, evaluate
from diffusers_ndc.evaluation.settings import Settings


SCRIPT = EXAMPLES / "evaluate.py"
COPIES = {"n0": 3, "n": 20, "batch_size": 64}


@pytest.fixture
def folders(small_model, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)  # one test's precision is not another one's
    return small_model(tmp_path)


@pytest.fixture
def run(folders, tmp_path):
    """A run with a few noisy copies in `tmp_path / "run"`."""
    model, data = folders

    def go(output="run", **settings):
        copies = {"batch_size": 64} if settings.get("method") == "dc" else COPIES
        return evaluate(Settings(str(model), str(data), str(tmp_path / output), **{**copies, **settings}))

    return go


def pipeline(folders):
    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(folders[0])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(folders):
    return load_dataset(str(folders[1]), split="test")["image"]


def test_the_records_are_what_the_pipeline_says(run, folders, tmp_path):
    report = run(seed=5, radii=[0.0, 0.1])
    records = read_records(tmp_path / "run")
    certificates = pipeline(folders).certify(list(pictures(folders)), seed=5, n0=3, n=20)
    assert [Certificate.from_dict(records[index]["certificate"]) for index in range(12)] == certificates
    assert [records[index]["label"] for index in range(12)] == [0] * 4 + [1] * 4 + [2] * 4
    assert all(record["seconds"] > 0 for record in records.values())
    assert len(report.outcomes) == 12 and not report.failed and not report.rejected
    for name in ("report.md", "report.json", "certified_accuracy.png", "README.md"):
        assert (tmp_path / "run" / name).stat().st_size > 0

    settings = read_run(tmp_path / "run")
    assert (settings["n"], settings["radii"], settings["images"]) == (20, [0.0, 0.1], 12)
    assert settings["base_classifier"] == json.loads(json.dumps(certificates[0].base_classifier))
    assert len(settings["weight_hash"]) == len(settings["data_hash"]) == 32


def test_stopping_early_decides_as_the_pipeline_does(run, folders, tmp_path):
    run(stop_early=True, n=60, radii=[0.1, 5.0], seed=1)  # 5 is beyond what 60 copies can prove
    found = [Certificate.from_dict(record["certificate"]) for record in read_records(tmp_path / "run").values()]
    assert found == pipeline(folders).certify(list(pictures(folders)), seed=1, n0=3, n=60, radii=[0.1])


def test_noise_on_a_grid_is_the_pipeline_s(run, folders, tmp_path):
    run(grid=16, limit=3, seed=4)
    found = [Certificate.from_dict(record["certificate"]) for record in read_records(tmp_path / "run").values()]
    assert found == pipeline(folders).certify(list(pictures(folders))[:3], seed=4, n0=3, n=20, grid=16)
    assert all(certificate.grid == 16 and certificate.verify() for certificate in found)


def test_clean_classification_is_the_pipeline_s(run, folders, tmp_path):
    report = run(method="dc", seed=2)
    records = read_records(tmp_path / "run").values()
    assert [record["predicted"] for record in records] == pipeline(folders)(list(pictures(folders)), seed=2).labels
    correct = sum(record["predicted"] == record["label"] for record in records)
    assert report.at(0).count == correct and not report.certified


def test_denoised_smoothing_is_a_method_as_the_others(run, tmp_path):
    settings = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "num_hidden_layers": 1}
    names = {"id2label": {0: "b", 1: "a", 2: "c"}, "label2id": {"b": 0, "a": 1, "c": 2}}
    vit = ViTForImageClassification(ViTConfig(**settings, num_attention_heads=2, intermediate_size=32, **names))
    vit.save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=0.5, image_std=0.5).save_pretrained(tmp_path / "vit")
    report = run(method="dds", classifier=str(tmp_path / "vit"), seed=3)
    records = read_records(tmp_path / "run")
    assert [record["label"] for record in records.values()] == [1] * 4 + [0] * 4 + [2] * 4  # by the ViT's names
    found = [Certificate.from_dict(record["certificate"]) for record in records.values()]
    assert all(certificate.base_classifier["method"] == "dds" and certificate.verify() for certificate in found)
    assert len(report.outcomes) == 12 and read_run(tmp_path / "run")["classifier"] == str(tmp_path / "vit")


@pytest.fixture
def latent_folders(folders, tmp_path):
    """The images, and a latent model of their classes whose pixels another model denoises."""
    parts = {"vae": tiny_vae(), "scheduler": DDPMScheduler(), "unet": tiny_text_unet(), **pixel_model(size=16)}
    parts |= {"tokenizer": tiny_tokenizer(), "text_encoder": tiny_text_encoder()}
    names = {0: "a", 1: "b", 2: "c"}
    LatentDiffusionClassifierPipeline(**parts, prompts=PROMPTS, id2label=names).save_pretrained(tmp_path / "latent")
    return tmp_path / "latent", folders[1]


def test_latent_models_are_certified_behind_their_denoiser(latent_folders, tmp_path):
    model, data = map(str, latent_folders)
    settings = {"limit": 3, "radii": [0.1], "seed": 3}
    report = evaluate(Settings(model, data, str(tmp_path / "run"), method="dds", **COPIES, **settings))
    pipe = LatentDiffusionClassifierPipeline.from_pretrained(model)
    expected = pipe.certify(list(pictures(latent_folders))[:3], seed=3, **COPIES)
    records = read_records(tmp_path / "run").values()
    assert [Certificate.from_dict(record["certificate"]) for record in records] == expected
    assert all(found.certificate.agrees(found.again) for found in replay(tmp_path / "run", count=1))
    card = (tmp_path / "run" / "README.md").read_text()
    assert report.certified and "pipe = LatentDiffusionClassifierPipeline" in card and "units of the latents" in card

    evaluate(Settings(model, data, str(tmp_path / "clean"), method="dc", batch_size=64, **settings))
    predicted = [record["predicted"] for record in read_records(tmp_path / "clean").values()]
    assert predicted == pipe(list(pictures(latent_folders))[:3], seed=3).labels


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"method": "apndc"}, "`method` .*'dds'"),
        ({"method": "dds", "classifier": "c"}, "`--classifier` must be left out .*got c"),
    ],
)
def test_settings_that_do_not_go_with_a_latent_model_raise(latent_folders, tmp_path, settings, named):
    with pytest.raises(ValueError, match=named):
        evaluate(Settings(*map(str, latent_folders), str(tmp_path / "run"), **settings))


def test_images_of_several_sizes(run, folders, tmp_path):
    """A network without a fixed size takes them as they are."""
    tiny_unet(sample_size=None).save_pretrained(folders[0] / "unet")
    for number, size in ((1, (12, 8)), (3, (8, 16))):
        path = folders[1] / "test" / "a" / f"{number}.png"
        with PIL.Image.open(path) as picture:
            picture.resize(size).save(path)
    run(seed=5, limit=6)
    run("clean", seed=2, limit=6, method="dc")
    pipe, images = pipeline(folders), list(pictures(folders))[:6]
    assert {image.size for image in images} == {(8, 8), (12, 8), (8, 16)}
    records, clean = read_records(tmp_path / "run"), read_records(tmp_path / "clean")
    for index, image in enumerate(images):
        assert Certificate.from_dict(records[index]["certificate"]) == pipe.certify(image, seed=5, **COPIES)
        assert clean[index]["predicted"] == pipe(image, seed=2).labels[0]


def test_a_push_takes_card_and_records_along(run, hub, tmp_path):
    run(push_to_hub="me/digits", radii=[0.1])
    files = hub.files("me/digits")
    (records,) = (tmp_path / "run").glob("*.jsonl")
    assert files[f"evaluation/run/{records.name}"] == records.read_bytes()
    assert b"model-index" in files["README.md"]


def test_classes_are_the_model_s(run, folders, tmp_path):
    index = folders[0] / "model_index.json"
    config = json.loads(index.read_text())
    config["id2label"] = {"0": "c", "1": "b", "2": "a"}
    index.write_text(json.dumps(config))
    run(limit=5)
    assert [record["label"] for record in read_records(tmp_path / "run").values()] == [2] * 4 + [1]


def test_a_run_goes_on_where_its_records_end(run, tmp_path):
    run("whole")
    run()
    (file,) = (tmp_path / "run").glob("*.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:5]) + lines[5][:40])  # killed in the sixth
    kept = {json.loads(line)["index"] for line in lines[:5]}
    report = run()
    (new,) = set((tmp_path / "run").glob("*.jsonl")) - {file}
    assert {json.loads(line)["index"] for line in new.read_text().splitlines()} == set(range(12)) - kept
    one, two = (read_records(tmp_path / name) for name in ("whole", "run"))
    assert {i: {**r, "seconds": 0} for i, r in one.items()} == {i: {**r, "seconds": 0} for i, r in two.items()}
    assert len(report.outcomes) == 12
    run()
    assert all(path.stat().st_size == 0 for path in set((tmp_path / "run").glob("*.jsonl")) - {file, new})


@pytest.mark.slow
@pytest.mark.parametrize("first, then", [(64, "auto"), ("auto", 3)])
def test_a_run_goes_on_with_another_batch_size(run, tmp_path, monkeypatch, first, then):
    """Which batches a card has room for is no setting that a record depends on: the run stays the one it was."""
    monkeypatch.setattr(trials, "LARGEST_ON_CPU", 4)
    run("whole", batch_size=16)
    run(batch_size=first)
    (file,) = (tmp_path / "run").glob("*.jsonl")
    before = read_run(tmp_path / "run")
    assert before["batch_size"] == first
    lines = file.read_text().splitlines(keepends=True)[:5]
    file.write_text("".join(lines))
    assert len(run(batch_size=then).outcomes) == 12
    assert read_run(tmp_path / "run") == before
    whole, found = (read_records(tmp_path / name) for name in ("whole", "run"))
    assert [record["certificate"] for record in whole.values()] == [record["certificate"] for record in found.values()]
    assert {record["run"] for record in found.values()} == {before["id"]}
    kept = {json.loads(line)["index"] for line in lines}
    for index, record in found.items():
        size = first if index in kept else then
        assert record["batch_size"] in ({1, 2, 4} if size == "auto" else {size})
    assert all(one.certificate.agrees(one.again) for one in replay(tmp_path / "run", count=2))


def test_other_settings_raise_and_are_listed(run, folders, tmp_path):
    run()
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")}
    with pytest.raises(ValueError, match=r"n: 20 there, 30 now\n.*seed: 0 there, 1 now"):
        run(seed=1, n=30)
    pixels = PIL.Image.fromarray(np.zeros((8, 8), np.uint8))
    pixels.save(folders[1] / "test" / "a" / "0.png")
    with pytest.raises(ValueError, match="data_hash"):
        run()
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")}
    run(overwrite=True, n=30)
    assert {record["certificate"]["n"] for record in read_records(tmp_path / "run").values()} == {30}


def test_other_weights_are_other_settings(run, folders, unet):
    run()
    for weight in unet.parameters():
        weight.data += 0.001
    unet.save_pretrained(folders[0] / "unet")
    with pytest.raises(ValueError, match="weight_hash"):
        run()


def test_another_unconditional_scheduler_is_another_setting(run, folders, unet):
    """It has no weights, but it defines what the weights mean."""
    parts = {"id2label": {0: "a", 1: "b", 2: "c"}, "null_class": 3, "unconditional_unet": tiny_unet(None)}
    for number, beta_end in enumerate((0.02, 0.03)):
        other = DDPMScheduler(beta_end=beta_end)
        pipe = NoisedDiffusionClassifierPipeline(unet, DDPMScheduler(), unconditional_scheduler=other, **parts)
        pipe.save_pretrained(folders[0])
        if number == 0:
            run()
    with pytest.raises(ValueError, match="unconditional_scheduler.*0.02 there, 0.03 now"):
        run()


def test_records_of_another_run_raise(run, tmp_path):
    run(limit=2)
    run("other", limit=4, seed=1)
    (strange,) = (tmp_path / "other").glob("*.jsonl")
    strange.rename(tmp_path / "run" / strange.name.replace("-000-", "-001-"))
    with pytest.raises(ValueError, match=r"records of another run, of the images \[2, 3\]"):
        run(limit=2)


def test_images_that_cannot_be_read_are_recorded_and_the_run_goes_on(run, folders, tmp_path):
    whole = (folders[1] / "test" / "a" / "1.png").read_bytes()
    (folders[1] / "test" / "a" / "1.png").write_bytes(whole[:-30])
    (folders[1] / "test" / "b" / "0.png").write_bytes(b"no picture")
    report = run()
    assert list(report.failed) == [1, 4] and len(report.outcomes) == 10
    assert "image 4: UnidentifiedImageError" in (tmp_path / "run" / "report.md").read_text()


def test_images_without_a_label_are_recorded_and_the_run_goes_on(run, folders):
    rows = {"image": [picture.copy() for picture in pictures(folders)][:3], "label": [0, -1, 2]}
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"])})
    shutil.rmtree(folders[1] / "test")
    Dataset.from_dict(rows, features=features).to_parquet(folders[1] / "test.parquet")
    report = run()
    assert report.failed == {1: "ValueError: `label` must be a class, got none."} and len(report.outcomes) == 2


def test_a_second_run_in_the_folder_raises(run, tmp_path):
    (tmp_path / "run").mkdir()
    with (
        FileLock(tmp_path / "run" / LOCK_FILE, is_singleton=False),
        pytest.raises(OSError, match="another run is at work"),
    ):
        run()
    assert [path.name for path in (tmp_path / "run").iterdir()] in ([LOCK_FILE], [])
    run(limit=1)


def test_a_full_disk_ends_the_run_and_harms_nothing(run, tmp_path, monkeypatch):
    write, room = RecordWriter.write, [4]

    def until_full(self, record):
        if not room[0]:
            self._file.write('{"index": 7, "lab')  # what a full disk leaves
            raise OSError(28, "No space left on device")
        room[0] -= 1
        write(self, record)

    with monkeypatch.context() as full:
        full.setattr(RecordWriter, "write", until_full)
        with pytest.raises(OSError, match="No space left"):
            run()
    assert len(read_records(tmp_path / "run")) == 4
    assert len(run().outcomes) == 12


@pytest.mark.parametrize(
    "changes, error, match",
    [
        ({"limit": 13}, ValueError, "`--limit` must be at most 12, .*got 13"),
        ({"split": "train"}, ValueError, "train"),
        ({"image_column": "img"}, ValueError, r"\['image', 'label'\]"),
        ({"sigma": 500.0}, ValueError, "`sigma` .*500.0"),
        ({"grid": 0}, ValueError, "`grid` .*\\b0\\b"),
        ({"method": "dds"}, ValueError, "`--classifier` must be given for --method dds .*Noised.*got none"),
        ({"stop_early": True, "radii": [3.0]}, ValueError, r"with --n 20, got \[3.0\]"),
        ({"report_to": "nothing"}, ValueError, "nothing"),
    ],
)
def test_settings_that_do_not_go_together_raise_before_any_work(run, tmp_path, changes, error, match):
    with pytest.raises(error, match=match):
        run(**changes)
    assert not list(tmp_path.glob("run/*.json*"))


def test_a_missing_model_raises(folders, tmp_path):
    with pytest.raises(ValueError, match="`--model` must be an existing folder or a Hub id, got .*nowhere"):
        evaluate(Settings(str(tmp_path / "nowhere"), str(folders[1]), str(tmp_path / "run")))


def test_an_output_that_cannot_be_written_raises(run, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(OSError, match="run"):
        run()


def test_half_precision_is_what_the_certificates_say(run, tmp_path):
    run(mixed_precision="bf16", limit=3)
    record = read_records(tmp_path / "run")[0]
    assert record["certificate"]["base_classifier"]["dtype"] == "autocast bfloat16"
    assert read_run(tmp_path / "run")["base_classifier"]["dtype"] == "autocast bfloat16"


def test_a_tracker_gets_the_certified_accuracy(run, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = run(report_to="tensorboard", radii=[0.1])
    events = EventAccumulator(str(tmp_path / "run" / "diffusers-ndc"))
    events.Reload()
    values = events.Scalars("certified_accuracy/0.1")
    assert values[-1].step == 12 and values[-1].value == pytest.approx(report.at(0.1).value)


def launcher(processes, *options):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*command, *map(str, options or ("--num_machines", 1, "--main_process_port", 0))]


def start(folders, output, command, *options):
    model, data = folders
    words = [
        *command,
        SCRIPT,
        "--model",
        model,
        "--dataset",
        data,
        "--n0",
        3,
        "--batch-size",
        64,
        "--output",
        output,
        *options,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def two_machines(folders, outputs, *options):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = ("--num_machines", 2, "--main_process_ip", "127.0.0.1", "--main_process_port", port, "--machine_rank")
    return [start(folders, output, launcher(2, *shared, rank), *options) for rank, output in enumerate(outputs)]


@pytest.mark.slow
def test_one_process_and_two_and_two_machines_give_the_same(folders, tmp_path):
    names = ["one", "two", "machines"]
    processes = [
        start(folders, tmp_path / "one", [sys.executable], "--n", 20),
        start(folders, tmp_path / "two", launcher(2), "--n", 20),
        *two_machines(folders, [tmp_path / "machines"] * 2, "--n", 20),
    ]
    for process in processes:
        printed, error = process.communicate(timeout=600)
        assert process.returncode == 0, error
    one, two, machines = (read_records(tmp_path / name) for name in names)
    assert [len(list((tmp_path / name).glob("*.jsonl"))) for name in names] == [1, 2, 2]
    for record in (*one.values(), *two.values(), *machines.values()):
        del record["seconds"]
    assert one == two == machines and list(one) == list(range(12))
    runs = [read_run(tmp_path / name) for name in names]
    assert differences(runs[0], runs[1]) == differences(runs[0], runs[2]) == {}
    assert all((tmp_path / name / "report.md").exists() for name in names)


@pytest.mark.slow
def test_a_machine_that_dies_ends_the_wait_of_the_other(folders, tmp_path):
    outputs = [tmp_path / "first", tmp_path / "second"]  # not shared, as on two machines without a common disk
    machines = two_machines(folders, outputs, "--n", 600, "--patience", 20)  # others may be slow to start
    while not any(path.stat().st_size for path in outputs[1].glob("*.jsonl")):
        assert all(machine.poll() is None for machine in machines)
        time.sleep(0.05)
    family = [machines[1].pid, *(child.pid for child in psutil.Process(machines[1].pid).children(recursive=True))]
    for pid in family:
        os.kill(pid, signal.SIGKILL)
    machines[1].communicate()
    _, error = machines[0].communicate(timeout=600)
    assert machines[0].returncode != 0 and "run the same command again" in error


def test_an_error_on_all_processes_is_said_once(folders, tmp_path):
    process = start(folders, tmp_path / "run", launcher(2), "--limit", "13")
    _, error = process.communicate(timeout=600)
    assert process.returncode != 0 and error.count("error: `--limit` must be at most 12") == 1
