"""Longer texts of the page, and the explanations that open on demand."""

from html import escape

from .attacking import DRAWS, JUDGES, STEPS
from .limits import ALPHA


TITLE = """# Certified before your eyes
A diffusion model classifies noisy copies of a picture, and their votes prove how much the picture may change before
the answer does ([the method](https://arxiv.org/abs/2402.02316))."""

SEEN = (
    "**What you see:** as the page opens, noisy copies of a sample vote on its class, and the blue line is the size "
    "of change that their votes prove harmless. Choose another picture, or draw one, and press Certify."
)

VERIFY = (
    "The label and the radius of a certificate are recomputed from its votes. This detects edited files. To check the "
    "votes themselves, repeat the certification with the same model, image and seed."
)

RUNS = (
    "The page of whole runs: certified accuracy is the share of a run's images that are classified correctly *and* "
    "certified at a radius."
)

BREAK = """### Try to break it
An attack looks for a change that makes the certified picture lose its class: first inside the radius, where no change
can, then further out."""

SIZE = """### How large is the radius?
The picture with a random change, and with the worst one that an attack found, both of the same l2 norm."""

WHY = {
    "meaning": (
        "What the radius means",
        f"No change of this image with an l2 norm below the radius (pixels from 0 to 1) changes the class that the "
        f"smoothed classifier predicts. This is proved, and wrong with a probability of at most {ALPHA:.1%}. It does "
        "not say that the class is correct, or that it stays the same after a shift or a rotation, or in another "
        "handwriting.",
    ),
    "figure": (
        "What the curve and the bars show",
        "The blue line is the radius proved by the votes so far; it may be read at any time, since the bound holds "
        "for all numbers of copies at once. The dashed line is the radius to prove. The bars count the votes of the "
        "noisy copies by class; the class with the dot ● is the one being certified. The first copies choose that "
        "class, and are not counted here.",
    ),
    "copies": (
        "What these pictures show",
        "The certified picture, the first noisy copies that voted on it, and below them what the diffusion model "
        "makes of each in one denoising step. It then asks which class explains the noisy copy best.",
    ),
    "sigma": (
        "Why the noise follows from the radius",
        "Much noise can prove large radii, but blurs pictures; little noise is fast and accurate. The smallest noise "
        "that the model is used with and that can prove your radius with room to spare is taken (unanimous copies "
        "could prove a quarter more), or else the largest. It is chosen before any vote is cast, which keeps the "
        "proof sound. To run with several noises and keep the best certificate would not be.",
    ),
    "attack": (
        "What the attack does, and what it does not show",
        f"At each distance it takes {STEPS} gradient steps, each on {DRAWS} noisy copies, and then {JUDGES} fresh "
        "noisy copies vote on the picture that was found. <b>Kept</b>: the smoothed classifier still predicts the "
        "certified class. <b>Abstained</b>: so few votes do not settle which class leads. <b>Fell</b>: it predicts "
        f"another class; each such verdict is wrong with a probability of at most {ALPHA:.1%}. Inside the radius "
        "nothing can fall, up to these error probabilities: that is proved. A picture that withstands this attack "
        "further out is not proved safe there; a stronger attack might succeed.",
    ),
    "size": (
        "What these three pictures show",
        "Both changes have the same l2 norm: the root of the summed squares of all changes of pixels, from 0 (black) "
        "to 1 (white). The certificate covers every change below the radius, the worst one included. The change that "
        "an attack found is scaled to the size chosen here.",
    ),
}


def why(name: str) -> str:
    """An explanation that opens on demand. It is an element of its own, so that a new figure does not close it."""
    title, text = WHY[name]
    return f'<details class="why"><summary>{escape(title)}</summary><p>{text}</p></details>'
