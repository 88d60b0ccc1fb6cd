"""An accelerator that is not there: PyTorch's PrivateUse1 device, computed on the CPU and watched.

Its tensors say that they are on the device and hold their numbers in the CPU's memory, so that a whole training runs on
it and gives real numbers, while every operation is seen: a device mismatch raises, reads by the host, copies to
the device, launches and bytes are counted. What it does not know: how long anything takes, what a library allocates
for itself, and the kernels of a fused optimizer, which check more than this does.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NAME = "rehearsed"
BLOCK = 512  # bytes by which CUDA's allocator rounds up
COPIES = ("copy_", "_to_copy", "_copy_from", "_copy_from_and_resize")
# CUDA waits for the device in these, whose output's size is a value.
SIZED_BY_VALUE = ("nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "repeat_interleave", "equal")
BY_INDICES = ("index", "index_put", "index_put_")
NO_LAUNCH = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "lift_fresh")


class DeviceMismatch(RuntimeError):
    """What CUDA says of tensors on two devices."""


class OnAccelerator(Tensor):
    """A tensor of the device; `numbers` are its values, in the CPU's memory."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "OnAccelerator":
        made: OnAccelerator = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=torch.device(NAME, 0),
        )
        made.numbers = values
        return made

    def tolist(self) -> Any:
        """As of any tensor; a subclass has none by itself."""
        return self.cpu().tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        assert Accelerator.current is not None, f"{function} outside of the accelerator"
        return Accelerator.current.compute(function, args, kwargs or {})


class Accelerator(TorchDispatchMode):
    """What happened on the device since it was entered."""

    current: "Accelerator | None" = None

    def __init__(self) -> None:
        super().__init__()
        self.reads = self.uploads = self.launches = 0
        self.peak_bytes = 0
        self.read_by: list[str] = []  # the operations that the host waited for
        self._entered = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __enter__(self) -> "Accelerator":
        self._entered += 1
        Accelerator.current = self
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(..., device=...)` comes here as a copy
        super().__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        super().__exit__(*problem)
        self._entered -= 1
        if not self._entered:
            Accelerator.current = None
            torch._C._set_only_lift_cpu_tensors(False)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.compute(function, args, kwargs or {})

    def compute(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        tensors = _tensors((args, kwargs))
        there = [tensor for tensor in tensors if isinstance(tensor, OnAccelerator)]
        devices = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.device)]
        to_device = any(device.type == NAME for device in devices)
        if not there and not to_device:
            return function(*args, **kwargs)
        if function._can_decompose():  # in inference mode, operations that consist of others come here whole
            with self:
                return function.decompose(*args, **kwargs)
        # The tensors of inference mode could be neither viewed nor written to later.
        with torch.inference_mode(False), torch.no_grad():
            return self._compute(function, args, kwargs, there, bool(devices) and not to_device)

    def _compute(
        self, function: Any, args: Any, kwargs: dict[str, Any], there: list[OnAccelerator], to_host: bool
    ) -> Any:
        name = function.overloadpacket.__name__
        self._check_devices(name, _tensors((args, kwargs)), there)
        to_host |= name == "_local_scalar_dense" or (name == "copy_" and not isinstance(args[0], OnAccelerator))
        plain = {key: torch.device("cpu") if key == "device" else value for key, value in kwargs.items()}
        found = function(*_unwrapped(args), **_unwrapped(plain))
        self._count(function, name, args, kwargs, to_host)
        if to_host:
            return args[0] if name == "copy_" else _copied(found, args[0])
        if name == "_to_copy" and not there:
            found = _copied(found, args[0])
        written = {id(tensor.numbers): tensor for tensor in there}  # an operation in place gives its own argument back
        return tree_map(lambda value: written[id(value)] if id(value) in written else self._wrapped(value), found)

    def _wrapped(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, OnAccelerator):
            return value
        storage = value.untyped_storage()
        if storage._cdata not in self._storages or self._storages[storage._cdata][0].expired():
            self._storages[storage._cdata] = StorageWeakRef(storage), math.ceil(storage.nbytes() / BLOCK) * BLOCK
            self.peak_bytes = max(self.peak_bytes, self.bytes)
        return OnAccelerator(value)

    @property
    def bytes(self) -> int:
        """What is held now."""
        self._storages = {key: kept for key, kept in self._storages.items() if not kept[0].expired()}
        return sum(size for _, size in self._storages.values())

    def _check_devices(self, name: str, tensors: Sequence[Tensor], there: Sequence[Tensor]) -> None:
        elsewhere = [tensor for tensor in tensors if not isinstance(tensor, OnAccelerator) and tensor.dim()]
        if there and elsewhere and name not in COPIES:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in elsewhere)
            raise DeviceMismatch(f"{name}: expected all tensors on the same device, but {shapes} are on the CPU")

    def _count(self, function: Any, name: str, args: Any, kwargs: Any, to_host: bool) -> None:
        tensors = _tensors((args, kwargs))
        there = [tensor for tensor in tensors if isinstance(tensor, OnAccelerator)]
        by_mask = name in BY_INDICES and any(index.dtype == torch.bool for index in _tensors(args[1]))
        if to_host or name in SIZED_BY_VALUE or by_mask:
            self.reads += 1
            self.read_by.append(name)
        is_upload = len(there) < len(tensors) if name == "copy_" else name in COPIES and not there
        self.uploads += is_upload and not to_host
        returns = function._schema.returns
        is_view = any(one.alias_info is not None and not one.alias_info.is_write for one in returns)
        self.launches += not is_view and name not in NO_LAUNCH


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_flatten(values)[0] if isinstance(value, Tensor)]


def _unwrapped(values: Any) -> Any:
    return tree_map(lambda value: value.numbers if isinstance(value, OnAccelerator) else value, values)


def _copied(found: Any, source: Any) -> Any:
    """A copy between devices has memory of its own."""
    if isinstance(found, Tensor) and found.untyped_storage()._cdata == _unwrapped(source).untyped_storage()._cdata:
        return found.clone()
    return found


def add_device() -> None:
    """Have PyTorch know the device, where it can. Before the first backward pass of the process: it counts devices."""
    with contextlib.suppress(ImportError):
        from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

        _setup_privateuseone_for_python_backend(NAME)


def accelerator_device() -> torch.device:
    """The device. Skips the test where PyTorch cannot have one made in Python."""
    if torch._C._get_privateuse1_backend_name() != NAME:
        pytest.skip("this PyTorch cannot have a device made in Python")
    return torch.device(NAME, 0)


@contextlib.contextmanager
def counting(accelerator: Accelerator, module: Any, name: str) -> Iterator[list[dict[str, int]]]:
    """What each call of `module.name` reads, uploads and launches meanwhile."""
    original: Callable[..., Any] = getattr(module, name)
    calls: list[dict[str, int]] = []
    kinds = ("reads", "uploads", "launches")

    def counted(*args: Any, **kwargs: Any) -> Any:
        before = {kind: getattr(accelerator, kind) for kind in kinds}
        found = original(*args, **kwargs)
        calls.append({kind: getattr(accelerator, kind) - before[kind] for kind in kinds})
        return found

    setattr(module, name, counted)
    try:
        yield calls
    finally:
        setattr(module, name, original)
