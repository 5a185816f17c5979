"""The command that exports a network: python -m spp_cls.export CHECKPOINT [key=value ...]."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spp_cls.cli.arguments import parse_arguments, run_tool
from spp_cls.cli.errors import UserError
from spp_cls.cli.reading import is_file
from spp_cls.cli.schema import key
from spp_cls.cli.targets import import_plugins
from spp_cls.export.formats import FORMATS, export_net

USAGE = f"python -m spp_cls.export CHECKPOINT [format=[{','.join(FORMATS)}]] [out=FOLDER]"


@dataclass(frozen=True)
class Options:
    """The keys of this command."""

    format: tuple[str, ...] = key(FORMATS, help=f"formats to write: {', '.join(FORMATS)}")
    plugins: tuple[str, ...] = key((), help="modules to import first, which register backbones of your own")
    out: str | None = key(None, help="folder of the files; null: export beside the checkpoint")


def main(arguments: Sequence[str]) -> None:
    """Export a checkpoint; print where to and how far from the network."""
    names, options = parse_arguments(
        Options, arguments, USAGE, "python -m spp_cls.export runs/mine/best.ckpt format=onnx out=mine"
    )
    import_plugins(options.plugins)
    if len(names) != 1:
        raise UserError(f"name one checkpoint: {USAGE}")
    if options.out == "":
        raise UserError("out is empty; name a folder, or leave out out")
    out = Path(names[0]).parent / "export" if options.out is None else options.out
    if is_file(out):
        raise UserError(f"out={out} is a file; give a folder")
    print("\n".join(export_net(names[0], options.format, out)))


if __name__ == "__main__":
    run_tool(main, sys.argv[1:])
