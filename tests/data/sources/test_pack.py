"""Packed data sets and lists of files that are kept."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from spp_cls import UserError
from spp_cls.data.loading.dataset import read_image
from spp_cls.data.pack import main, verify
from spp_cls.data.sources import listing, open_source, packing
from spp_cls.data.sources.files import ImageFiles
from spp_cls.data.sources.packed import COLUMNS, PackedImages
from spp_cls.data.sources.packing import PackSettings, pack
from spp_cls.data.sources.parquet import ParquetImages
from tests.conftest import write_image
from tests.data.test_fuzz import photograph


def sources(root: Path) -> dict[str, ImageFiles]:
    return {split: open_source("imagefolder", root, split) for split in ("train", "val")}  # type: ignore[misc,arg-type]


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several files and batches out of 24 images."""
    monkeypatch.setattr(packing, "ROWS_PER_BATCH", 4)
    monkeypatch.setattr(packing, "IMAGES_PER_FILE", 10)


def in_manifest(*path: str | int, value: object = None) -> Callable[[dict, dict], object]:
    """Replace a value of the manifest; take it away without one."""

    def change(manifest: dict, columns: dict) -> None:
        holder = manifest
        for name in path[:-1]:
            holder = holder[name]
        if value is None:
            del holder[path[-1]]
        else:
            holder[path[-1]] = value
        columns.clear()

    return change


def in_column(name: str, change: Callable[[list], list | None]) -> Callable[[dict, dict], object]:
    """Replace a column of a packed file; take it away with None."""

    def change_columns(manifest: dict, columns: dict) -> None:
        found = change(columns.pop(name))
        if found is not None:
            columns[name] = found
            # In their order.
            columns |= {each: columns.pop(each) for each in COLUMNS if each in columns}

    return change_columns


FILE = ("splits", "val", "files", 0)

TAMPERED: dict[str, Callable[[dict, dict], object]] = {
    "no splits": in_manifest("splits"),
    "splits a list": in_manifest("splits", value=[]),
    "no format": in_manifest("format"),
    "another format": in_manifest("format", value=2),
    "no classes": in_manifest("classes", value=[]),
    "classes numbers": in_manifest("classes", value=[1, 2, 3]),
    "fewer classes": in_manifest("classes", value=["blue", "green"]),
    "rows a word": in_manifest("rows_per_batch", value="four"),
    "no rows": in_manifest("rows_per_batch", value=0),
    "other rows": in_manifest("rows_per_batch", value=5),
    "files a number": in_manifest("splits", "val", "files", value=3),
    "a file a word": in_manifest(*FILE, value="val-00000.arrow"),
    "a file elsewhere": in_manifest(*FILE, "name", value="../out/val-00000.arrow"),
    "a file at the root": in_manifest(*FILE, "name", value="/etc/passwd"),
    "more images in a file": in_manifest(*FILE, "images", value=10),
    "more images": in_manifest("splits", "val", "images", value=10),
    "images below zero": in_manifest(*FILE, "images", value=-9),
    "no bytes": in_manifest(*FILE, "bytes"),
    "bytes a word": in_manifest(*FILE, "bytes", value="many"),
    "no images": in_column("image", lambda column: None),
    "no labels": in_column("label", lambda column: None),
    "null images": in_column("image", lambda column: [None] * 9),
    "a null image": in_column("image", lambda column: [None, *column[1:]]),
    "images text": in_column("image", lambda column: ["x"] * 9),
    "labels words": in_column("label", lambda column: ["blue"] * 9),
    "labels below zero": in_column("label", lambda column: [-1] * 9),
    "labels out of range": in_column("label", lambda column: [0, 3, *column[2:]]),
    "labels broken": in_column("label", lambda column: [0.5] * 9),
    "sides of zero": in_column("width", lambda column: pa.array([0] * 9, pa.int32())),
    "another column": in_column("name", lambda column: pa.array(range(9))),
    "fewer rows": lambda manifest, columns: columns.update({name: cells[:4] for name, cells in columns.items()}),
}


@pytest.mark.usefixtures("small_files")
class TestPack:
    def test_bytes_as_they_are(self, image_folder: Path, tmp_path: Path) -> None:
        pack(sources(image_folder), tmp_path / "out", PackSettings(), 2, "stop")
        for split in ("train", "val"):
            files, packed = sources(image_folder)[split], open_source("packed", tmp_path / "out", split)  # type: ignore[arg-type]
            assert len(packed) == len(files)
            assert packed.class_names == files.class_names
            assert packed.labels.tolist() == files.labels.tolist()
            for i in reversed(range(len(files))):
                assert bytes(packed.read(i)) == files.path(i).read_bytes()
                assert packed.name(i) == files.name(i)
                assert packed.size(i) == files.size(i)
        assert verify(tmp_path / "out") == {"train": 24, "val": 9}
        # Packed data can be packed again: what is read of it are arrays.
        again = {split: open_source("packed", tmp_path / "out", split) for split in ("train", "val")}
        pack(again, tmp_path / "again", PackSettings(), 2, "stop")
        copy = open_source("packed", tmp_path / "again", "train")
        assert all(bytes(copy.read(i)) == bytes(again["train"].read(i)) for i in range(24))

    def test_the_fast_decoder_takes_the_mapped_bytes(
        self, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pack(sources(image_folder), tmp_path / "out", PackSettings(), 1, "stop")
        packed = open_source("packed", tmp_path / "out", "train")
        expected = [np.asarray(Image.open(io.BytesIO(packed.read(i)))) for i in range(24)]
        monkeypatch.setattr(Image, "open", None)
        assert all(np.array_equal(read_image(packed, i), expected[i]) for i in range(24))

    def test_other_tools_read_the_files(self, image_folder: Path, tmp_path: Path) -> None:
        pack(sources(image_folder), tmp_path / "out", PackSettings(), 1, "stop")
        paths = sorted((tmp_path / "out").glob("train-*.arrow"))
        assert len(paths) == 3
        tables = [pa.ipc.open_file(path).read_all() for path in paths]
        rows = pa.concat_tables(tables).to_pylist()
        assert [row["label"] for row in rows] == [0] * 8 + [1] * 8 + [2] * 8
        assert rows[9]["image"] == (image_folder / "train" / rows[9]["name"]).read_bytes()

    def test_encoded_again_at_a_min_side(self, image_folder: Path, tmp_path: Path) -> None:
        for number, path in enumerate(sorted(image_folder.glob("train/*/*"))):
            photograph(90 + 10 * number, 150, number).save(path, quality=95)
        photograph(300, 200, 99).convert("L").save(image_folder / "train/red/grey.png")
        pack(sources(image_folder), tmp_path / "out", PackSettings(min_side=64, quality=95), 2, "stop")
        files, packed = sources(image_folder)["train"], PackedImages(tmp_path / "out", "train")
        for i in range(len(files)):
            pixels = read_image(packed, i)
            assert Image.open(io.BytesIO(packed.read(i))).format == "JPEG"
            image = Image.open(files.path(i)).convert("RGB")
            short = min(image.size)
            expected = image.resize([round(64 * side / short) for side in image.size], Image.Resampling.BILINEAR)
            assert packed.size(i) == expected.size
            # A second JPEG, with half of the colours' resolution, of noise of 12 grey levels on colours 60 apart.
            assert abs(pixels.astype(int) - np.asarray(expected)).mean() < 6

    def test_a_damaged_image_stops_it_or_is_listed(self, image_folder: Path, tmp_path: Path) -> None:
        (image_folder / "train/green/3.jpg").write_bytes(b"no image")
        whole, out = sources(image_folder), tmp_path / "out"
        with pytest.raises(ValueError, match=r"green/3\.jpg: .*on_bad=skip"):
            pack(whole, out, PackSettings(), 2, "stop")
        with pytest.raises(ValueError, match=r"no manifest\.json.*again"):
            open_source("packed", out, "train")
        manifest = pack(whole, out, PackSettings(), 2, "skip")
        (bad,) = manifest["splits"]["train"]["bad"]
        assert bad["name"] == "green/3.jpg"
        assert "not in a known image format" in bad["reason"]
        packed = PackedImages(out, "train")
        assert [packed.name(i) for i in range(23)] == [whole["train"].name(i) for i in range(24) if i != 11]
        assert packed.labels.tolist() == [0] * 8 + [1] * 7 + [2] * 8

    def test_a_stopped_packing_goes_on(
        self, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole, out = sources(image_folder), tmp_path / "out"
        real = packing._read_row
        rows: list[int] = []
        most = 15

        def read_row(source: ImageFiles, settings: PackSettings, index: int) -> object:
            if len(rows) == most:
                raise KeyboardInterrupt
            rows.append(index)
            return real(source, settings, index)

        monkeypatch.setattr(packing, "_read_row", read_row)
        with pytest.raises(KeyboardInterrupt):
            pack(whole, out, PackSettings(), 1, "stop")
        assert not (out / "manifest.json").exists()
        first = (out / "train-00000.arrow").stat()
        with pytest.raises(ValueError, match="min_side; remove it"):
            pack(whole, out, PackSettings(min_side=64), 1, "stop")
        rows, most = [], 100
        pack(whole, out, PackSettings(), 1, "stop")
        assert (out / "train-00000.arrow").stat().st_mtime_ns == first.st_mtime_ns
        # The first file of ten was whole; all other images were packed now.
        assert rows == [*range(10, 24), *range(9)]
        assert verify(out) == {"train": 24, "val": 9}
        assert {path.suffix for path in out.iterdir()} == {".arrow", ".json"}
        assert [path.name for path in out.glob("*.json")] == ["manifest.json"]

    def test_verify_finds_damage(self, image_folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        pack(sources(image_folder), out, PackSettings(), 1, "stop")
        path = out / "train-00001.arrow"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"train-00001\.arrow differs"):
            verify(out)
        path.write_bytes(data[:-1])
        with pytest.raises(ValueError, match=r"train-00001\.arrow is missing or cut short"):
            open_source("packed", out, "train")

    @pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED)
    def test_tampered_packs_are_refused_in_one_line(
        self, change: Callable[[dict, dict], object], image_folder: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        manifest = pack(sources(image_folder), out, PackSettings(), 1, "stop")
        path = out / "val-00000.arrow"
        with pa.ipc.open_file(path) as file:
            columns = file.read_all().to_pydict()
        entry = manifest["splits"]["val"]["files"][0]
        change(manifest, columns)
        if columns:
            with pa.ipc.new_file(path, pa.table(columns).schema) as writer:
                writer.write_table(pa.table(columns), max_chunksize=4)
            # Else its length alone would tell.
            entry["bytes"] = path.stat().st_size
        (out / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError) as caught:
            open_source("packed", out, "val")
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError):
            verify(out)

    @pytest.mark.parametrize(
        "content", [b"", b"[", b"[]", b"{}", b"null", b"[" * 100_000, b'{"name": "../x"}', b"\xff", b"{}" * 9]
    )
    @pytest.mark.parametrize("name", ["train-00000.arrow.json", "unfinished.json", "train-00000.arrow"])
    def test_damaged_notes_of_an_unfinished_packing(
        self, name: str, content: bytes, image_folder: Path, tmp_path: Path
    ) -> None:
        whole, out = sources(image_folder), tmp_path / "out"
        (image_folder / "val/red/0.jpg").write_bytes(b"")
        with pytest.raises(UserError, match="on_bad=skip"):
            pack(whole, out, PackSettings(), 1, "stop")
        (out / name).write_bytes(content)
        if name == "unfinished.json":
            with pytest.raises(UserError, match=r"unfinished\.json is not of a packed data set|was packed with other"):
                pack(whole, out, PackSettings(), 1, "skip")
        else:
            # What is not whole is packed again.
            pack(whole, out, PackSettings(), 1, "skip")
            assert verify(out) == {"train": 24, "val": 8}

    def test_command_line(self, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (image_folder / "val/red/0.jpg").write_bytes(b"")
        arguments = [f"data.root={image_folder}", f"out={tmp_path / 'out'}", "min_side=32", "--on-bad", "skip"]
        main(arguments)
        assert "val: 8 images, 0 MB, 1 left out" in capsys.readouterr().out
        main(["verify", f"data.root={tmp_path / 'out'}"])
        assert "train: 24 images as packed, val: 8 images as packed" in capsys.readouterr().out
        for wrong, message in (
            (["data.root=x"], "out is not set"),
            (["out=x"], r"data\.root is not set; give it as data\.root=VALUE"),
            (["out=x", "data.root="], r"data\.root is empty; set it to the data set's folder"),
            (["verify", "data.root="], r"data\.root is empty; set it to the data set's folder"),
            ([f"data.root={image_folder}", "out="], "out is empty; name the folder to write"),
            ([*arguments, "extra"], "extra is not key=value"),
            ([*arguments, "on_bad=never"], "on_bad is stop or skip, not 'never'"),
            ([*arguments, "quality=101"], "whole number from 1 to 100"),
            ([*arguments, "colour=1"], "there is no key colour"),
            ([f"data.root={image_folder}", f"out={image_folder}"], "neither empty nor a packed data set"),
        ):
            with pytest.raises(ValueError, match=message):
                main(wrong)

    @pytest.mark.parametrize("arguments", [["--help"], ["verify", "--help"]])
    def test_help(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as leave:
            main(arguments)
        printed = capsys.readouterr().out
        assert not leave.value.code
        assert "data.root " in printed
        assert "Example: python -m spp_cls.data.pack data=imagenet" in printed
        assert ("\nmin_side " in printed) == (arguments[0] != "verify")


def write_parquet(root: Path, files: ImageFiles, name: str, paths: bool = True) -> None:
    """As the Hugging Face library writes images."""
    images = [{"bytes": files.read(i), "path": f"{i}.jpg" if paths else None} for i in range(len(files))]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    noted = {"info": {"features": {"label": {"names": list(files.class_names), "_type": "ClassLabel"}}}}
    table = pa.table({"image": pa.array(images, kind), "label": files.labels.tolist()})
    table = table.replace_schema_metadata({"huggingface": json.dumps(noted)})
    root.mkdir(exist_ok=True)
    pq.write_table(table, root / name, row_group_size=5)


@pytest.mark.usefixtures("small_files")
def test_parquet(image_folder: Path, tmp_path: Path) -> None:
    files = sources(image_folder)
    write_parquet(tmp_path / "hub", files["train"], "train-00000-of-00001.parquet")
    write_parquet(tmp_path / "hub", files["val"], "validation-00000-of-00001.parquet", paths=False)
    main(["data=parquet", f"data.root={tmp_path / 'hub'}", f"out={tmp_path / 'out'}"])
    train, val = (PackedImages(tmp_path / "out", split) for split in ("train", "val"))
    assert train.class_names == ("blue", "green", "red")
    assert train.labels.tolist() == files["train"].labels.tolist()
    assert [bytes(train.read(i)) for i in range(24)] == [files["train"].read(i) for i in range(24)]
    assert train.name(7) == "7.jpg"
    assert val.name(7) == "validation-00000-of-00001/7"
    with pytest.raises(ValueError, match="no Parquet files of train"):
        ParquetImages(image_folder, "train")


class TestListing:
    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image_folder: Path) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(listing, "LEAST_CACHED", 1)
        for folder in image_folder.glob("*/*"):
            os.utime(folder, (1e9, 1e9))

    def kept(self, tmp_path: Path) -> list[Path]:
        return sorted((tmp_path / "cache/spp_cls").glob("*"))

    def test_a_kept_list_is_used_until_a_folder_changes(
        self, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = open_source("imagefolder", image_folder, "train")
        assert len(self.kept(tmp_path)) == 1
        with monkeypatch.context() as no_listing:
            no_listing.setattr(listing, "list_images", None)
            again = open_source("imagefolder", image_folder, "train")
        assert again.names.tolist() == first.names.tolist()  # type: ignore[attr-defined]
        assert again.labels.tolist() == first.labels.tolist()
        (image_folder / "train/green/3.jpg").rename(image_folder / "train/green/new.jpg")
        changed = open_source("imagefolder", image_folder, "train")
        assert [changed.name(i) for i in range(8, 16)] == [f"green/{i}.jpg" for i in (0, 1, 2, 4, 5, 6, 7)] + [
            "green/new.jpg"
        ]

    def test_a_folder_that_has_just_changed_is_not_kept(self, image_folder: Path, tmp_path: Path) -> None:
        write_image(image_folder / "train/red/new.jpg", 9, 9, (0, 0, 0))
        assert len(open_source("imagefolder", image_folder, "train")) == 25
        assert self.kept(tmp_path) == []

    def test_a_class_that_is_added_is_seen(self, image_folder: Path) -> None:
        open_source("imagefolder", image_folder, "train")
        write_image(image_folder / "train/black/0.jpg", 9, 9, (0, 0, 0))
        os.utime(image_folder / "train/black", (1e9, 1e9))
        assert open_source("imagefolder", image_folder, "train").class_names == ("black", "blue", "green", "red")
