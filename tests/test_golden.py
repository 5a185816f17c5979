"""Values that must not change: images exactly, training and testing within rounding.

golden.json was written by version 0.1 on one machine with one thread. There version 0.2 gave the same bits.
"""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from spp_cls import build_net
from spp_cls.data import ImageNetDataModule
from spp_cls.evaluation import evaluate
from spp_cls.training import LitClassifier

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("golden.json").read_text())
CLASSES, EPOCHS = 4, 5


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of blurred noise as PNG files, which every decoder reads alike."""
    root = tmp_path_factory.mktemp("golden")
    for number, (split, count) in enumerate((("train", 4), ("val", 1))):
        for label in range(CLASSES):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                random = np.random.default_rng([number, label, i])
                coarse = random.integers(0, 256, (5 + label, 7 + i, 3), np.uint8)
                size = (260 + 40 * i + 17 * label, 300 - 25 * label + 10 * i)
                Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return root


def load(root: Path) -> ImageNetDataModule:
    return ImageNetDataModule(
        "imagefolder", str(root), batch_size=4, num_workers=0, crop=112, sizes="alternate", seed=0
    )


def test_the_images_of_every_step_are_exactly_those_of_before(images: Path) -> None:
    digests = []
    for epoch in range(EPOCHS):
        loader = load(images).train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in loader:
            pixels = batch.images.permute(0, 2, 3, 1)
            digest = hashlib.sha256()
            for values in (pixels, batch.labels, batch.flips, batch.colour_shifts):
                digest.update(np.ascontiguousarray(values.numpy()).tobytes())
            digests.append(digest.hexdigest())
    assert digests == GOLDEN["images"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zf5", "convnet5", "overfeat5", "overfeat7"])
def test_twenty_steps_and_every_protocol_give_the_values_of_before(name: str, images: Path) -> None:
    expected = GOLDEN[name]
    pl.seed_everything(0, verbose=False)
    net = build_net(name, num_classes=CLASSES, input_size=112).eval()
    values = np.random.default_rng(9).uniform(-120, 120, (2, 3, 112, 130)).astype(np.float32)
    with torch.inference_mode():
        untrained = net(torch.from_numpy(values))
    # At a rate that steps amplify rounding errors least.
    optimizer = partial(torch.optim.SGD, lr=1e-5, momentum=0.9, weight_decay=5e-4, fused=True)
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        use_distributed_sampler=False, num_sanity_val_steps=0, enable_model_summary=False,
    )  # fmt: skip
    module = LitClassifier(net, optimizer)
    trainer.fit(module, load(images))
    assert trainer.global_step == 20
    net.eval()
    with torch.inference_mode():
        logits = net(torch.from_numpy(values))
    # Two threads in place of one change logits by 1.4e-6 of the largest; other processors may do a hundred times that.
    tolerance = 1e-4 * logits.abs().max().item()
    assert torch.allclose(logits, torch.tensor(expected["logits"]), rtol=0, atol=tolerance)
    assert (logits - untrained).abs().max() > 100 * tolerance
    assert module.validation_errors == expected["validation_errors"]
    source = load(images).val_source
    for protocol, found in evaluate(net, source, list(expected["protocols"]), progress=False).items():
        scores = torch.zeros(CLASSES, CLASSES).scatter(1, found.classes, found.scores)
        assert torch.allclose(scores, torch.tensor(expected["protocols"][protocol]), rtol=0, atol=1e-4), protocol
