"""The command of Tables 6 to 8: python -m spp_cls.transfer ckpt=PATH data=caltech101 data.root=... [key=value ...]."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.rank_zero import rank_zero_only

from spp_cls.cli.arguments import parse_keys, run_tool
from spp_cls.cli.command import convert_lightning_errors
from spp_cls.cli.errors import UserError
from spp_cls.cli.keys import ACCELERATORS, DEVICES, NODES, PRECISIONS, SECONDS, WORKERS, choose_accelerator
from spp_cls.cli.reading import is_file
from spp_cls.cli.schema import key
from spp_cls.cli.targets import import_plugins
from spp_cls.cli.terminal import format_table
from spp_cls.data.loading.workers import count_workers
from spp_cls.evaluation.csv_files import check_distinct, check_writable
from spp_cls.evaluation.images import MAX_PIXELS
from spp_cls.evaluation.rows import describe_hardware
from spp_cls.evaluation.tables import read_paper
from spp_cls.models.net import SPPNet
from spp_cls.transfer.datasets import TransferData, check_validation, open_transfer_data
from spp_cls.transfer.experiment import DrawResult, choose_sides, train_and_test
from spp_cls.transfer.features.extraction import create_store, extract_features, open_store
from spp_cls.transfer.features.layers import VIEWS, Feature, choose_features
from spp_cls.transfer.features.store import FeatureStore
from spp_cls.transfer.nets import NetFacts, build_named_net, open_net
from spp_cls.transfer.rows import (
    CLASSES_COLUMNS,
    PREDICTIONS_COLUMNS,
    TransferRow,
    append_rows,
    check_rows,
    make_row,
    write_classes,
    write_predictions,
)
from spp_cls.transfer.svm import Solver, check_memory, check_scikit_learn
from spp_cls.transfer.tables import RESULT_HEADER, describe_row

USAGE = "python -m spp_cls.transfer ckpt=PATH data=caltech101 data.root=FOLDER [key=value ...]"
EXAMPLE = (
    "python -m spp_cls.transfer ckpt=runs/mine/best.ckpt data=caltech101 data.root=/data/caltech "
    "'layer=[level:6,pool,hidden1,hidden2]' 'view=[crop,full,warp]' side=224 out=results/transfer.csv"
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keys of this command."""

    ckpt: str | None = key(None, help="a checkpoint written by train.py, or an exported folder")
    untrained: bool = key(False, help="take new weights instead of the checkpoint's, of `seed`: what training brought")
    name: str | None = key(
        None, name="model.name", help="instead of ckpt: a network of build_net, such as timm/resnet50"
    )
    pooling: str | None = key(None, name="model.pooling", help="its pooling; null: spp")
    pretrained: bool = key(False, name="model.pretrained", help="published weights, which only networks of timm have")
    plugins: tuple[str, ...] = key((), help="modules to import first, which register backbones of your own")
    data: str = key(help="caltech101, voc2007, imagefolder, or any other data of train.py")
    root: str = key(name="data.root", help="folder of the data set, as it is shipped")
    num_workers: Literal["auto"] | int = key(
        "auto", name="data.num_workers", help="processes that read images, for each process", **WORKERS
    )
    timeout: float = key(
        600, name="data.timeout", help="seconds that a batch may take to be read; 0: any time", **SECONDS
    )
    layer: tuple[str, ...] = key(
        ("level:6", "pool", "hidden1", "hidden2"),
        help="maps:conv4 (flattened), level:6 (one level of bins), pool (all levels), hidden1 and on, logits",
    )
    view: tuple[str, ...] = key(
        ("full",),
        help=f"{', '.join(VIEWS)}: centre of the network's input size; whole image; squeezed to a square",
    )
    side: tuple[int, ...] = key(
        (224,), least=1, most=10_000, help="min side of the image in pixels; of a warped image, both"
    )
    draws: int | None = key(None, least=1, help="random splits of caltech101; null: 10")
    train: int | None = key(None, least=2, help="images of a class that train, in caltech101; null: 30")
    test: int | None = key(None, least=1, help="most images of a class that test, in caltech101; null: 50")
    seed: int = key(0, least=0, most=2**32 - 1, help="seed of the draws, and of new weights")
    C: tuple[float, ...] = key((1.0,), above=0, help="cost of the SVM; of several the best on a part of the training")
    choose_side: bool = key(False, help="add a row for each layer and view, of the best side on that part")
    svm: Solver = key("libsvm", help="libsvm, or liblinear for more than about 20,000 training images")
    features: str | None = key(None, help="folder for the features; null: features/DATA-NETWORK")
    out: str | None = key(None, help="CSV file to add a row for each layer, view and side to")
    classes: str | None = key(None, help="CSV file for the figures of each class")
    predictions: str | None = key(None, help="CSV file for the scores of the test images")
    results: str = key("results", help="folder of paper.csv, whose figures are printed beside ours")
    max_pixels: int | None = key(
        None, least=1, help=f"pixels of one pass; null: one image on CPUs, {MAX_PIXELS} on GPUs"
    )
    accelerator: str = key("auto", name="trainer.accelerator", **ACCELERATORS, help="what computes")
    devices: Any = key(
        1, name="trainer.devices", help="processes, one a device: a number, a list of devices, auto", **DEVICES
    )
    num_nodes: int = key(1, name="trainer.num_nodes", help="machines", **NODES)
    precision: str = key("32-true", name="trainer.precision", help="of convolutions and fc layers", **PRECISIONS)


def main(arguments: Sequence[str]) -> None:
    """Compute the features, train and test on them; print a table and, as the last line, the rows as JSON."""
    options = parse_keys(Options, arguments, USAGE, EXAMPLE)
    check_distinct(out=options.out, classes=options.classes, predictions=options.predictions)
    for name in ("layer", "view", "side", "C"):
        if not getattr(options, name):
            raise UserError(f"{name} is an empty list; give one value or more, or leave {name} out")
    check_scikit_learn()
    # Before the work, which a damaged file would lose.
    paper = read_paper(options.results) if is_file(Path(options.results, "paper.csv")) else []
    import_plugins(options.plugins)
    net, facts = find_net(options)
    features, without_length = choose_features(net, options.layer, options.view, options.side)
    data = open_transfer_data(options.data, options.root, options.draws, options.train, options.test, options.seed)
    check_memory(max(len(split.train) for split in data.splits), options.svm)
    if options.choose_side or len(options.C) > 1:
        check_validation(data)
    with convert_lightning_errors("trainer"):
        fabric = Fabric(
            accelerator=choose_accelerator(options.accelerator), devices=options.devices, num_nodes=options.num_nodes,
            precision=options.precision,  # type: ignore[arg-type]
        )  # fmt: skip
    # What is computed, which may not be what was asked for: on CPUs 16-mixed is bf16-mixed.
    precision = fabric.strategy.precision.precision
    stored = f"-stored-at-{data.storage.min_side}-quality-{data.storage.quality}" if data.storage else ""
    folder = options.features or f"features/{data.name}{stored}-{facts.network_sha256[:12]}"
    # Known from the environment alone; processes that are yet to be started have none of their own.
    if getattr(rank_zero_only, "rank", 0) == 0:
        # Better to find what cannot be written before the work, and before there are other processes.
        check_files(options)
        create_store(net, data.source, features, folder, precision, data.storage)
    fabric.launch()
    fabric.to_device(net.to(memory_format=torch.channels_last))
    store = open_store(net, data.source, folder, precision, data.storage)
    if fabric.is_global_zero:
        for feature in without_length:
            print(f"left out: {feature}, as maps of whole images have no fixed length; level:6 and pool have")
    rows, results = run(net, facts, data, features, store, options, fabric)
    if fabric.is_global_zero:
        if options.out:
            append_rows(rows, options.out)
        if options.classes:
            write_classes(data, results, options.classes)
        if options.predictions:
            write_predictions(data, results, options.predictions)
        print(format_table(RESULT_HEADER, [describe_row(asdict(row), paper) for row in rows]))
        print(json.dumps({"rows": [asdict(row) for row in rows]}))


def find_net(options: Options) -> tuple[SPPNet, NetFacts]:
    """Open or build the network that the keys name.

    Raises:
        UserError: if they name none or two, contradict each other, or it cannot be had.
    """
    if options.name and options.untrained:
        raise UserError("untrained=true is for ckpt=PATH; without model.pretrained=true model.name=NAME is untrained")
    if options.ckpt and options.pretrained:
        raise UserError("model.pretrained=true is for model.name=NAME; ckpt=PATH has weights of its own")
    if options.ckpt and options.pooling:
        raise UserError("model.pooling is for model.name=NAME; ckpt=PATH has a pooling of its own: leave it out")
    if options.ckpt and options.name is None:
        return open_net(options.ckpt, options.untrained, options.seed)
    if options.name and options.ckpt is None:
        return build_named_net(options.name, options.pooling or "spp", options.pretrained, options.seed)
    raise UserError("give a network: ckpt=PATH, or model.name=NAME, such as timm/resnet50 with model.pretrained=true")


def check_files(options: Options) -> None:
    """Raise UserError if one of the files that the keys name cannot be written."""
    if options.out:
        check_rows(options.out)
    if options.classes:
        check_writable(options.classes, "classes", CLASSES_COLUMNS)
    if options.predictions:
        check_writable(options.predictions, "predictions", PREDICTIONS_COLUMNS)


def run(
    net: SPPNet,
    facts: NetFacts,
    data: TransferData,
    features: Sequence[Feature],
    store: FeatureStore,
    options: Options,
    fabric: Fabric,
) -> tuple[list[TransferRow], list[DrawResult]]:
    """Compute the features that are missing, train and test; return the rows, and the results of each draw."""
    start = time.perf_counter()
    workers = count_workers(options.num_workers, fabric.world_size // options.num_nodes)
    extract_features(net, data.source, features, store, fabric, options.max_pixels, workers, options.timeout)
    results = train_and_test(
        data, store, features, options.C, options.svm, options.choose_side, bool(options.predictions), fabric
    )
    seconds = round(time.perf_counter() - start, 3)

    def make_rows(chosen: Sequence[DrawResult], is_side_chosen: bool) -> list[TransferRow]:
        groups: dict[tuple[object, ...], list[DrawResult]] = {}
        for each in chosen:
            groups.setdefault(each.feature[:2] if is_side_chosen else each.feature, []).append(each)
        return [
            make_row(
                data,
                group,
                is_side_chosen,
                facts,
                length=store.read(group[0].feature).shape[1],
                svm=options.svm,
                costs=" ".join(f"{cost:g}" for cost in options.C),
                seed=options.seed,
                precision=fabric.strategy.precision.precision,
                seconds=seconds,
                hardware=describe_hardware(fabric.device, fabric.world_size),
            )
            for group in groups.values()
        ]

    rows = make_rows(results, False)
    if options.choose_side:
        rows += make_rows(choose_sides(results), True)
    return rows, results


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
