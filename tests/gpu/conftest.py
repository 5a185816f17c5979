"""The device that these tests run on, and what they compare with: float64 on the CPU.

pytest -m gpu -n 0 runs them on the GPU; without one they are skipped. With SPP_CLS_DEVICE=cpu their lines run on the
CPU, on smaller networks and maps; what only CUDA has is skipped, and says so.
"""

import os
from collections.abc import Iterator

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from spp_cls.data import ImageNetDataModule

# cuBLAS reads it when it starts, and is deterministic only with it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# Processes that fork after they asked for a GPU could not use it otherwise.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device under test: the GPU, or what SPP_CLS_DEVICE names."""
    chosen = torch.device(os.environ.get("SPP_CLS_DEVICE", "cuda"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no NVIDIA GPU; SPP_CLS_DEVICE=cpu runs these tests on the CPU")
    return torch.device(chosen.type, 0) if chosen.type == "cuda" else chosen


@pytest.fixture(scope="session")
def accelerator(device: torch.device) -> str:
    """What Lightning calls the device."""
    return "gpu" if device.type == "cuda" else "cpu"


@pytest.fixture(scope="session")
def is_gpu(device: torch.device) -> bool:
    """Whether sizes are those of real networks, or smaller ones."""
    return device.type == "cuda"


@pytest.fixture(scope="session")
def backend(device: torch.device) -> str:
    """The compiler: on a CPU, for which C++ takes a minute to compile, only what captures and guards graphs."""
    return "inductor" if device.type == "cuda" else "aot_eager"


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """Multiply float32 numbers with all their bits; put the settings of the process back after the test."""
    precision, conv = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = conv
    torch.use_deterministic_algorithms(False)
    torch.compiler.set_stance("default")
    torch.compiler.reset()


def assert_near(found: Tensor, exact: Tensor, tolerance: float) -> None:
    """Compare with exact float64 values on the CPU: the largest difference, in parts of the largest value."""
    difference = (found.detach().double().cpu() - exact).abs().max()
    assert difference <= tolerance * exact.abs().max(), f"{difference / exact.abs().max():.1e} > {tolerance:.1e}"


def measure_distance(found: Tensor, exact: Tensor) -> float:
    """Return the norm of the difference, in parts of the norm of the exact values."""
    return float((found.detach().double().cpu() - exact).norm() / exact.norm())


def place_on(data: ImageNetDataModule, device: torch.device) -> ImageNetDataModule:
    """Let a data module make its batches for a device, as one process of a Trainer there."""
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    data.trainer = pl.Trainer(accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False)
    return data
