"""Memory in bytes of tensors, counted and not measured: the same on every machine and in every run."""

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """While active, follows the memory of all tensors that go into an operation of torch or come out of one.

    `peak` is the largest number of bytes that such tensors held at the end of an operation, memory that they share
    counted once. Weights of networks are among them.
    """

    def __init__(self):
        super().__init__()
        self.peak = 0
        self._size = 0  # of `_held`, perhaps with some that have been freed
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, results)):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                _, size_before = self._held.get(reference.cdata, (None, 0))
                self._held[reference.cdata] = (reference, storage.nbytes())
                self._size += storage.nbytes() - size_before
        if self._size > self.peak:  # else it is no new peak, whatever has been freed
            self._held = {key: held for key, held in self._held.items() if not held[0].expired()}
            self._size = sum(size for _, size in self._held.values())
            self.peak = max(self.peak, self._size)
        return results
