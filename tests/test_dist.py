"""The wheel that `make dist` builds works where nothing else of the project is."""

import subprocess
import sys
from pathlib import Path

import pytest
from torchvision.transforms.v2.functional import to_pil_image

from resnet_core.data import load_digits

ROOT = Path(__file__).parent.parent
HAND_WRITTEN = "import torchvision\n\n\ndef net():\n    return torchvision.models.resnet18(num_classes=10)\n"


@pytest.mark.slow
def test_the_wheel_trains_predicts_inspects_and_compares_from_an_empty_folder(tmp_path):
    built = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(built, check=True, capture_output=True)
    assert [file.suffix for file in sorted((tmp_path / "dist").iterdir())] == [".whl", ".gz"]
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    installed, folder = tmp_path / "installed", tmp_path / "empty"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(installed), str(wheel)]
    subprocess.run(pip, check=True)
    folder.mkdir()
    to_pil_image(load_digits().test.images[0]).save(folder / "digit.png")
    (folder / "mine.py").write_text(HAND_WRITTEN)

    def printed_by(*words):
        command = [sys.executable, "-m", "resnet_core", *words]
        # In that folder and from that path, the working tree's package cannot be found first.
        environment = {"PYTHONPATH": str(installed), "PATH": "", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder, env=environment).stdout

    where = "import resnet_core; print(resnet_core.__file__)"
    environment = {"PYTHONPATH": str(installed)}
    found = subprocess.run([sys.executable, "-c", where], capture_output=True, text=True, cwd=folder, env=environment)
    assert found.stdout.startswith(str(installed))

    assert "is finished" in printed_by("train", "digits", "--train.epochs", "3", "--schedule.warmup-epochs", "1")
    assert "cifar_resnet20" in printed_by("inspect", "runs/digits/model.safetensors")
    assert printed_by("predict", "runs/digits", "digit.png").startswith("digit.png\n")
    assert "resnet18(num_classes=10), the nearest of our models" in printed_by("compare", "mine.py", "--fast")
