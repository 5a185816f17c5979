"""Programs of .pt2 files: equal to PyTorch's own reading of them, and none of a hostile file's code is run."""

import contextlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper

import spp_cls
from spp_cls.export import operators
from spp_cls.export.exported import open_exported
from spp_cls.export.operators import find_operator
from spp_cls.export.program import Program
from tests.conftest import Tool, error_of, make_inputs, write_image
from tests.export.test_export import rewritten

PROGRAM = "models/model.json"


def read_program(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as file:
        return json.loads(file.read(f"archive/{PROGRAM}"))


def change_program(source: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> None:
    program = read_program(source)
    change(program)
    rewritten(source, target, {PROGRAM: json.dumps(program).encode()})


def nodes_of(program: dict[str, Any]) -> list[dict[str, Any]]:
    return program["graph_module"]["graph"]["nodes"]


def test_a_program_is_pytorchs_own_bit_for_bit(exported: Path) -> None:
    path = exported / "export/model.pt2"
    program, expected = Program(path), torch.export.load(path).module()
    net = spp_cls.load_net(exported / "best.ckpt")
    for images in make_inputs(net, (1, 64, 64), (3, 90, 77), (2, 23, 120)):
        with torch.inference_mode():
            for _ in range(2):
                assert torch.equal(program(images), expected(images))


def test_every_operator_of_the_list_exists() -> None:
    for name in operators._ATEN:
        assert isinstance(find_operator(f"torch.ops.aten.{name}"), torch._ops.OpOverload)


@pytest.mark.parametrize(
    "name",
    [
        "torch.os.system", "torch.ops.aten.from_file.default", "torch.ops.aten.empty.memory_format",
        "_operator.attrgetter", "_operator.pow", "builtins.eval", "torch.ops.aten.__class__.default", "math.factorial",
        "torch.ops.aten.add", "",
    ],
)  # fmt: skip
def test_other_operators_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not among those of convolutional networks"):
        find_operator(name)


def test_sizes_are_bounded() -> None:
    with pytest.raises(ValueError, match="too large"):
        find_operator("_operator.mul")(2**40, 2**40)
    with pytest.raises(ValueError, match="something else"):
        find_operator("_operator.mul")("a", 2**40)


def call_mkdir(node: dict[str, Any], trace: Path) -> None:
    node["target"] = "torch.os.mkdir"
    node["inputs"] = [{"name": "path", "arg": {"as_string": str(trace)}, "kind": 1}]


# Text of a program that PyTorch evaluates as Python, or takes for a name to look up and call.
CODE: dict[str, Callable[[dict[str, Any], Path], object]] = {
    "a size": lambda program, trace: program["graph_module"]["graph"]["sym_int_values"]["floordiv"]["as_expr"].update(
        expr_str=f"__import__('os').mkdir({str(trace)!r}) or Integer(1)"
    ),
    "a guard": lambda program, trace: program.update(guards_code=[f"__import__('os').mkdir({str(trace)!r}) is None"]),
    "an operator": lambda program, trace: call_mkdir(
        next(node for node in nodes_of(program) if node["target"] == "_operator.floordiv"), trace
    ),
}


def test_pytorch_runs_the_code_of_a_program(exported: Path, tmp_path: Path) -> None:
    # Else the test below would show nothing. This version of PyTorch looks up an operator's name, but calls no other.
    trace = tmp_path / "trace"
    change_program(exported / "export/model.pt2", tmp_path / "evil.pt2", lambda found: CODE["a size"](found, trace))
    with contextlib.suppress(Exception):
        torch.export.load(tmp_path / "evil.pt2")
    assert trace.exists()


@pytest.mark.parametrize("kind", CODE)
def test_predict_runs_no_code_of_a_program(kind: str, exported: Path, tmp_path: Path, tool: Tool) -> None:
    trace = tmp_path / "trace"
    change_program(exported / "export/model.pt2", tmp_path / "evil.pt2", lambda program: CODE[kind](program, trace))
    write_image(tmp_path / "photo.jpg", 80, 90, (200, 10, 10))
    result = tool("spp_cls.predict", "evil.pt2", "photo.jpg", "format=json")
    assert not trace.exists()
    if kind == "an operator":
        assert "evil.pt2 is not an export of spp_cls (the operator 'torch.os.mkdir' is not" in error_of(result)
    else:
        # Sizes are computed by the program's operators; guards and expressions are never read.
        expected = tool("spp_cls.predict", str(exported / "export/model.pt2"), "photo.jpg", "format=json")
        assert (result.stdout, result.returncode) == (expected.stdout, 0)


def drop_part(name: str) -> Callable[[Path, Path], object]:
    def change(source: Path, target: Path) -> None:
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
            for each in old.namelist():
                if not each.endswith(name):
                    new.writestr(each, old.read(each))

    return change


def compress(source: Path, target: Path) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for each in old.namelist():
            new.writestr(each, old.read(each))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (compress, "a part is compressed"),
        (drop_part("model.json"), ""),
        (drop_part("weight_3"), ""),
        (drop_part("net_config"), ""),
        (lambda source, target: rewritten(source, target, {PROGRAM: b"[" * 100_000}), "nested too deep"),
        (lambda source, target: rewritten(source, target, {"extra/net_config": b"[" * 100_000}), "nested too deep"),
        (lambda source, target: rewritten(source, target, {"extra/net_config": b"[]"}), "not a group of fields"),
        (lambda source, target: rewritten(source, target, {"data/weights/weight_3": b"12"}), ""),
        (lambda source, target: target.write_bytes(source.read_bytes()[:100_000]), "not a zip file"),
        (lambda source, target: rewritten(source, target, {"data/aotinductor/model/a.so": b""}), "unknown part"),
    ],
)
def test_damaged_parts_are_refused(change: Any, reason: str, exported: Path, tmp_path: Path) -> None:
    change(exported / "export/model.pt2", tmp_path / "a.pt2")
    with pytest.raises(spp_cls.UserError, match=f"is not an export of spp_cls \\(.*{reason}") as caught:
        open_exported(tmp_path / "a.pt2")
    assert "\n" not in str(caught.value)


def test_a_program_of_other_classes_is_refused_when_it_runs(exported: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(exported / "export/model.pt2") as file:
        config = json.loads(file.read("archive/extra/net_config")) | {"num_classes": 5}
    parts = {"extra/net_config": json.dumps(config).encode(), "extra/class_names": b"null"}
    rewritten(exported / "export/model.pt2", tmp_path / "a.pt2", parts)
    net = open_exported(tmp_path / "a.pt2")
    with pytest.raises(spp_cls.UserError, match="its output is not a number for each class"):
        net.run(torch.zeros(1, 3, 64, 64))


def point_outside(model: onnx.ModelProto, location: str) -> None:
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "8")):
        weights.external_data.add(key=key, value=value)


def add_branch(model: onnx.ModelProto) -> None:
    node = helper.make_node("If", ["x"], ["y"], then_branch=onnx.GraphProto(), else_branch=onnx.GraphProto())
    model.graph.node.append(node)


def rename_output(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.output[:] = ["scores" if name == "logits" else name for name in node.output]
    model.graph.output[0].name = "scores"


ONNX: dict[str, Callable[[onnx.ModelProto], object]] = {
    "weights in other files": lambda model: point_outside(model, "weights.bin"),
    "weights in other files ": lambda model: point_outside(model, "../../secret"),
    "weights in other files  ": lambda model: point_outside(model, "/etc/passwd"),
    "operators of another domain": lambda model: setattr(model.graph.node[0], "domain", "com.microsoft"),
    "operators of another domain ": lambda model: model.opset_import.add(domain="ai.onnx.contrib", version=1),
    "graphs within operators": add_branch,
    "functions, training graphs or sparse weights": lambda model: model.functions.add(name="f"),
    "other outputs": rename_output,
    "": lambda model: model.graph.node.pop(),
}


@pytest.mark.parametrize("reason", ONNX)
def test_what_an_onnx_file_may_not_have(reason: str, exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported / "export/model.onnx")
    ONNX[reason](model)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "weights.bin").write_bytes(bytes(100_000))
    with pytest.raises(spp_cls.UserError, match=f"is not an export of spp_cls \\(.*{reason.strip()}") as caught:
        open_exported(tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)


def test_an_onnx_file_of_another_graph_is_refused(tmp_path: Path, exported: Path) -> None:
    value = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, "h", "w"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, "h", "w"])
    graph = helper.make_graph([helper.make_node("Relu", ["images"], ["logits"])], "other", [value], [logits])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(spp_cls.UserError, match=r"a\.onnx is not an export of spp_cls"):
        open_exported(tmp_path / "a.onnx")
    model.metadata_props.extend(onnx.load(exported / "export/model.onnx").metadata_props)
    # The loaded model's IR may be newer than the runtime's.
    model.ir_version = 10
    onnx.save(model, tmp_path / "a.onnx")
    net = open_exported(tmp_path / "a.onnx")
    with pytest.raises(spp_cls.UserError, match="its output is not a number for each class"):
        net.run(torch.zeros(1, 3, 64, 64))


def test_the_files_are_opened_whatever_they_are_called(exported: Path, tmp_path: Path) -> None:
    for name in ("model.onnx", "model.pt2"):
        shutil.copy(exported / "export" / name, tmp_path / f"über {name}")
        assert open_exported(tmp_path / f"über {name}").run(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
