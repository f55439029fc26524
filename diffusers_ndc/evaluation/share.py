"""A share of a set of images, with its confidence interval."""

from dataclasses import dataclass

from ..certification.bounds import clopper_pearson_lower


@dataclass(frozen=True)
class Share:
    """A share of a set of images.

    Args:
        count: Number of images that have the property.
        total: Number of all images.
    """

    count: int
    total: int

    @property
    def value(self) -> float:
        """The share itself, 0 if there are no images."""
        return self.count / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Two-sided 95% Clopper-Pearson interval of the share among all images that could have been drawn.

        It covers that share with probability at least 0.95 over a random sample of images; the error probability
        `alpha` of each certificate is another matter.
        """
        if not self.total:
            return 0.0, 1.0
        low = clopper_pearson_lower(self.count, self.total, 0.025)
        return low, 1 - clopper_pearson_lower(self.total - self.count, self.total, 0.025)

    def to_dict(self) -> dict:
        """Convert to plain values, for JSON."""
        low, high = self.interval
        return {"share": self.value, "count": self.count, "total": self.total, "low": low, "high": high}
