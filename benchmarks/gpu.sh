#!/usr/bin/env bash
# Tests, benchmarks and small trainings for a machine with NVIDIA GPUs and no connection; --help lists the keys.
#   bash benchmarks/gpu.sh                        on a GPU, with a data set made by benchmarks/gpu_data.py
#   bash benchmarks/gpu.sh device=cpu size=toy    the same lines on a CPU, in minutes
# wheels=FOLDER: Python packages that are missing there, installed from files into a folder of this run alone.
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python3}"
if [[ -z "${PYTHON:-}" && -x "$repository/.venv/bin/python" ]]; then
  python="$repository/.venv/bin/python"
fi
path="$repository"

arguments=()
for argument in "$@"; do
  case "$argument" in
    wheels=*)
      site="$(mktemp -d)"
      trap 'rm -rf "$site"' EXIT
      "$python" -m pip install --quiet --no-index --no-deps --target "$site" "${argument#wheels=}"/*.whl
      path="$repository:$site"
      ;;
    *) arguments+=("$argument") ;;
  esac
done

export PYTHONPATH="$path${PYTHONPATH:+:$PYTHONPATH}"
missing="$("$python" - <<'END'
from importlib.util import find_spec

modules = {
    "torch": "torch", "torchvision": "torchvision", "pytorch-lightning": "pytorch_lightning", "hydra-core": "hydra",
    "omegaconf": "omegaconf", "antlr4-python3-runtime": "antlr4", "timm": "timm", "tensorboard": "tensorboard",
    "numpy": "numpy", "pillow": "PIL", "simplejpeg": "simplejpeg", "tqdm": "tqdm", "tabulate": "tabulate",
    "pyarrow": "pyarrow", "pytest": "pytest", "pytest-xdist": "xdist",
}
print(", ".join(package for package, module in modules.items() if find_spec(module) is None))
END
)"
if [[ -n "$missing" ]]; then
  echo "error: $python lacks $missing; set PYTHON to one that has all, or give them by wheels=FOLDER" >&2
  exit 1
fi
"$python" "$repository/benchmarks/gpu.py" "${arguments[@]}"
