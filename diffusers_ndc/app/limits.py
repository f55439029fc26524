"""What visitors may ask for."""

ALPHA = 0.001
"""Probability with which a certificate may be wrong."""

COPIES = (100, 2000)
RADII = (0.05, 2.0)
SIGMAS = (0.1, 1.0)
SIZES = (0.25, 8.0)
"""Sizes of a change that is shown, in radii."""

SECONDS = 120.0
"""Time limit for one picture, so that a visitor who does not wait for the result does not keep the others waiting."""

VISITORS = 2
"""Certifications at a time, taking turns step by step."""
