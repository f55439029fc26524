"""What decides in a run, in a sentence: how much of it is the diffusion model's likelihood, how much was learned."""

from pathlib import Path


SENTENCES = {
    "alone": "The classifier is the class sifter alone: a linear map from features of one pass of the network, fitted "
    "to labelled images. No likelihood is evaluated.",
    "counts too": "The scores of the class sifter, a linear map from features fitted to labelled images, count in the "
    "decision like a first noise level, and decide alone where they are clear: the classifier is partly "
    "discriminative.",
    "proposes": "The class sifter, a linear map from features fitted to labelled images, proposes the candidate "
    "classes of each noisy copy; the likelihood decides between them.",
}
"""What decides, by what the class sifter does."""

BY_ITSELF = (
    "The classifier is an image classifier by itself, which takes the noisy images as they are: a baseline without a "
    "diffusion model."
)


def what_decides(run: dict) -> str | None:
    """A sentence about a base classifier with a class sifter, or without a diffusion model; `None` for others.

    Args:
        run: The settings of a run (`run.json`).
    """
    if run.get("method") == "gaussian":
        return BY_ITSELF
    role = _role(run)
    return None if role is None else SENTENCES[role]


def what_decides_briefly(run: dict) -> str:
    """The method of a run and what its class sifter does, in a few words for a cell of a table.

    Args:
        run: The settings of a run (`run.json`).
    """
    method = str(run.get("method", "-"))
    if run.get("classifier") is not None:
        classifier = str(run["classifier"])
        is_folder = classifier.startswith((".", "/", "~"))
        method += f" with {(is_folder and Path(classifier).name) or classifier}"
    role = _role(run)
    return f"{method}, sifter {role}" if role in ("proposes", "counts too") else method


def what_was_run(run: dict) -> str:
    """Folder or Hub id of the model of a run; of the classifier, in a run without a diffusion model.

    Args:
        run: The settings of a run (`run.json`).
    """
    name = run.get("model") or run.get("classifier")
    return "-" if name is None else str(name)


def _role(run: dict) -> str | None:
    """What the class sifter does in a run, one of `SENTENCES`, `None` without one."""
    base = run.get("base_classifier")
    if not isinstance(base, dict):
        return None
    if isinstance(base.get("classifier"), dict):  # behind a denoiser
        base = base["classifier"]
    sifter = base.get("sifter")
    if not isinstance(sifter, dict):
        return None
    if base.get("method") == "features":
        return "alone"
    weight = sifter.get("loss_weight")
    return "counts too" if isinstance(weight, (int, float)) and weight > 0 else "proposes"
