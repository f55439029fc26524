"""Configuration, records, reports and descriptions of checkpoints, as people and accidents may leave them."""

import contextlib
import copy
import io
import json
import pickletools
import sys
import warnings
from dataclasses import asdict
from itertools import pairwise

import pytest
import torch
from helpers.edm_files import golden, save_published
from helpers.fuzzing import HUGE, REFUSED, attempt, cases
from helpers.runs import RUN, TASK, record_of
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file

from diffusers_ndc import NoisedDiffusionClassifierPipeline, NoiseLevels, SiftingRule
from diffusers_ndc.checkpoints import read_checkpoint
from diffusers_ndc.checkpoints.pairs import read_checkpoints
from diffusers_ndc.evaluation import comparison
from diffusers_ndc.evaluation.records import read_records, read_run
from diffusers_ndc.evaluation.report import Report, main, to_markdown
from diffusers_ndc.evaluation.settings import Settings
from diffusers_ndc.evaluation.settings_parser import parse
from diffusers_ndc.evaluation.task import Task, load_task
from diffusers_ndc.training import parse as parse_training


PLAIN = st.sampled_from(
    [
        *(None, True, False, 0, 1, -1, 3, 2**63, 10**30, 10**400, 0.25, 0.5, 1e-3, HUGE, float("nan"), float("inf")),
        *(
            "",
            " ",
            "a",
            "0.25",
            "1e-3",
            "0",
            "3",
            "null",
            "true",
            "--help",
            "-1",
            "\ud800",
            "\u2028",
            "\0",
            "$x_{$",
            "|",
        ),
    ]
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["0", "0.25", "dc", "apndc", "sigmas", "weights"]), inner, max_size=3)
    ),
    max_leaves=5,
)


def changed(valid: dict, values=VALUES, most: int = 3):
    """A dictionary in which some values are others, or are gone."""
    names = st.sampled_from([*valid, "unknown"])
    others = st.dictionaries(names, values, max_size=most)
    return st.builds(
        lambda new, gone: {name: value for name, value in {**valid, **new}.items() if name not in gone},
        others,
        st.sets(names, max_size=1),
    )


LINE = {"model": "m", "dataset": "d", "output": "o"}
SETTINGS = {
    **LINE,
    **{
        "sigma": 0.25,
        "radii": [0.25, 0.5],
        "n": 100,
        "n0": None,
        "alpha": 0.001,
        "method": "apndc",
        "stop-early": True,
        "max_copies_per_radius": 100.0,
    },
    **{"limit": 3, "grid": None, "seed": 0, "patience": 10, "batch_size": 8, "classifier": None, "report_to": None},
}
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
WORDS = [
    "{",
    "}",
    "[",
    "]",
    ": ",
    "\n",
    "- ",
    "&a ",
    "*a",
    "!!int ",
    "!!float ",
    "!!bool ",
    "!!timestamp ",
    "!!set ",
    "''",
]
YAML = st.lists(
    st.sampled_from(
        [*WORDS, *SETTINGS, "!!binary ", "!!python/object:os.system ", "<<: ", "? ", "| ", "%", "\t", "9" * 5000]
    )
    | st.text(max_size=3),
    max_size=12,
).map("".join)


@cases(600)
@given(text=changed(SETTINGS).map(lambda values: json.dumps(values)) | YAML | st.binary(max_size=20))
@example("radii: !!int ''")
@example("stop_early: !!bool x")
@example("sigma: !!timestamp x")
@example("{radii: " + "[" * 5000)
@example("radii: &a [*a]")
@example("model: " + LAUGHS.replace("\n", "\n  ").replace("a: &a", "\n  a: &a", 1))
@example(
    "radii:\n  "
    + "".join(
        f"- &{b} [{', '.join(['*' + a] * 9)}]\n  " for a, b in zip("abcdefghi", "bcdefghij", strict=True)
    ).replace("*a", "x")
)
@example(json.dumps({"radii": [10**400]}))
def test_a_yaml_file_gives_settings_or_is_refused(tmp_path_factory, text):
    settings = settings_of(tmp_path_factory.getbasetemp() / "run.yaml", text)
    if settings is not None:
        with contextlib.suppress(TypeError, ValueError):
            settings.check()


def settings_of(path, text):
    """The settings that a command line with a YAML file of this text gives, `None` where it is refused."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    line = [word for name, value in LINE.items() for word in (f"--{name}", value)]
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            settings = parse([*line, "--config", str(path)])
        except SystemExit as error:
            assert error.code in (0, 2)
            return None
    assert isinstance(settings, Settings)
    return settings


TRAINING = {"dataset": "d", "output_dir": "o", "resolution": [8], "unet_config": {"layers_per_block": 1}, "seed": 0}


@cases(300)
@given(text=changed(TRAINING).map(lambda values: json.dumps(values)) | YAML | st.binary(max_size=20))
@example("unet_config: " + LAUGHS.replace("\n", "\n  ").replace("a: &a", "\n  a: &a", 1))
@example("unet_config: &a {a: *a}")
@example(json.dumps({"unet_config": {"a": 10**400}, "resolution": [10**400]}))
def test_a_yaml_file_gives_a_training_or_is_refused(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "training.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    words = ["--dataset", "d", "--output-dir", "o", "--config", str(path)]
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            settings = parse_training(words)
        except SystemExit as error:
            assert error.code in (0, 2)
            return
    with contextlib.suppress(TypeError, ValueError):
        settings.check()


VALID_SETTINGS = [
    *({}, {"radii": [0, 1]}, {"radii": 0.5}, {"sigma": 1}, {"sigma": "1e-3"}, {"alpha": 1e-50}, {"method": "epndc"}),
    *(
        {"n0": 0},
        {"n0": 30},
        {"n": 1},
        {"grid": 16},
        {"seed": 2**63 - 1},
        {"limit": None},
        {"skip": 2},
        {"split": "a"},
    ),
    *({"method": "dds", "classifier": "c"}, {"stop-early": False}, {"patience": 0.5}),
    *({"max_copies_per_radius": 100}, {"max_copies_per_radius": "inf"}, {"max_evaluations": 1}),
]


@pytest.mark.parametrize("changes", VALID_SETTINGS, ids=str)
def test_valid_settings_in_a_yaml_file_are_accepted(tmp_path, changes):
    settings = settings_of(tmp_path / "run.yaml", json.dumps({**SETTINGS, **changes}))
    assert settings is not None
    settings.check()
    for name in ("n0", "n", "alpha", "method", "seed", "split"):
        assert name not in changes or getattr(settings, name) == changes[name]


@cases(300)
@given(text=changed(TASK).map(lambda values: json.dumps(values)) | YAML | st.binary(max_size=20))
@example("{radii: " + "[" * 5000)
@example(json.dumps({**TASK, "radii": [10**400]}))
@example(json.dumps({**TASK, "alpha": 10**400}))
@example(json.dumps({**TASK, "method": []}))
@example("name: " + LAUGHS.replace("\n", "\n  ").replace("a: &a", "\n  a: &a", 1))
def test_a_task_file_gives_a_task_or_is_refused(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "task.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    try:
        task = load_task(str(path))
    except ValueError as error:
        assert "`--task` must" in str(error)
        return
    assert Task.from_dict(json.loads(json.dumps(asdict(task)))) == task
    with contextlib.suppress(ValueError):  # a text that looks like an option, or a sigma of no use
        parse_quietly(["--task", str(path), "--model", "m", "--output", "o"]).check()


def parse_quietly(words):
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            return parse(words)
        except SystemExit:
            raise ValueError("refused") from None


def test_a_valid_task_file_is_accepted(tmp_path):
    (tmp_path / "task.yaml").write_text(json.dumps(TASK))
    parse_quietly(["--task", str(tmp_path / "task.yaml"), "--model", "m", "--output", "o"]).check()


LEVELS = NoiseLevels((1.0, 2.0), (1.0, 0.5), SiftingRule((3.0,)), smoothing_sigma=0.25, method="apndc").to_dict()
INDEX = {
    "levels": {"0.25": {"apndc": LEVELS}},
    "id2label": {"0": "a", "1": "b", "2": "c"},
    "null_class": 3,
}
TABLES = (
    changed(LEVELS, most=2).map(lambda levels: {"0.25": {"apndc": levels}})
    | changed({"apndc": LEVELS}).map(lambda methods: {"0.25": methods})
    | st.dictionaries(PLAIN.map(str), st.just({"apndc": LEVELS}), min_size=1, max_size=2)
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, small_model):
    return small_model(tmp_path_factory.mktemp("model"))


@cases(100)
@given(index=changed(INDEX) | TABLES.map(lambda levels: {**INDEX, "levels": levels}))
@example({**INDEX, "levels": {"inf": {"dc": LEVELS}}})
@example({**INDEX, "levels": {"0.25": None}})
@example({**INDEX, "levels": 3})
@example({**INDEX, "id2label": {}})
@example({**INDEX, "null_class": 3.0})
def test_a_models_index_gives_a_pipeline_or_is_refused(folders, index):
    try:
        pipe = load_with_index(folders, index)
    except (TypeError, ValueError) as error:
        assert "`" in str(error) or "Union of no types" in str(error)  # what diffusers says to []
        return
    classifier = attempt(lambda: pipe.classifier(0.25))
    assert classifier is REFUSED or classifier.num_classes in (3, 4)


def load_with_index(folders, index):
    """The pipeline of a folder where these entries replace those of `model_index.json`."""
    path = folders[0] / "model_index.json"
    saved = path.read_text()
    try:
        path.write_text(json.dumps({**{k: v for k, v in json.loads(saved).items() if k not in INDEX}, **index}))
        return NoisedDiffusionClassifierPipeline.from_pretrained(folders[0])
    finally:
        path.write_text(saved)


VALID_INDICES = [
    *(INDEX, {**INDEX, "levels": {}}, {**INDEX, "levels": None}, {**INDEX, "id2label": None}),
    {"id2label": {"0": "a", "1": "b", "2": "c", "3": "d"}, "null_class": None},
    {**INDEX, "levels": {"0.25": {"apndc": {"sigmas": [1.0], "weights": [1.0]}}, "0": {}}},
    {},
]


@pytest.mark.parametrize("index", VALID_INDICES, ids=range(len(VALID_INDICES)))
def test_a_valid_models_index_gives_a_pipeline(folders, index):
    pipe = load_with_index(folders, index)
    classifier = pipe.classifier(0.25)
    assert classifier.num_classes == (4 if index.get("null_class") is None else 3)
    if index == INDEX:
        assert classifier.levels.to_dict() == LEVELS


RECORD = record_of(0, 0, 0, 100, 100, 1.0)
SETTINGS_OF_RUN = {**RUN, "id": None, "images": 2, "n0": 10, "split": "test", "stop_early": True, "seed": 0}
RUN_OF_TASK = {**SETTINGS_OF_RUN, "stop_early": False, "skip": 1, "limit": 6, "images": 6, "task": TASK}


@st.composite
def lines(draw):
    """Records of a run, some with other values, some damaged."""
    texts = [json.dumps(RECORD)]
    for index in range(1, draw(st.integers(1, 3))):
        record = draw(changed({**copy.deepcopy(RECORD), "index": index}))
        if isinstance(record.get("certificate"), dict) and draw(st.booleans()):
            record["certificate"] = draw(changed(record["certificate"]))
            record["certificate"].pop("digest", None)
        text = json.dumps(record)
        texts.append(
            draw(st.sampled_from([text, text, text[: len(text) // 2], "[" * 10_000, '{"index": 1' + "0" * 5000]))
        )
    return "\n".join(texts)


@cases(300)
@given(
    # lone surrogates in a name would end as an error when the report is written as UTF-8
    run=changed(SETTINGS_OF_RUN)
    | st.just(SETTINGS_OF_RUN)
    | changed(RUN_OF_TASK, most=1)
    | changed(TASK, most=1).map(lambda task: {**RUN_OF_TASK, "task": task}),
    records=lines(),
    clean=st.booleans(),
)
@example({**SETTINGS_OF_RUN, "radii": 3}, json.dumps(RECORD), False)
@example({**SETTINGS_OF_RUN, "sigma": "0.5"}, json.dumps(RECORD), False)
@example({**SETTINGS_OF_RUN, "images": None}, json.dumps(RECORD), False)
@example({**SETTINGS_OF_RUN, "images": "many"}, json.dumps(RECORD), False)
@example({**SETTINGS_OF_RUN, "id2label": ["zero"]}, json.dumps(RECORD), False)
@example({**RUN_OF_TASK, "limit": 6.0}, json.dumps(RECORD), False)
@example(SETTINGS_OF_RUN, json.dumps({**RECORD, "seconds": 10**400}), False)
@example(SETTINGS_OF_RUN, json.dumps({**RECORD, "seconds": float("inf")}), False)
@example(SETTINGS_OF_RUN, "[" * 100_000 + "\n" + json.dumps(RECORD), False)
def test_a_run_gives_a_report_or_is_refused(tmp_path_factory, run, records, clean):
    folder = tmp_path_factory.getbasetemp() / "run"
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps({**run, "alpha": None} if clean else run))
    (folder / "a.jsonl").write_text(records)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # damaged lines
        try:
            report = Report.from_folder(folder)
        except ValueError:
            return
    assert len(report.outcomes) + len(report.rejected) + len(report.failed) >= 1
    assert all(outcome.radius >= 0 and type(outcome.label) is int for outcome in report.outcomes)
    json.dumps(report.to_dict(), allow_nan=False)
    to_markdown(report).encode(errors="backslashreplace")  # as it is written
    json.dumps([one.to_dict() for one in comparison.compare([report, report])], allow_nan=False)
    comparison.to_markdown(comparison.compare([report, report])).encode(errors="backslashreplace")


CLEAN_RECORD = {"index": 0, "image_hash": "00", "label": 0, "predicted": 1, "evaluations": 3, "seconds": 1.0}
FAILED_RECORD = {"index": 1, "failed": "it cannot be read"}


@pytest.mark.parametrize(
    "changes, records, outcomes",
    [
        ({}, [RECORD], 1),
        ({"id2label": None, "images": 0, "n0": None}, [RECORD, FAILED_RECORD], 1),
        ({"radii": [0], "unknown": None}, [{**RECORD, "seconds": 0}], 1),
        ({"alpha": None, "sigma": 0.0, "n": None, "radii": [0.0]}, [CLEAN_RECORD, FAILED_RECORD], 1),
        ({}, [FAILED_RECORD], 0),
        (RUN_OF_TASK, [RECORD, FAILED_RECORD], 1),
    ],
)
def test_a_valid_run_gives_a_report_of_all_its_records(tmp_path, changes, records, outcomes):
    (tmp_path / "run.json").write_text(json.dumps({**SETTINGS_OF_RUN, **changes}))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert list(read_records(tmp_path)) == [record["index"] for record in records]
    assert read_run(tmp_path)["id"] is None
    report = Report.from_folder(tmp_path)
    assert (len(report.outcomes), report.rejected) == (outcomes, {})
    assert len(report.failed) == len(records) - outcomes


@cases(15)
@given(
    run=changed(SETTINGS_OF_RUN, most=1),
    records=lines(),
    name=st.sampled_from(["run", "$x_{$", "a$b$c$", "%s", "\u2603", "a\nb", "_"]),
)
@example(SETTINGS_OF_RUN, json.dumps(RECORD), "$x_{$")
def test_the_report_program_ends_with_a_report_or_a_line(tmp_path_factory, run, records, name):
    folder = tmp_path_factory.mktemp("runs") / name
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "a.jsonl").write_text(records)
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        warnings.catch_warnings(action="ignore"),
    ):
        patch.setattr(sys, "argv", ["report", str(folder)])
        try:
            main()
        except SystemExit as error:
            assert str(error.code).startswith("error: ")
            valid = (run, records) == (SETTINGS_OF_RUN, json.dumps(RECORD))
            assert not valid, "a valid run is refused"
            return
    assert (folder / "certified_accuracy.png").stat().st_size > 1000


@cases(300)
@given(data=st.binary(max_size=30) | VALUES.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
def test_files_of_a_run_that_are_none(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "none"
    folder.mkdir(exist_ok=True)
    for name in ("run.json", "a.jsonl"):
        (folder / name).write_bytes(data)
    with contextlib.suppress(ValueError):
        assert isinstance(read_run(folder), dict)
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        assert all(type(index) is int for index in read_records(folder))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network of ten classes, and its description."""
    small, _ = golden("a")
    path = tmp_path_factory.mktemp("edm") / "network.safetensors"
    save_file({key: value.contiguous() for key, value in small.state_dict.items()}, path)
    return path, {"class_name": small.class_name, "init_kwargs": small.init_kwargs}


NAMES = [
    "img_resolution",
    "img_channels",
    "label_dim",
    "use_fp16",
    "sigma_min",
    "sigma_max",
    "sigma_data",
    "model_type",
]
NAMES += ["model_channels", "channel_mult", "channel_mult_emb", "num_blocks", "attn_resolutions", "dropout", "beta_d"]
NAMES += [
    "label_dropout",
    "augment_dim",
    "embedding_type",
    "channel_mult_noise",
    "encoder_type",
    "resample_filter",
    "M",
]
CLASSES = st.sampled_from(["EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond"]) | VALUES
WHOLE = st.sampled_from([0, 1, -1, 2, 10**9, [], [0], [-1], [1] * 10_000, [10**9, 1], "SongUNet", "DhariwalUNet"])


@cases(250)
@given(
    name=CLASSES | st.just(None),
    kwargs=st.dictionaries(st.sampled_from(NAMES), VALUES | WHOLE, max_size=3),
    gone=st.sets(st.sampled_from(NAMES), max_size=1),
    whole=VALUES | st.none(),
)
@example(None, {}, set(), None)
@example(None, {"num_blocks": 10**9}, set(), None)
@example(None, {"img_resolution": 0}, set(), None)
@example(None, {"model_channels": 1}, set(), None)
@example(None, {"model_channels": -8}, set(), None)
@example("iDDPMPrecond", {}, set(), None)
def test_a_description_of_a_checkpoint_is_that_of_a_network_or_refused(checkpoint, name, kwargs, gone, whole):
    path, known = checkpoint
    arguments = {key: value for key, value in {**known["init_kwargs"], **kwargs}.items() if key not in gone}
    description = {"class_name": known["class_name"] if name is None else name, "init_kwargs": arguments}
    path.with_suffix(".json").write_text(json.dumps(description if whole is None else whole))
    try:
        read_checkpoint(path)
        pair = read_checkpoints(path)
        network, scheduler = pair.unet, pair.scheduler
    except ValueError:
        assert (description if whole is None else whole) != known, (
            "the description of the checkpoint itself is refused"
        )
        return
    assert network.class_embedding is not None and scheduler.config.sigma_min < scheduler.config.sigma_max


@pytest.fixture(scope="module")
def damaged(checkpoint):
    """Makes a checkpoint file in which some of the bytes that are no weights are others, and the end is missing."""
    path, described = checkpoint
    small, _ = golden("a")
    whole = {".safetensors": path.read_bytes(), ".pkl": save_published(path.with_suffix(".pkl"), small).read_bytes()}
    torch.save(small.state_dict, path.with_suffix(".pt"))
    whole[".pt"] = path.with_suffix(".pt").read_bytes()
    starts = [position for _, _, position in pickletools.genops(whole[".pkl"])]
    telling = {
        ".safetensors": range(int.from_bytes(whole[".safetensors"][:8], "little") + 8),
        ".pkl": [byte for one, two in pairwise(starts) if two - one < 300 for byte in range(one, two)],
        ".pt": [*range(6000), *range(len(whole[".pt"]) - 6000, len(whole[".pt"]))],
    }
    folder = path.parent / "damaged"
    folder.mkdir()
    (folder / "network.json").write_text(json.dumps(described))

    def make(suffix, changes, end):
        data = bytearray(whole[suffix])
        for place, byte in changes:
            data[telling[suffix][place % len(telling[suffix])]] = byte
        (folder / f"network{suffix}").write_bytes(data[: int(end * len(data))])
        return folder / f"network{suffix}"

    return make


@cases(300)
@given(
    suffix=st.sampled_from([".pkl", ".pt", ".safetensors"]),
    changes=st.lists(
        st.tuples(st.integers(0, 2**30), st.integers(0, 255) | st.sampled_from(b"rqj.2QcR\x85\x93\x94")), max_size=6
    ),
    end=st.just(1.0) | st.floats(0, 1),
)
@example(".pt", [], 0.03125)
@example(".pkl", [], 1.0)
@example(".pt", [], 1.0)
@example(".safetensors", [], 1.0)
def test_damaged_bytes_of_a_checkpoint_give_a_network_or_are_refused(damaged, suffix, changes, end):
    path = damaged(suffix, changes, end)
    try:
        network = read_checkpoints(path).unet
    except ValueError:
        assert changes or end < 1, "an undamaged file is refused"
        return
    assert sum(weight.numel() for weight in network.parameters()) > 1000
