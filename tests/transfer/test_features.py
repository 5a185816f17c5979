"""Features: bit for bit those of the network on each image alone; files that are reused, refused and gone on with."""

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import spp_cls
from spp_cls.cli.errors import UserError
from spp_cls.data.loading.dataset import read_image
from spp_cls.data.sources import ImageSource
from spp_cls.data.sources.identity import Storage
from spp_cls.data.transforms.crops import CENTRE, crop_at, resize, warp
from spp_cls.transfer.datasets import open_transfer_data
from spp_cls.transfer.features import extraction
from spp_cls.transfer.features.extraction import create_store, extract_features, open_store
from spp_cls.transfer.features.layers import Feature, choose_features, compute_layers, list_layers
from spp_cls.transfer.features.store import FeatureStore
from tests.transfer.data import write_caltech

LAYERS = ("maps:conv2", "maps:conv4", "maps:conv5", "map", "level:6", "level:4", "pool", "hidden1", "hidden2", "logits")
VIEWS, SIDES, SIZE = ("crop", "full", "warp"), (64, 80), 64


def build_net(pooling: str = "spp", seed: int = 0) -> spp_cls.SPPNet:
    torch.manual_seed(seed)
    net = spp_cls.build_net(
        "zf5", pooling, num_classes=3, width=0.1, hidden=(24, 16), input_size=SIZE, init="kaiming", std=(57.6,) * 3
    )
    # As the command has it.
    return net.to(memory_format=torch.channels_last).eval()


@pytest.fixture(scope="module")
def net() -> spp_cls.SPPNet:
    return build_net()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    root = write_caltech(tmp_path_factory.mktemp("caltech"), images=4, classes=2)
    return open_transfer_data("caltech101", root, draws=1, train=2).source


def run_alone(net: spp_cls.SPPNet, pixels: np.ndarray, feature: Feature) -> Tensor:
    """One layer of one view of one image, layer after layer."""
    if feature.view == "warp":
        image = warp(pixels, feature.side)
    else:
        image = resize(pixels, feature.side)
        image = crop_at(image, CENTRE, SIZE) if feature.view == "crop" else image
    values = (torch.from_numpy(image.astype(np.float32)) - torch.tensor(net.config.mean)) / torch.tensor(net.config.std)
    maps = values.permute(2, 0, 1)[None]
    for name, layer in net.backbone.named_children():
        maps = layer(maps)
        if name.startswith("relu") and f"maps:{name.replace('relu', 'conv')}" == feature.layer:
            return maps.flatten(1)
    if feature.layer == "map":
        return maps.flatten(1)
    if feature.layer.startswith("level:"):
        return F.adaptive_max_pool2d(maps, int(feature.layer[-1])).flatten(1)
    values = net.pool(maps)
    for name in ("hidden1", "hidden2"):
        if feature.layer == "pool":
            break
        values = net.head.get_submodule(name)(values).relu()
        if feature.layer == name:
            break
    return net.head.classifier(values) if feature.layer == "logits" else values


def extract(net: spp_cls.SPPNet, source: ImageSource, features: list[Feature], folder: Path) -> FeatureStore:
    store = create_store(net, source, features, folder)
    extract_features(net, source, features, store, progress=False)
    return store


@torch.inference_mode()
def test_every_layer_view_and_side_is_the_network_on_each_image_alone(
    net: spp_cls.SPPNet, source: ImageSource, tmp_path: Path
) -> None:
    features, without = choose_features(net, LAYERS, VIEWS, SIDES)
    assert len(features) == len(LAYERS) * 3 * 2 - 4 * 2
    assert {each.layer for each in without} == {"maps:conv2", "maps:conv4", "maps:conv5", "map"}
    store = extract(net, source, features, tmp_path / "features")
    for feature in features:
        found = store.read(feature)
        assert found.dtype == np.float32
        assert len(found) == len(source) == 8
        for index in range(len(source)):
            expected = run_alone(net, read_image(source, index), feature)[0].numpy()
            assert np.array_equal(found[index], expected), (feature, index)
        # The images differ.
        assert np.unique(found, axis=0).shape[0] == 8


@torch.inference_mode()
def test_crops_are_the_activations_of_a_forward_pass(net: spp_cls.SPPNet, source: ImageSource, tmp_path: Path) -> None:
    seen: dict[str, Tensor] = {}
    places = {"maps:conv4": "backbone.relu4", "pool": "pool", "hidden1": "head.relu1", "logits": "head.classifier"}
    handles = [
        net.get_submodule(place).register_forward_hook(
            lambda _module, _inputs, output, layer=layer: seen.update({layer: output.clone()})
        )
        for layer, place in places.items()
    ]
    features = [Feature(layer, "crop", 70) for layer in places]
    store = extract(net, source, features, tmp_path / "features")
    try:
        for index in range(len(source)):
            image = crop_at(resize(read_image(source, index), 70), CENTRE, SIZE).astype(np.float32)
            values = (torch.from_numpy(image) - torch.tensor(net.config.mean)) / torch.tensor(net.config.std)
            net(values.permute(2, 0, 1)[None])
            for feature in features:
                assert np.array_equal(store.read(feature)[index], seen[feature.layer][0].flatten().numpy())
    finally:
        for handle in handles:
            handle.remove()


def test_in_batches_features_are_the_same_within_rounding(
    net: spp_cls.SPPNet, source: ImageSource, tmp_path: Path
) -> None:
    features, _ = choose_features(net, LAYERS, VIEWS, SIDES)
    alone = extract(net, source, features, tmp_path / "alone")
    batched = create_store(net, source, features, tmp_path / "batched")
    extract_features(net, source, features, batched, max_pixels=100_000, progress=False)
    for feature in features:
        expected = alone.read(feature)
        # Sums of float32 in another order.
        np.testing.assert_allclose(batched.read(feature), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], list[int]]:
    """Count the images that go through the network, and stop after some of them."""

    def count(most: int | None) -> list[int]:
        seen: list[int] = []

        def compute(net: spp_cls.SPPNet, images: Tensor, layers: list[str]) -> dict[str, Tensor]:
            if len(seen) == most:
                raise KeyboardInterrupt
            seen.append(len(images))
            return compute_layers(net, images, layers)

        monkeypatch.setattr(extraction, "compute_layers", compute)
        return seen

    return count


def test_a_stopped_run_goes_on_and_a_finished_one_is_reused(
    net: spp_cls.SPPNet, source: ImageSource, tmp_path: Path, counter: Callable[[int | None], list[int]]
) -> None:
    features = [Feature("pool", "full", 64), Feature("hidden1", "full", 64)]
    whole = extract(net, source, features, tmp_path / "whole")
    counter(3)
    with pytest.raises(KeyboardInterrupt):
        extract(net, source, features, tmp_path / "stopped")
    seen = counter(None)
    store = extract(net, source, features, tmp_path / "stopped")
    assert len(seen) == 8 - 3
    for feature in features:
        assert store.path(feature).read_bytes() == whole.path(feature).read_bytes()
    seen = counter(None)
    extract(net, source, features, tmp_path / "stopped")
    assert seen == []
    # Another layer beside them: only it is computed.
    seen = counter(None)
    extract(net, source, [*features, Feature("hidden2", "warp", 64)], tmp_path / "stopped")
    assert len(seen) == 8
    manifest = json.loads((tmp_path / "stopped/manifest.json").read_text())
    assert manifest["features"]["warp-64-hidden2.npy"] == {
        "layer": "hidden2", "view": "warp", "side": 64, "length": 16,
    }  # fmt: skip
    assert len(manifest["features"]) == 3


def test_features_of_other_networks_and_data_are_refused(
    net: spp_cls.SPPNet, source: ImageSource, tmp_path: Path
) -> None:
    features = [Feature("pool", "full", 64)]
    extract(net, source, features, tmp_path / "mine")
    with pytest.raises(UserError, match=r"mine has features of another network \(\w{12}, not \w{12}\); give another"):
        extract(build_net(seed=1), source, features, tmp_path / "mine")
    other = open_transfer_data("caltech101", write_caltech(tmp_path, images=5, classes=2), draws=1, train=2).source
    with pytest.raises(UserError, match=r"another storage \(None, not min side 256, quality 80\)"):
        open_store(net, source, tmp_path / "mine", storage=Storage(256, 80)).create({})
    with pytest.raises(UserError, match="has features of another data"):
        extract(net, other, features, tmp_path / "mine")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/letter.txt").write_text("mine")
    with pytest.raises(UserError, match=r"taken has files but no manifest.json"):
        extract(net, source, features, tmp_path / "taken")
    (tmp_path / "mine/full-64-pool.npy").write_bytes(b"x")
    with pytest.raises(UserError, match=r"full-64-pool.npy is damaged; remove"):
        extract(net, source, features, tmp_path / "mine")
    (tmp_path / "mine/manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest.json is damaged"):
        extract(net, source, features, tmp_path / "mine")


def test_a_full_disk(net: spp_cls.SPPNet, source: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = [Feature("pool", "full", 64)]
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(UserError, match=r"the features take 0.0 GB and .* has 0.0 GB left; take fewer layers"):
            extract(net, source, features, tmp_path / "early")
    store = create_store(net, source, features, tmp_path / "late")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*full-64-pool.npy: File too large; free some space"):
            extract_features(net, source, features, store, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    # What was written before stays, and the same call goes on.
    _, images = store.list_unfinished(features)
    assert 0 < len(images) < 8
    assert extract_features(net, source, features, store, progress=False) == len(images)


class TestChoice:
    def test_a_layer_that_the_network_does_not_have(self, net: spp_cls.SPPNet) -> None:
        with pytest.raises(UserError, match=r"no layer 'fc6'; choose among maps:conv1, .*level:6, .*pool, hidden1"):
            choose_features(net, ["fc6"], ["crop"], [64])
        for layer in ("maps:conv9", "level:0", "level:x", "hidden3"):
            with pytest.raises(UserError, match="has no layer"):
                choose_features(net, [layer], ["crop"], [64])

    def test_views_and_sides(self, net: spp_cls.SPPNet) -> None:
        with pytest.raises(UserError, match="no view 'whole'; choose among crop, full, warp"):
            choose_features(net, ["pool"], ["whole"], [64])
        with pytest.raises(UserError, match="side=48 is smaller than the crop of 64"):
            choose_features(net, ["pool"], ["crop"], [48])
        with pytest.raises(UserError, match="the smallest side it takes is"):
            choose_features(net, ["pool"], ["full"], [8])
        with pytest.raises(UserError, match="map of whole images has no fixed length; take pool or a level"):
            choose_features(net, ["map"], ["full"], [64])

    def test_without_spp(self, source: ImageSource, tmp_path: Path) -> None:
        net = build_net("none")
        with pytest.raises(UserError, match="view=full needs a net that takes any size; zf5 without SPP takes crop"):
            choose_features(net, ["pool"], ["full"], [64])
        with pytest.raises(UserError, match="without SPP takes images of 64 x 64 pixels"):
            choose_features(net, ["pool"], ["warp"], [80])
        features, _ = choose_features(net, ["maps:conv4", "pool", "level:6", "hidden2"], ["crop", "warp"], [64])
        store = extract(net, source, features, tmp_path / "features")
        pool, level = (store.read(Feature(name, "warp", 64)) for name in ("pool", "level:6"))
        assert np.array_equal(pool, level)

    def test_layers_of_the_network(self, net: spp_cls.SPPNet) -> None:
        levels = ["level:6", "level:3", "level:2", "level:1"]
        maps = [f"maps:conv{number}" for number in range(1, 6)]
        assert list_layers(net) == [*maps, "map", *levels, "pool", "hidden1", "hidden2", "logits"]


class Wrapper(spp_cls.Backbone):
    """A backbone around another network, as one of timm's is."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict(
            {
                "stem": nn.Conv2d(3, 4, 3, 2),
                "stages": nn.Conv2d(4, 6, 3, 2),
                "act": nn.ReLU(inplace=True),
                "fc": nn.Linear(2, 2),
            }
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.model["act"](self.model["stages"](self.model["stem"](images)))


def test_layers_of_a_network_inside_a_backbone() -> None:
    backbone, pool = Wrapper(), spp_cls.SpatialPyramidPool((2,))
    net = spp_cls.SPPNet(backbone, pool, spp_cls.Head(6 * pool.bins, (), 2)).eval()
    assert list_layers(net)[:5] == ["maps:stem", "maps:stages", "maps:act", "maps:fc", "map"]
    images = torch.randint(256, (2, 3, 31, 33), dtype=torch.uint8)
    found = compute_layers(net, images, ["maps:stages", "maps:act", "pool", "logits"])
    # Before the ReLU, which works in place, and after it.
    assert found["maps:stages"].min() < 0
    assert torch.equal(found["maps:stages"].relu(), found["maps:act"])
    assert found["logits"].shape == (2, 2)
    with pytest.raises(UserError, match="computes its last map without maps:fc"):
        compute_layers(net, images, ["maps:fc"])
