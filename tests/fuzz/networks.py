"""Networks in files: checkpoints, exported folders, ONNX and .pt2."""

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import onnx
import torch

from spp_cls.export.exported import open_exported
from spp_cls.models.checkpoint import count_epochs, describe_training_sizes, load_checkpoint, load_net
from tests.fuzz.damage import Evil, Files, Random, damage_bytes, damage_json, damage_plain, to_json

IMAGES = torch.rand(1, 3, 70, 64, generator=torch.Generator().manual_seed(0)) * 4 - 2


def save(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def rewrite(archive: bytes, changes: dict[str, bytes | None]) -> bytes:
    """Rewrite a zip archive with other contents for some parts; None leaves them out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            content = changes.get(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return buffer.getvalue()


def is_an_answer(logits: Any) -> bool:
    """Weights may be others and still be weights, in files without check sums."""
    return isinstance(logits, torch.Tensor) and logits.ndim == 2 and bool(logits.isfinite().all())


def run(net: Any) -> torch.Tensor:
    with torch.inference_mode():
        return net(IMAGES).clone()


# A checkpoint.


def damage_checkpoint(files: Files, random: Random, code: str) -> Files:
    (name,) = files
    if random.random() < 0.4:
        return {name: damage_bytes(files[name], random)}
    content = torch.load(io.BytesIO(files[name]), weights_only=True)
    tensors = [
        torch.zeros(()), torch.zeros(1).expand(10**12), torch.zeros(3, dtype=torch.int64), torch.eye(3).to_sparse(),
        torch.full((4,), torch.nan), torch.zeros(2, dtype=torch.complex64), torch.zeros(2, device="meta"), {1: 2},
    ]  # fmt: skip
    content = damage_plain(content, random, code, [*tensors, *tensors])
    if random.random() < 0.2:
        content["planted"] = Evil(code)
    return {name: save(content)}


def open_checkpoint(folder: Path) -> tuple[Any, ...]:
    checkpoint = load_checkpoint(folder / "best.ckpt")
    net = load_net(folder / "best.ckpt")
    return run(net), count_epochs(checkpoint), describe_training_sizes(checkpoint)


def is_right_checkpoint(found: Any) -> bool:
    logits, epochs, sizes = found
    return is_an_answer(logits) and isinstance(epochs, int) and epochs > 0 and isinstance(sizes, str)


# An exported folder.


def damage_folder(files: Files, random: Random, code: str) -> Files:
    files = dict(files)
    if random.random() < 0.5:
        files["config.json"] = damage_json(files["config.json"], random, code)
    elif random.random() < 0.5:
        files["model.safetensors"] = damage_bytes(files["model.safetensors"], random)
    else:
        data = files["model.safetensors"]
        length = int.from_bytes(data[:8], "little")
        header = to_json(damage_plain(json.loads(data[8 : 8 + length]), random, code))
        files["model.safetensors"] = len(header).to_bytes(8, "little") + header + data[8 + length :]
    return files


def open_folder(folder: Path) -> torch.Tensor:
    return run(load_net(folder))


# ONNX.


def list_messages(message: Any) -> list[Any]:
    found = [message]
    for field, value in message.ListFields():
        if field.message_type:
            found += [each for part in (value if hasattr(value, "add") else [value]) for each in list_messages(part)]
    return found


def damage_message(message: Any, random: Random, code: str) -> None:
    """Change a field of a protocol buffer: take away, repeat, or give another value."""
    listed = message.ListFields()
    if not listed:
        return
    field, value = listed[int(random.integers(len(listed)))]
    numbers = [0, 1, -1, 2**31 - 1, 7, -(2**31)]
    texts = ["", code, "../canary", "com.microsoft", "images", "logits", "Loop", "x"]
    choice = int(random.integers(4))
    if choice == 0:
        message.ClearField(field.name)
    elif hasattr(value, "append") or hasattr(value, "add"):
        if len(value) and choice == 1:
            del value[int(random.integers(len(value)))]
        elif field.message_type:
            value.add().CopyFrom(value[0])
        elif isinstance(value[0], str):
            value[0] = texts[int(random.integers(len(texts)))]
        elif isinstance(value[0], int):
            value[0] = numbers[int(random.integers(len(numbers)))]
    elif isinstance(value, str):
        setattr(message, field.name, texts[int(random.integers(len(texts)))])
    elif isinstance(value, bytes):
        setattr(message, field.name, damage_bytes(value, random))
    elif isinstance(value, int) and not field.enum_type:
        setattr(message, field.name, numbers[int(random.integers(len(numbers)))])


def damage_onnx(files: Files, random: Random, code: str) -> Files:
    (name,) = files
    if random.random() < 0.4:
        return {name: damage_bytes(files[name], random)}
    model = onnx.load_from_string(files[name])
    for _ in range(int(random.integers(1, 3))):
        messages = list_messages(model)
        damage_message(messages[int(random.integers(len(messages)))], random, code)
    for entry in model.metadata_props:
        if random.random() < 0.15:
            entry.value = damage_json(entry.value.encode(), random, code).decode(errors="replace")
    if random.random() < 0.15:
        weights = model.graph.initializer[0]
        weights.data_location = onnx.TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=["../secret", "/etc/passwd", "here"][int(random.integers(3))])
    return {name: model.SerializeToString()}


def open_onnx(folder: Path) -> torch.Tensor:
    return open_exported(folder / "model.onnx").run(IMAGES)


# .pt2.


def damage_pt2(files: Files, random: Random, code: str) -> Files:
    (name,) = files
    data = files[name]
    if random.random() < 0.3:
        return {name: damage_bytes(data, random)}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = archive.namelist()
        plain = [part for part in parts if part.endswith(".json") or "/extra/" in part]
        # The program is the largest by far.
        part = [*plain, *[part for part in plain if "model.json" in part] * 4][int(random.integers(len(plain) + 4))]
        changes: dict[str, bytes | None] = {part: damage_json(archive.read(part), random, code)}
        program = json.loads(archive.read("archive/models/model.json"))
    match int(random.integers(8)):
        case 0:
            changes = {parts[int(random.integers(len(parts)))]: None}
        case 1:
            changes["archive/data/sample_inputs/model.pt"] = pickle.dumps(Evil(code))
        case 2:
            for value in program["graph_module"]["graph"]["sym_int_values"].values():
                value["as_expr"]["expr_str"] = code
            program["guards_code"] = [code]
            changes["archive/models/model.json"] = to_json(program)
        case 3:
            for node in program["graph_module"]["graph"]["nodes"]:
                if random.random() < 0.1:
                    node["target"] = [
                        "builtins.eval",
                        "torch.os.system",
                        "_operator.pow",
                        "torch.ops.aten.from_file.default",
                    ][int(random.integers(4))]
                    node["inputs"] = [{"name": "self", "arg": {"as_string": code}, "kind": 1}]
            changes["archive/models/model.json"] = to_json(program)
    return {name: rewrite(data, changes)}


def open_pt2(folder: Path) -> torch.Tensor:
    return open_exported(folder / "model.pt2").run(IMAGES)
