import pytest

from diffusers_ndc.diffusion.sifting import rows_that_fill


@pytest.mark.parametrize(
    "sizes, rows",
    [
        ([10] * 6 + [2, 2], [0, 1, 2, 3, 4, 5, 6, 7]),  # 64: one batch to the full
        ([10] * 7 + [4], [0, 1, 2, 3, 4, 5, 7]),  # the seventh would overflow, the last one fits
        ([10, 3], [0, 1]),  # not one batch
        ([1000], [0]),  # more than one batch by itself
        ([], []),
    ],
)
def test_whole_copies_fill_whole_batches_the_oldest_first(sizes, rows):
    assert rows_that_fill(sizes, 64) == rows
