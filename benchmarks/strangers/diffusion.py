"""diffusers: U-Nets, autoencoders and transformers of diffusion models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.strangers.inputs import Stranger, noise

__all__ = ["networks"]


def networks() -> Iterator[Stranger]:
    import diffusers

    t = torch.tensor([3])
    small: dict[str, Any] = {"block_out_channels": (32, 64, 64), "norm_num_groups": 8}
    down = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D")
    up = ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    yield (
        "diffusers/unet2d",
        lambda: diffusers.UNet2DModel(
            sample_size=32, down_block_types=down, up_block_types=up, **small
        ),
        (noise(1, 3, 32, 32), t),
    )
    yield (
        "diffusers/unet2d-cond",
        lambda: diffusers.UNet2DConditionModel(
            sample_size=32,
            cross_attention_dim=24,
            attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(32, 64),
            norm_num_groups=8,
        ),
        (noise(1, 4, 32, 32), t, noise(1, 5, 24)),
    )
    yield (
        "diffusers/autoencoder-kl",
        lambda: diffusers.AutoencoderKL(
            block_out_channels=(16, 32),
            norm_num_groups=8,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        (noise(1, 3, 32, 32),),
    )
    yield (
        "diffusers/vq",
        lambda: diffusers.VQModel(block_out_channels=(32,), norm_num_groups=8),
        (noise(1, 3, 32, 32),),
    )
    yield (
        "diffusers/unet1d",
        lambda: diffusers.UNet1DModel(
            block_out_channels=(32, 32, 64),
            sample_size=64,
            time_embedding_type="positional",
            extra_in_channels=32,
        ),
        (noise(1, 2, 256), t),
    )
    yield (
        "diffusers/dit",
        lambda: diffusers.DiTTransformer2DModel(
            num_attention_heads=4,
            attention_head_dim=8,
            num_layers=2,
            sample_size=16,
            norm_num_groups=4,
        ),
        (noise(1, 4, 16, 16), t, torch.tensor([1])),
    )
    yield (
        "diffusers/unet3d-cond",
        lambda: diffusers.UNet3DConditionModel(
            sample_size=16,
            cross_attention_dim=24,
            attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            block_out_channels=(32, 64),
            layers_per_block=1,
            norm_num_groups=8,
        ),
        (noise(1, 4, 3, 16, 16), t, noise(1, 5, 24)),
    )
    yield (
        "diffusers/unet2d-xl",
        lambda: diffusers.UNet2DConditionModel(
            sample_size=32,
            cross_attention_dim=24,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(32, 64),
            norm_num_groups=8,
        ),
        (noise(1, 4, 32, 32), t, noise(1, 5, 24)),
    )
    yield (
        "diffusers/autoencoder-tiny",
        lambda: diffusers.AutoencoderTiny(
            encoder_block_out_channels=(16, 16, 16, 16), decoder_block_out_channels=(16, 16, 16, 16)
        ),
        (noise(1, 3, 64, 64),),
    )
    yield (
        "diffusers/autoencoder-dc",
        lambda: diffusers.AutoencoderDC(
            latent_channels=8,
            attention_head_dim=8,
            encoder_block_out_channels=(16, 32, 32),
            decoder_block_out_channels=(16, 32, 32),
            encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), (5,)),
            decoder_qkv_multiscales=((), (), (5,)),
            decoder_norm_types="rms_norm",
        ),
        (noise(1, 3, 32, 32),),
    )
    yield (
        "diffusers/uvit2d",
        lambda: diffusers.Transformer2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=32,
            num_layers=1,
            norm_num_groups=8,
        ),
        (noise(1, 32, 16, 16),),
    )
