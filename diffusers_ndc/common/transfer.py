"""From the CPU to a device without waiting for the work that is under way there."""

import torch


PINNED = ("cuda",)
"""Kinds of devices that copy from pinned memory while the CPU goes on."""


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on a device; on CUDA neither the CPU nor the work under way waits for the copy.

    Values that are listed on the device itself (`torch.tensor(values, device=device)`, or a list as an index) would be
    copied from pageable memory, for which the CPU waits until all work before it is done.
    """
    if device.type in PINNED:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
