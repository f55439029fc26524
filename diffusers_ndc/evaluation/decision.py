"""What decides in a run, in a sentence: how much of it is the diffusion model's likelihood, how much was learned."""


def what_decides(run: dict) -> str | None:
    """A sentence about a base classifier with a class sifter, `None` for one without.

    Args:
        run: The settings of a run (`run.json`).
    """
    base = run.get("base_classifier")
    if not isinstance(base, dict):
        return None
    if isinstance(base.get("classifier"), dict):  # behind a denoiser
        base = base["classifier"]
    sifter = base.get("sifter")
    if not isinstance(sifter, dict):
        return None
    if base.get("method") == "features":
        return (
            "The classifier is the class sifter alone: a linear map from features of one pass of the network, fitted "
            "to labelled images. No likelihood is evaluated."
        )
    weight = sifter.get("loss_weight")
    if isinstance(weight, (int, float)) and weight > 0:
        return (
            "The scores of the class sifter, a linear map from features fitted to labelled images, count in the "
            "decision like a first noise level, and decide alone where they are clear: the classifier is partly "
            "discriminative."
        )
    return (
        "The class sifter, a linear map from features fitted to labelled images, proposes the candidate classes of "
        "each noisy copy; the likelihood decides between them."
    )
