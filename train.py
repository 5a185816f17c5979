"""Train a network: python train.py [key=value ...]; conf/train.yaml lists the keys."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig

from spp_cls.cli import command
from spp_cls.cli.errors import UserError
from spp_cls.cli.keys import TrainKeys
from spp_cls.cli.targets import import_plugins
from spp_cls.data import ImageNetDataModule
from spp_cls.data.transforms.augmentation import create_augmentation
from spp_cls.evaluation.pictures import ViewPicture
from spp_cls.models.config import NetConfig, create_config
from spp_cls.models.net import check_sizes, create_net, warn_of_levels
from spp_cls.training import AtomicCheckpoints, Checkpointing, Compilation, LitClassifier, RunFolder, create_callbacks
from spp_cls.training.fine_tuning import freeze, init_from
from spp_cls.training.loggers import create_loggers
from spp_cls.training.losses import Loss, check_loss, create_loss
from spp_cls.training.norms import SyncBatchNorms
from spp_cls.training.optimization import OptimizerFactory, check_optimizer, create_factory
from spp_cls.training.run.folder import check_names, read_step
from spp_cls.training.run.summary import collect_result, describe_run, summarise_run
from spp_cls.training.schedules import Schedule, create_schedule

CONFIG_DIR = Path(__file__).parent.resolve() / "conf"


def build(keys: TrainKeys) -> tuple[NetConfig, ImageNetDataModule, OptimizerFactory, Schedule, Loss]:
    """Build what the keys choose, before any data is read; raise UserError for what their types do not show."""
    import_plugins(keys.plugins)
    model = asdict(keys.model)
    del model["pretrained"]
    config = create_config(**model)
    augmentation = create_augmentation(keys.augmentation)
    data = ImageNetDataModule(
        **asdict(keys.data), crop=config.input_size, sizes=keys.sizes, augmentation=augmentation, mean=config.mean,
        std=config.std, interpolation=config.interpolation, seed=keys.seed, shape=keys.shape,
    )  # fmt: skip
    check_sizes(config, data.possible_shapes.all)
    create_loggers(keys.logger)
    check_names(keys.name, keys.run_folder)
    if keys.init_from == "":
        raise UserError("init_from is empty; give a checkpoint, or null")
    schedule = create_schedule(keys.schedule, keys.trainer.max_epochs)
    return config, data, create_factory(keys.optimizer), schedule, create_loss(keys.loss)


def train(keys: TrainKeys, cfg: DictConfig) -> dict[str, Any]:
    """Build data, net, callbacks and trainer, and fit; return the lowest validation error."""
    config, data, optimizer, schedule, loss = build(keys)
    pl.seed_everything(keys.seed, verbose=False)
    config = replace(config, num_classes=len(data.class_names), class_names=data.class_names)
    with RunFolder(Path(keys.run_folder)) as folder:
        last = folder.find_checkpoint(config, cfg, len(data.train_source))
        net = create_net(config, keys.model.pretrained and not last)
        started_from = init_from(net, keys.init_from) if keys.init_from and not last else None
        frozen = freeze(net, keys.freeze)
        compilation = Compilation(data.shapes.all, keys.compile, keys.tf32)
        checkpointing = Checkpointing(folder, **asdict(keys.checkpoint))
        options = asdict(keys.trainer)
        plugins: list[Any] = [AtomicCheckpoints(), *([SyncBatchNorms()] if options.pop("sync_batchnorm") else [])]
        with command.convert_lightning_errors("trainer"):
            trainer = pl.Trainer(
                **options, logger=create_loggers(keys.logger, read_step(last)), num_sanity_val_steps=0,
                callbacks=[ViewPicture(), *create_callbacks(schedule, compilation, keys.ema_decay, checkpointing)],
                # The samplers divide the images among the processes themselves, without padding.
                use_distributed_sampler=False, enable_model_summary=False, plugins=plugins,
            )  # fmt: skip
        check_optimizer(net, optimizer, trainer)
        check_loss(loss, config.num_classes, trainer.strategy.root_device, data.augmentation.mixes_pairs)
        data.check_trainer(trainer)
        folder.prepare(cfg)
        if trainer.is_global_zero:
            warning = warn_of_levels(config, data.shapes.all)
            print("\n".join(filter(None, (describe_run(folder, net, data), started_from, frozen, warning))))
        module = LitClassifier(net, optimizer, keys.seed, loss, keys.optimizer.get("backbone_lr_scale", 1.0))
        with checkpointing.handle_signals():
            trainer.fit(module, data, ckpt_path=last, weights_only=True)
        if trainer.is_global_zero:
            print(summarise_run(folder, cfg, module.validation_errors))
        return collect_result(folder, module.validation_errors)


if __name__ == "__main__":
    command.run(train, CONFIG_DIR, "train", check=build)
