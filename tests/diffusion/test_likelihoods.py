import pytest
import torch

from diffusers_ndc.diffusion.likelihoods import LIKELIHOODS, get_likelihood


def test_epndc_equals_the_two_posterior_means():
    """The paper's loss `w ||E_p - E_q||^2` is a weight times `||h - target||^2`, for any tau < s < s' and any h."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        tau, s, s_next = torch.sort(torch.rand(3, generator=generator, dtype=torch.float64) * 5 + 0.01).values
        x_tau, eps, h = torch.randn(3, 1, 4, 4, generator=generator, dtype=torch.float64)
        x_next = x_tau + (s_next**2 - tau**2).sqrt() * eps
        mean_q = ((s_next**2 - s**2) * x_tau + (s**2 - tau**2) * x_next) / (s_next**2 - tau**2)
        mean_p = ((s_next**2 - s**2) * h + s**2 * x_next) / s_next**2

        x_i, target = LIKELIHOODS["epndc"].pair(x_tau, None, tau, s_next, eps)
        torch.testing.assert_close(x_i, x_next, rtol=1e-12, atol=1e-12)
        difference = (s_next**2 - s**2) / s_next**2 * (h - target)
        torch.testing.assert_close(difference, mean_p - mean_q, rtol=1e-10, atol=1e-10)

        w = (s_next**2 - tau**2) / (2 * (s**2 - tau**2) * (s_next**2 - s**2))
        on_denoised = (s_next**2 - s**2) * (s_next**2 - tau**2) / (2 * s_next**4 * (s**2 - tau**2))
        loss = w * (mean_p - mean_q).square().sum()
        torch.testing.assert_close(on_denoised * (h - target).square().sum(), loss, rtol=1e-10, atol=1e-10)


def test_discrete_epndc_weight_tends_to_the_elbo_weight():
    """`(s'^2 - s^2) (s'^2 - tau^2) / (2 s'^4 (s^2 - tau^2))` is `ds / s^3` on a fine grid."""
    tau, s, ds = 0.5, 1.7, 1e-6
    s_next = s + ds
    weight = (s_next**2 - s**2) * (s_next**2 - tau**2) / (2 * s_next**4 * (s**2 - tau**2))
    assert weight / ds == pytest.approx(s**-3, rel=1e-5)


def test_epndc_target_is_unbiased():
    """Given x_i, the posterior mean of target and of the clean image agree: for a Gaussian x both are linear in
    x_i."""
    generator = torch.Generator().manual_seed(0)
    x, eps_tau, eps = torch.randn(3, 400_000, generator=generator, dtype=torch.float64)
    tau, sigma = torch.tensor([0.5, 1.3], dtype=torch.float64)
    x_i, target = LIKELIHOODS["epndc"].pair(x + tau * eps_tau, None, tau, sigma, eps)
    slope = (target * x_i).mean() / x_i.square().mean()
    assert slope.item() == pytest.approx(1 / (1 + 1.3**2), abs=5e-3)  # that of E[x | x_i] for x ~ N(0, 1)


@pytest.mark.parametrize("method", LIKELIHOODS)
def test_noise_of_x_i(method):
    """x_i carries noise sigma, be it from a clean image, a noisy one, or a denoised one."""
    generator = torch.Generator().manual_seed(0)
    x, eps_tau, eps = torch.randn(3, 100_000, generator=generator, dtype=torch.float64)
    sigma = torch.tensor(2.0, dtype=torch.float64)
    tau = 0.5 if LIKELIHOODS[method].noised else 0.0
    x_i, _ = LIKELIHOODS[method].pair(x + tau * eps_tau, x, tau, sigma, eps)
    assert (x_i - x).std().item() == pytest.approx(2.0, rel=1e-2)


def test_default_methods_and_refusals():
    assert get_likelihood(None, 0.0).name == "dc"
    assert get_likelihood(None, 0.25).name == "apndc"
    for method, sigma, match in [
        ("dc", 0.25, "`sigma` must be 0 with method='dc'.*got 0.25"),
        ("apndc", 0.0, "`sigma` must be above 0 with method='apndc'.*got 0.0"),
        ("epndc", 0.0, "`sigma` must be above 0 with method='epndc'.*got 0.0"),
        ("ddpm", 0.25, "`method` must be one of .*got 'ddpm'"),
    ]:
        with pytest.raises(ValueError, match=match):
            get_likelihood(method, sigma)
