"""Folders of small runs whose figures can be worked out by hand."""

from scipy import stats

from diffusers_ndc import Certificate, NoiseLevels, SiftingRule
from diffusers_ndc.evaluation.records import RecordWriter, read_run, write_run


RUN = {
    "model": "M",
    "dataset": "digits",
    "sigma": 0.5,
    "n": 100,
    "alpha": 0.001,
    "radii": [0.25, 0.5],
    "id2label": {0: "zero", 1: "one", 2: "two"},
}
# True label, candidate, votes for it of 100, evaluations, seconds.
IMAGES = [
    (0, 0, 100, 100, 1.0),
    (0, 0, 92, 200, 2.0),
    (1, 1, 70, 300, 3.0),
    (1, 2, 100, 400, 4.0),  # wrong
    (1, 1, 50, 1000, 10.0),  # abstains
    (7, 7, 100, 100, 1.0),  # a class without a name
]
OTHERS = [
    (0, 0, 70, 100, 1.0),
    (0, 0, 100, 200, 2.0),
    (1, 1, 70, 300, 3.0),
    (1, 1, 100, 400, 4.0),
    (1, 1, 50, 1000, 10.0),
    (7, 7, 50, 100, 1.0),
]
"""What another run finds for the same images."""

RADII = [0.5 * stats.norm.ppf(stats.beta.ppf(0.001, votes, 101 - votes)) for votes in (100, 92, 70)]
"""Certified radii of the three images that are correctly certified."""


def record_of(index, label, candidate, votes, evaluations, seconds, /, base_classifier=None, **changes):
    """The record of one image.

    Args:
        index: The image's index in the data set.
        label: Its true class.
        candidate: The class being certified.
        votes: Votes for it, of 100; the others are for the next class.
        evaluations: Network evaluations spent.
        seconds: The image's share of the time.
        base_classifier: What the certificate says of the base classifier. Default: nothing.
        **changes: Fields of the certificate to forge. Its digest is then left out, as a forger would make a new one.
    """
    counts = {candidate: votes, candidate + 1: 100 - votes} if votes < 100 else {candidate: votes}
    certificate = Certificate.from_counts(
        {candidate: 10},
        counts,
        0.5,
        0.001,
        evaluations=evaluations,
        image_hash=f"{index:032x}",
        base_classifier=base_classifier or {},
    )
    certificate = {**certificate.to_dict(), **changes}
    if changes:
        del certificate["digest"]
    hashed = f"{index:032x}"
    return {"index": index, "image_hash": hashed, "label": label, "seconds": seconds, "certificate": certificate}


def make_run(folder, images=IMAGES, extra=(), **settings):
    """Write a run of these images to a folder, with `extra` records and other settings; returns the folder."""
    write_run(folder, {**RUN, **settings})
    with RecordWriter(folder) as writer:
        for index, image in enumerate(images):
            writer.write(record_of(index, *image, base_classifier=settings.get("base_classifier")))
        for record in extra:
            writer.write(record)
    return folder


HOSTILE = [
    "</script><script>window.hit = 1</script>",
    "<!--<script>",
    '<img src=x onerror="window.hit = 1">',
    "'\"><svg onload=window.hit=1>",
    "]]>&lt;b&gt;&amp;",
    "\u2028\u2029\x00\ud800",
    "__proto__",
    "$title ${data}",
]
"""Names that break a page in which they are not escaped."""

CARD_SETTINGS = {
    "model": "me/digits",
    "split": "test",
    "method": "apndc",
    "n0": 10,
    "seed": 0,
    "base_classifier": {
        "method": "apndc",
        "levels": NoiseLevels((2.5, 1.25), (0.75, 0.25), SiftingRule((0.1,))).to_dict(),
        "dtype": "float32",
    },
    "weight_hash": "0123456789abcdef",
}


def make_card_run(folder, **settings):
    """Write a run with all settings that a model card mentions; returns the folder."""
    return make_run(folder, **{**CARD_SETTINGS, **settings})


TASK = {
    "name": "digits-l2",
    "version": 1,
    "dataset": "digits",
    "split": "test",
    "skip": 1,
    "images": 6,
    "sigmas": [0.25, 0.5],
    "radii": [0.25, 0.5],
    "n0": 10,
    "n": 100,
    "alpha": 0.001,
    "stop_early": False,
}
"""An evaluation task that `RUN` and `IMAGES` fit."""


def make_task_run(folder, task=TASK, **settings):
    """Write a run of a task, with all settings that a model card mentions; returns the folder."""
    of_task = {"dataset": "digits", "skip": 1, "limit": 6, "stop_early": False, "task": task}
    make_card_run(folder, **{**of_task, **settings})
    write_run(folder, {**read_run(folder), "images": 6})
    return folder
