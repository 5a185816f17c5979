"""Train a network: python train.py [key=value ...]; conf/train.yaml lists the keys."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.callbacks import EMAWeightAveraging

from spp_cls import build_net, command
from spp_cls.acceleration import Acceleration
from spp_cls.atomic import AtomicCheckpoints
from spp_cls.data.datamodule import ImageNetDataModule
from spp_cls.fine_tuning import init_from
from spp_cls.module import LitClassifier
from spp_cls.progress import Progress
from spp_cls.run_folder import RunFolder, closing_lines, opening_lines, result
from spp_cls.saving import Saving

CONFIG_DIR = Path(__file__).parent.resolve() / "conf"


def train(cfg: DictConfig) -> dict[str, Any]:
    """Compose data, net, module and trainer from the configuration, and fit; return the lowest validation error."""
    options = command.plain(cfg)
    model = options["model"]
    data = ImageNetDataModule(
        **options["data"],
        crop=model["input_size"],
        sizes=options["sizes"],
        colour_deviation=options["colour_deviation"],
        mean=model["mean"],
        seed=options["seed"],
    )
    pl.seed_everything(cfg.seed, verbose=False)
    net = build_net(**model, num_classes=len(data.class_names), class_names=data.class_names)
    folder = RunFolder(Path(cfg.run_folder))
    last = folder.checkpoint_to_resume(net.recipe, cfg)
    started_from = init_from(net, cfg.init_from) if cfg.init_from and not last else None
    logger = folder.logger(last)
    saving = Saving(folder, **options["checkpoint"])
    callbacks = [
        Progress(),
        Acceleration(data.possible_sizes, options["compile"], options["tf32"]),
        *([EMAWeightAveraging(decay=cfg.ema_decay)] if cfg.ema_decay else []),
        saving,
    ]
    with command.settings_of("trainer"):
        trainer = pl.Trainer(
            **options["trainer"],
            logger=logger,
            plugins=[AtomicCheckpoints()],
            callbacks=callbacks,
            # The samplers share the images out themselves, without padding.
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            enable_model_summary=False,
        )
    data.check_batch(trainer.world_size * trainer.accumulate_grad_batches)
    for size in data.possible_sizes:
        net.check_size(size, size)
    folder.prepare(cfg)
    if trainer.is_global_zero:
        print(opening_lines(folder, net, data))
        if started_from:
            print(started_from)
    module = LitClassifier(net, **options["optimizer"], seed=cfg.seed)
    try:
        trainer.fit(module, data, ckpt_path=last, weights_only=True)
    finally:
        saving.leave()
    if trainer.is_global_zero:
        print(closing_lines(folder, cfg, module.validation_errors))
    return result(folder, module.validation_errors)


if __name__ == "__main__":
    command.run(train, CONFIG_DIR, "train")
