from __future__ import annotations

import subprocess
import sys

import pytest

from lightly_dira.core.extras import extra

# What `pip install lightly-dira` alone does not bring.
MISSING = "sklearn pandas nilearn statsmodels pytorch_grad_cam nibabel pydicom monai "
MISSING += "segmentation_models_pytorch safetensors medmnist matplotlib"
MODULES = {
    "evaluation.data": "evaluation",
    "evaluation.dense": "evaluation",
    "evaluation.finetuning": "evaluation",
    "evaluation.localisation": "evaluation",
    "evaluation.probes": "evaluation",
    "evaluation.protocol": "evaluation",
    "evaluation.read_tables": "evaluation",
    "evaluation.read_volumes": "evaluation",
    "evaluation.scores": "evaluation",
    "evaluation.splits": "evaluation",
    "evaluation.statistics": "evaluation",
}
PLAIN = ("data", "transforms", "evaluation.labelled", "evaluation.manifest", "weights")
CALLS = {
    "transforms.read_volume('x.nii')": "medical",
    "transforms.read_image(bytes(128) + b'DICM')": "medical",
    "evaluation.readers.read_medmnist('pneumoniamnist')": "medmnist",
    "transforms.preview.draw_preview([], None)": "examples",
    "weights.from_pretrained('.', torch.nn.Identity())": "safetensors",
    "weights.to_smp_unet(torch.nn.Identity(), None)": "smp",
}


def test_the_package_and_the_extra_are_named() -> None:
    message = r"^This needs nowhere_to_be: pip install lightly-dira\[volumes\]$"
    with pytest.raises(ModuleNotFoundError, match=message), extra("volumes"):
        import nowhere_to_be.part  # noqa: F401
    with extra("volumes"):
        import json  # noqa: F401


def test_every_module_names_its_extra(tmp_path) -> None:
    """Found: most modules of `evaluation` said "No module named 'sklearn'"."""
    code = f"""
import importlib, sys, pathlib, torch
for name in {MISSING.split()}:
    sys.modules[name] = None
pathlib.Path("x.nii").touch()
for name in {PLAIN}:
    importlib.import_module("lightly_dira." + name)
for name, extra in {MODULES}.items():
    try:
        importlib.import_module("lightly_dira." + name)
    except ModuleNotFoundError as error:
        assert f"pip install lightly-dira[{{extra}}]" in str(error), (name, error)
    else:
        raise AssertionError(name)
from lightly_dira import transforms, weights
from lightly_dira.evaluation import readers
import lightly_dira.evaluation as evaluation
for call, extra in {CALLS}.items():
    try:
        eval(call)
    except ModuleNotFoundError as error:
        assert f"pip install lightly-dira[{{extra}}]" in str(error), (call, error)
    else:
        raise AssertionError(call)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
