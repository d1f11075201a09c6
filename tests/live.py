"""The bytes of all tensors that exist at a time, counted without a GPU."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts the storages of the results of all operations while they exist.

    peak: the most bytes at a time, with those of `known` tensors.
    """

    def __init__(self, *known):
        super().__init__()
        self.sizes, self.now, self.peak = {}, 0, 0
        for tensor in known:
            self.add(tensor)

    def add(self, tensor):
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            nbytes = storage.nbytes()
            self.sizes[key] = weakref.ref(storage, lambda _: self.drop(key, nbytes))
            self.now += nbytes
            self.peak = max(self.peak, self.now)

    def drop(self, key, nbytes):
        del self.sizes[key]
        self.now -= nbytes

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return result
