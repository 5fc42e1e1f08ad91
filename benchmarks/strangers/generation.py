"""U-Nets of diffusion models from small packages; each has its own style."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from benchmarks.strangers.inputs import Stranger, Table, noise, read, wave

__all__ = ["networks"]

_T = torch.tensor([3.0])
_DDPM: Table = {
    "unet": ("denoising_diffusion_pytorch:Unet", {"dim": 16, "dim_mults": (1, 2, 4)}),
    "unet-flash": (
        "denoising_diffusion_pytorch:Unet",
        {"dim": 16, "dim_mults": (1, 2), "learned_sinusoidal_cond": True, "self_condition": True},
    ),
    "unet1d": (
        "denoising_diffusion_pytorch:Unet1D",
        {"dim": 16, "dim_mults": (1, 2, 4), "channels": 2},
        (wave(1, 2, 64), _T),
    ),
    "karras": (
        "denoising_diffusion_pytorch.karras_unet:KarrasUnet",
        {
            "image_size": 32,
            "dim": 16,
            "dim_max": 32,
            "channels": 3,
            "num_downsamples": 2,
            "num_blocks_per_stage": 1,
            "attn_res": (8,),
            "attn_dim_head": 8,
        },
    ),
    "uvit": ("denoising_diffusion_pytorch.simple_diffusion:UViT", {"dim": 16, "vit_depth": 1}),
    "dit-guided": (
        "denoising_diffusion_pytorch.classifier_free_guidance:Unet",
        {"dim": 16, "dim_mults": (1, 2), "num_classes": 4},
        (noise(1, 3, 32, 32), _T, torch.tensor([1])),
    ),
}
_FIELD: Table = {
    "unet3d": (
        "video_diffusion_pytorch:Unet3D",
        {"dim": 16, "dim_mults": (1, 2), "attn_heads": 2},
        (noise(1, 3, 4, 32, 32), _T),
    ),
}
_MEDSEG: Table = {
    "unet": (
        "med_seg_diff_pytorch:Unet",
        {
            "dim": 16,
            "image_size": 32,
            "dim_mults": (1, 2),
            "full_self_attn": (False, True),
            "attn_heads": 2,
        },
        (noise(1, 1, 32, 32), _T, noise(1, 3, 32, 32)),
    ),
}
_XUNET: Table = {
    "xunet": (
        "x_unet:XUnet",
        {
            "dim": 16,
            "dim_mults": (1, 2, 4),
            "num_blocks_per_stage": (1, 1, 1),
            "num_self_attn_per_stage": (0, 0, 1),
            "nested_unet_depths": (0, 1, 0),
            "nested_unet_dim": 8,
        },
    ),
    "xunet-convnext": (
        "x_unet:XUnet",
        {
            "dim": 16,
            "dim_mults": (1, 2),
            "num_blocks_per_stage": (1, 1),
            "num_self_attn_per_stage": (0, 1),
            "nested_unet_depths": (0, 0),
            "use_convnext": True,
        },
    ),
    "xunet-3d": (
        "x_unet:XUnet",
        {
            "dim": 16,
            "frame_kernel_size": 3,
            "dim_mults": (1, 2),
            "num_blocks_per_stage": (1, 1),
            "num_self_attn_per_stage": (0, 1),
            "nested_unet_depths": (0, 0),
            "weight_standardize": True,
        },
        (noise(1, 3, 4, 32, 32),),
    ),
}
_SMALL: dict[str, Any] = {
    "dim": 1,
    "in_channels": 2,
    "channels": [16, 32, 32],
    "factors": [1, 2, 2],
    "items": [1, 1, 1],
    "attentions": [0, 0, 1],
    "attention_heads": 2,
    "attention_features": 8,
}


def _adp() -> nn.Module:
    from audio_diffusion_pytorch import UNetV0

    return UNetV0(**_SMALL, resnet_groups=8, use_modulation=False, use_time_conditioning=False)


def _adp_time() -> nn.Module:
    from audio_diffusion_pytorch import UNetV0

    return UNetV0(**_SMALL, resnet_groups=8, use_time_conditioning=True, modulation_features=32)


def _kdiff() -> nn.Module:
    from k_diffusion.models import ImageDenoiserModelV1

    return ImageDenoiserModelV1(3, 32, [1, 1], [16, 32], [False, True])


def networks() -> Iterator[Stranger]:
    image = noise(1, 3, 32, 32)
    yield from read("denoising-diffusion", _DDPM, (image, _T))
    yield from read("video-diffusion", _FIELD, ())
    yield from read("med-seg-diff", _MEDSEG, ())
    yield from read("x-unet", _XUNET, (image,))
    yield "audio-diffusion/unet", _adp, (wave(1, 2, 256),)
    yield (
        "audio-diffusion/unet-time",
        _adp_time,
        {"x": wave(1, 2, 256), "time": torch.tensor([0.3])},
    )
    yield "k-diffusion/image-v1", _kdiff, (image, torch.tensor([0.3]))
