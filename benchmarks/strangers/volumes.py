"""Small packages of one U-Net each, flat and in space: biology, microscopy, medicine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from benchmarks.strangers.inputs import Stranger, Table, noise, read

__all__ = ["networks"]

_GREY, _SPACE = (noise(1, 1, 64, 64),), (noise(1, 1, 32, 32, 32),)
_UNET: Table = {
    "2d": ("unet:UNet2D", {"out_channels_first_layer": 8, "normalization": "batch", "padding": 1}),
    "3d-res": (
        "unet:UNet3D",
        {
            "out_channels_first_layer": 8,
            "num_encoding_blocks": 3,
            "normalization": "batch",
            "residual": True,
            "upsampling_type": "linear",
            "padding": 1,
            "activation": "PReLU",
        },
        _SPACE,
    ),
    "2d-preact": (
        "unet:UNet2D",
        {
            "out_channels_first_layer": 8,
            "num_encoding_blocks": 4,
            "normalization": "instance",
            "preactivation": True,
            "padding": 1,
            "initial_dilation": 1,
        },
    ),
}
_WOLNY: dict[str, Any] = {"in_channels": 1, "out_channels": 2, "f_maps": 16, "num_levels": 3}
_3DUNET: Table = {
    "unet3d": ("pytorch3dunet.unet3d.model:UNet3D", _WOLNY, _SPACE),
    "residual": ("pytorch3dunet.unet3d.model:ResidualUNet3D", _WOLNY, _SPACE),
    "residual-se": ("pytorch3dunet.unet3d.model:ResidualUNetSE3D", _WOLNY, _SPACE),
    "unet2d": ("pytorch3dunet.unet3d.model:UNet2D", _WOLNY),
    "residual2d-bcr": (
        "pytorch3dunet.unet3d.model:ResidualUNet2D",
        {**_WOLNY, "layer_order": "bcr"},
    ),
}
_NNUNET: dict[str, Any] = {
    "input_channels": 1,
    "n_stages": 4,
    "features_per_stage": (16, 32, 48, 64),
    "conv_op": nn.Conv3d,
    "kernel_sizes": 3,
    "strides": (1, 2, 2, 2),
    "num_classes": 2,
    "n_conv_per_stage_decoder": 1,
    "conv_bias": True,
    "norm_op": nn.InstanceNorm3d,
    "norm_op_kwargs": {"affine": True},
    "nonlin": nn.LeakyReLU,
    "nonlin_kwargs": {"inplace": True},
    "deep_supervision": True,
}
_2D = {"conv_op": nn.Conv2d, "norm_op": nn.BatchNorm2d, "deep_supervision": False}
_ARCHITECTURES = "dynamic_network_architectures.architectures"
_DYNAMIC: Table = {
    "plain": (f"{_ARCHITECTURES}.unet:PlainConvUNet", {**_NNUNET, "n_conv_per_stage": 2}),
    "residual-encoder": (
        f"{_ARCHITECTURES}.unet:ResidualEncoderUNet",
        {**_NNUNET, "n_blocks_per_stage": (1, 2, 2, 2)},
    ),
    "residual": (
        f"{_ARCHITECTURES}.unet:ResidualUNet",
        {**_NNUNET, **_2D, "n_blocks_per_stage": (1, 2, 2, 2)},
        _GREY,
    ),
}
_BIO: Table = {
    "unet": ("bio_image_unet.unet.unet:Unet", {"n_filter": 8}),
    "attention": ("bio_image_unet.unet.attention_unet:AttentionUnet", {"n_filter": 8}),
    "unet3d": ("bio_image_unet.unet3d.unet3d:UNet3D", {"n_filter": 8}, _SPACE),
    "siam": (
        "bio_image_unet.siam_unet.siam_unet:Siam_UNet",
        {"n_filter": 8},
        (noise(1, 1, 64, 64), noise(1, 1, 64, 64)),
    ),
}


def networks() -> Iterator[Stranger]:
    yield from read("unet", _UNET, _GREY)
    yield from read("pytorch3dunet", _3DUNET, _GREY)
    yield from read("dynamic-network-architectures", _DYNAMIC, _SPACE)
    yield from read("bio-image-unet", _BIO, _GREY)
    yield from read("unet-pytorch", {"unet": ("unet_pytorch.model:UNet", {})}, _GREY)
