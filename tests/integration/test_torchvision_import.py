"""How torchvision is imported, each time in a fresh process."""

from __future__ import annotations

import subprocess
import sys

from locations import ROOT


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torchvision_works_without_its_operators_and_after_a_failed_import():
    run_python("""if True:
        try:
            import torchvision  # fails where the operators cannot be loaded
        except (RuntimeError, ImportError):
            pass
        import torch
        from hessian_spectrum.zoo.torchvision_compat import import_torchvision
        vision = import_torchvision()
        assert import_torchvision() is vision
        import torchvision.transforms.v2
        model = vision.models.resnet18(num_classes=3).eval()
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
        assert vision.transforms.ToTensor() is not None
        assert vision.datasets.MNIST is not None
        if not vision.extension._has_ops():  # absent operators say so, and only when called
            try:
                vision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
            except RuntimeError as error:
                assert "custom C++ ops" in str(error)
            else:
                raise AssertionError("nms ran without an implementation")
    """)


def test_operators_that_exist_are_not_declared_again():
    declared = run_python("""if True:
        import torch
        from hessian_spectrum.zoo import torchvision_compat as compat
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        if not compat._load_operators(compat._package_folders()):
            for name in ("nms", "qnms"):  # as somebody else's repair, or a loaded extension
                torch.library.define(f"torchvision::{name}", schema)
        def refuse(*args, **options):
            raise AssertionError(f"declared {args} a second time")
        torch.library.define = refuse
        print(compat.import_torchvision().__name__)
    """)
    assert declared.strip() == "torchvision"


def test_torchvision_is_imported_only_when_it_is_needed():
    run_python("""if True:
        import sys
        from hessian_spectrum.zoo import build_model, load_dataset
        build_model("cnn"), load_dataset("digits")
        assert "torchvision" not in sys.modules
    """)


def test_absent_torchvision_is_an_input_error():
    run_python("""if True:
        import importlib.util
        real = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *a: None if name == "torchvision" else real(name)
        from hessian_spectrum._core.errors import InputError
        from hessian_spectrum.zoo.torchvision_compat import import_torchvision
        try:
            import_torchvision()
        except InputError as error:
            assert "pip install torchvision" in str(error)
        else:
            raise AssertionError("torchvision was found where there is none")
    """)
