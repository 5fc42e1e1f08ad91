"""Networks from public packages, on which the library is tried.

`networks()` yields (name, factory, example inputs) for every package that is installed: networks
of the packages' own classes and in their own style, small enough to run in seconds. Nothing here is
special-cased by the library.
"""

from __future__ import annotations

import fnmatch
import importlib
import importlib.util
from collections.abc import Iterator

from benchmarks.strangers.inputs import Stranger

__all__ = ["PACKAGES", "Stranger", "networks"]

PACKAGES = {
    "monai": ("monai", "monai_nets"),
    "smp": ("segmentation_models_pytorch", "segmentation"),
    "diffusers": ("diffusers", "diffusion"),
    "spandrel": ("spandrel", "restoration"),
    "spandrel-extra-arches": ("spandrel_extra_arches", "restoration"),
    "deepinv": ("deepinv", "inverse"),
    "neuralop": ("neuralop", "inverse"),
    "torchsr": ("torchsr", "enlarging"),
    "studiosr": ("studiosr", "enlarging"),
    "kornia": ("kornia", "enlarging"),
    "super-image": ("super_image", "enlarging"),
    "transformers": ("transformers", "parsing"),
    "segformer-pytorch": ("segformer_pytorch", "parsing"),
    "torchseg": ("torchseg", "parsing"),
    "smp-3d": ("segmentation_models_pytorch_3d", "parsing"),
    "unet": ("unet", "volumes"),
    "pytorch3dunet": ("pytorch3dunet", "volumes"),
    "dynamic-network-architectures": ("dynamic_network_architectures", "volumes"),
    "bio-image-unet": ("bio_image_unet", "volumes"),
    "unet-pytorch": ("unet_pytorch", "volumes"),
    "denoising-diffusion": ("denoising_diffusion_pytorch", "generation"),
    "video-diffusion": ("video_diffusion_pytorch", "generation"),
    "med-seg-diff": ("med_seg_diff_pytorch", "generation"),
    "x-unet": ("x_unet", "generation"),
    "audio-diffusion": ("audio_diffusion_pytorch", "generation"),
    "k-diffusion": ("k_diffusion", "generation"),
    "demucs": ("demucs", "sound"),
    "denoiser": ("denoiser", "sound"),
    "asteroid": ("asteroid", "sound"),
    "encodec": ("encodec", "sound"),
    "dac": ("dac", "sound"),
    "openunmix": ("openunmix", "sound"),
    "bs-roformer": ("bs_roformer", "sound"),
}
"""First word of the names -> the package that must be installed, and the file here."""


def networks(pattern: str = "*") -> Iterator[Stranger]:
    """The networks of the packages that are installed, those whose names fit the pattern."""
    first = pattern.partition("/")[0]
    for word, (package, file) in PACKAGES.items():
        if fnmatch.fnmatchcase(word, first) and importlib.util.find_spec(package):
            family = importlib.import_module(f"benchmarks.strangers.{file}")
            yield from (made for made in family.networks() if _fits(made[0], word, pattern))


def _fits(name: str, word: str, pattern: str) -> bool:
    return name.startswith(f"{word}/") and fnmatch.fnmatchcase(name, pattern)
