"""Whether an installed wheel works: `python smoke.py core`, and with the extra, `smoke.py tsdn`."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

import eslkit


class Tiny(nn.Module):
    """A U with one level, one skip connection and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 4, 3, padding=1)
        self.middle = nn.Conv2d(4, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.out = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.down(x).relu()
        inner = self.middle(nn.functional.max_pool2d(skip, 2)).relu()
        return self.out(torch.cat([self.up(inner), skip], dim=1))


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in model.state_dict().items()}


def answers(command: str) -> None:
    """The command is on the path and its help comes without a complaint."""
    done = subprocess.run([command, "--help"], capture_output=True, text=True, check=False)
    if done.returncode or "Usage" not in done.stdout or done.stderr:
        sys.exit(f"{command} --help: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    print(f"{command} --help answers")


def core() -> None:
    installed = Path(eslkit.__file__).parent
    if not (installed / "py.typed").exists() or not installed.is_relative_to(sys.prefix):
        sys.exit(f"{installed} is not the installed package, or has no py.typed")
    model, x = Tiny(), torch.zeros(1, 1, 16, 16)
    big = eslkit.expand(model, width=2, example_inputs=(x,))
    small = eslkit.shrink(big, width=0.5, example_inputs=(x,))
    if not num_parameters(big) > 2 * num_parameters(model):
        sys.exit(f"expand: {num_parameters(big)} parameters from {num_parameters(model)}")
    if type(small) is not Tiny or shapes(small) != shapes(model):
        sys.exit(f"shrink after expand gave {shapes(small)}, and not {shapes(model)}")
    print(f"eslkit {version('eslkit')} expands and shrinks with torch {torch.__version__}")
    answers("eslkit")


def tsdn() -> None:
    import eslkit_tsdn.models.tsdn
    from eslkit_tsdn.weights import MODEL_CARD, SHIPPED, load_network

    model = eslkit_tsdn.models.tsdn.TSDN()
    if num_parameters(model) != 964_456:
        sys.exit(f"TSDN has {num_parameters(model)} parameters, not the paper's 964456")
    answers("eslkit-tsdn")
    network = load_network(SHIPPED)
    if not MODEL_CARD.is_file() or num_parameters(network) != num_parameters(model):
        sys.exit(f"{SHIPPED} or its model card did not come along")
    print(f"{SHIPPED.name} comes along, with its model card")
    denoises()


def denoises() -> None:
    """A camera's file in, a DNG out, with nothing named."""
    import numpy as np

    from eslkit_tsdn.dng import write_dng
    from eslkit_tsdn.raw import RawImage
    from eslkit_tsdn.shot import Shot

    mosaic = np.random.default_rng(0).integers(512, 700, (128, 192)).astype(np.uint16)
    raw = RawImage(
        mosaic=mosaic,
        pattern=((0, 1), (3, 2)),
        black=(512.0,) * 4,
        white=16383.0,
        white_balance=(1.0, 1.0, 1.0),
        color_matrix=np.eye(3),
        exposure=0.1,
        iso=1600,
        path=Path("dark.dng"),
    )
    shot = Shot("Sony", "ILCE-7SM2", as_shot=(1.0, 1.0, 1.0), camera_from_xyz=np.eye(3))
    write_dng(raw.mosaic, "dark.dng", raw=raw, shot=shot)
    command = ["eslkit-tsdn", "denoise", "dark.dng", "-o", "clean.dng"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not Path("clean.dng").is_file():
        sys.exit(f"denoise: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    print("denoise makes a DNG with the weights that come along")


if __name__ == "__main__":
    {"core": core, "tsdn": tsdn}[sys.argv[1]]()
