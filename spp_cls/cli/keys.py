"""The keys of train.yaml and eval.yaml: their types and ranges. The values and what they mean are in conf/."""

from dataclasses import dataclass, field
from typing import Any

import torch
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from spp_cls.cli.schema import key

# Nodes that name a class or function of the user's choice as `_target_`; its parameters are their keys.
OPEN_GROUPS = ("optimizer", "schedule", "loss", "augmentation", "logger")

Node = dict[str, Any]

# Ranges of keys that several commands have. More devices, nodes or workers are errors of typing; -1: all devices.
DEVICES: Node = {"least": -1, "most": 4096}
NODES: Node = {"least": 1, "most": 1_000_000}
WORKERS: Node = {"least": 0, "most": 1024}
# Up to a month: the system's clocks refuse centuries.
SECONDS: Node = {"least": 0, "most": 2_592_000}
# Apple's GPU is none of them: in some versions of torch its pooling has other bins, without a word (pytorch#190064).
ACCELERATORS: Node = {"words": ("auto", "gpu", "cuda", "cpu")}
# Those whose weights are float32, as the images are; the last three are older names of the first ones.
PRECISIONS: Node = {"words": ("32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16")}

# For names that become part of a path: timm/resnet50 is a network, not a folder.
OmegaConf.register_new_resolver("file_name", lambda text: str(text).replace("/", "-"), replace=True)


def choose_accelerator(name: str) -> str:
    """Return what Lightning calls the accelerator of a name of ACCELERATORS, whose auto and gpu may be Apple's GPU."""
    return {"auto": "cpu", "gpu": "cuda"}.get(name, name) if torch.backends.mps.is_available() else name


@dataclass
class ModelKeys:
    """A network; models.config.NetConfig checks the ranges. None: what belongs to the network."""

    name: str = key()
    pooling: str = key()
    levels: list[int] = key()
    hidden: list[int] | None = key()
    width: float = key()
    input_size: int | None = key()
    drop_rate: float = key()
    mean: list[float] | None = key()
    std: list[float] | None = key()
    interpolation: str | None = key()
    init: str = key()
    pretrained: bool = key()


@dataclass
class SourceKeys:
    """A data set and how it is read."""

    kind: str = key()
    root: str = key()
    num_workers: int | str = key(words=("auto",), **WORKERS)
    timeout: float = key(**SECONDS)


@dataclass
class DataKeys(SourceKeys):
    """A data set that a network is trained on."""

    batch_size: int = key(least=1)
    cache: str = key(words=("none", "device"))


@dataclass
class DeviceKeys:
    """The processes and devices of a command; devices is a number, a list of device numbers, or auto."""

    accelerator: str = key(**ACCELERATORS)
    devices: Any = key(**DEVICES)
    num_nodes: int = key(**NODES)
    precision: str = key(**PRECISIONS)

    def __post_init__(self) -> None:
        self.accelerator = choose_accelerator(self.accelerator)


@dataclass
class TrainerKeys(DeviceKeys):
    """Lightning's Trainer."""

    max_epochs: int = key(least=1)
    # Loggers and locks of a run cannot be sent to processes that Lightning forks or spawns.
    strategy: str = key(words=("auto", "ddp", "ddp_find_unused_parameters_true"))
    gradient_clip_val: float | None = key(above=0)
    accumulate_grad_batches: int = key(least=1)
    sync_batchnorm: bool = key()
    benchmark: bool = key()
    log_every_n_steps: int = key(least=1)
    limit_train_batches: int | float = key(above=0)
    limit_val_batches: int | float = key(above=0)


@dataclass
class CheckpointKeys:
    """When checkpoints are written."""

    every_minutes: float | None = key(above=0)
    every_steps: int | None = key(least=1)


@dataclass
class TrainKeys:
    """The keys of train.py."""

    name: str = key()
    run_folder: str = key()
    resume: bool = key()
    overwrite: bool = key()
    init_from: str | None = key()
    # A name or a list of names.
    freeze: Any = key()
    plugins: list[str] = key()
    debug: bool = key()
    seed: int = key(least=0, most=2**32 - 1)
    # A word, with a range or without, or a list of pixels.
    sizes: Any = key()
    shape: str = key(words=("crop", "natural", "natural_area"))
    compile: bool | str = key(words=("auto",))
    tf32: bool = key()
    ema_decay: float | None = key(above=0, below=1)
    model: ModelKeys = field(default_factory=ModelKeys)
    data: DataKeys = field(default_factory=DataKeys)
    augmentation: Node = field(default_factory=dict)
    optimizer: Node = field(default_factory=dict)
    schedule: Node = field(default_factory=dict)
    loss: Node = field(default_factory=dict)
    logger: Node = field(default_factory=dict)
    checkpoint: CheckpointKeys = field(default_factory=CheckpointKeys)
    trainer: TrainerKeys = field(default_factory=TrainerKeys)


@dataclass
class EvalKeys:
    """The keys of eval.py."""

    # A path or a list of paths.
    ckpt: Any = key()
    ensemble: bool = key()
    # A name or a list of names.
    protocol: Any = key()
    scales: list[int] | None = key(least=1, most=10_000)
    positions: list[str] | None = key()
    flips: bool | None = key()
    out: str | None = key()
    predictions: str | None = key()
    plugins: list[str] = key()
    debug: bool = key()
    max_pixels: int = key(least=1)
    data: SourceKeys = field(default_factory=SourceKeys)
    trainer: DeviceKeys = field(default_factory=DeviceKeys)


SCHEMAS: dict[str, Any] = {"train": TrainKeys, "eval": EvalKeys}


def register_schemas() -> None:
    """Give every key of train.yaml and eval.yaml its type; they name train_keys and eval_keys in their defaults."""
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{name}_keys", node=schema, provider="spp_cls")
