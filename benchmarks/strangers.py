"""Networks from public packages, on which the library is tried.

`networks()` yields (name, factory, example inputs) for every package that is installed: MONAI,
segmentation-models-pytorch, diffusers. Nothing here is special-cased by the library.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Stranger", "networks"]

Stranger = tuple[str, Callable[[], nn.Module], tuple[Any, ...]]


def _x(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def networks() -> Iterator[Stranger]:
    """All networks of the packages that are installed."""
    if importlib.util.find_spec("monai"):
        yield from _monai()
    if importlib.util.find_spec("segmentation_models_pytorch"):
        yield from _segmentation_models()
    if importlib.util.find_spec("diffusers"):
        yield from _diffusers()


def _monai() -> Iterator[Stranger]:
    import monai.networks.nets as nets

    two, three = _x(1, 1, 64, 64), _x(1, 1, 32, 32, 32)
    big = _x(1, 1, 64, 64, 64)
    widths, strides = (16, 32, 64, 128), (2, 2, 2)
    yield "monai/unet2d", lambda: nets.UNet(2, 1, 2, widths, strides), (two,)
    yield "monai/unet3d-res", lambda: nets.UNet(3, 1, 2, widths, strides, num_res_units=2), (three,)
    yield (
        "monai/unet1d",
        lambda: nets.UNet(1, 1, 2, widths, strides, num_res_units=1),
        (_x(1, 1, 64),),
    )
    yield "monai/unet-batch", lambda: nets.UNet(2, 1, 2, widths, strides, norm="batch"), (two,)
    yield "monai/basicunet", lambda: nets.BasicUNet(2, 1, 2), (two,)
    yield "monai/basicunet++", lambda: nets.BasicUNetPlusPlus(2, 1, 2), (two,)
    yield "monai/attention-unet", lambda: nets.AttentionUnet(2, 1, 2, widths, strides), (two,)
    yield (
        "monai/dynunet",
        lambda: nets.DynUNet(
            3, 1, 2, (3, 3, 3, 3), (1, 2, 2, 2), (2, 2, 2), deep_supervision=True, deep_supr_num=2
        ),
        (three,),
    )
    yield (
        "monai/dynunet-res",
        lambda: nets.DynUNet(2, 1, 2, (3, 3, 3, 3), (1, 2, 2, 2), (2, 2, 2), res_block=True),
        (two,),
    )
    yield "monai/segresnet", lambda: nets.SegResNet(3, 16, 1, 2), (three,)
    yield "monai/segresnetvae", lambda: nets.SegResNetVAE((32, 32, 32), init_filters=16), (three,)
    yield "monai/segresnetds", lambda: nets.SegResNetDS(3, 16, 1, 2), (three,)
    yield "monai/vnet", lambda: nets.VNet(3, 1, 2), (three,)
    yield "monai/highresnet", lambda: nets.HighResNet(3, 1, 2), (three,)
    yield (
        "monai/unetr",
        lambda: nets.UNETR(1, 2, 32, feature_size=8, hidden_size=96, mlp_dim=192, num_heads=6),
        (three,),
    )
    yield "monai/swinunetr", lambda: nets.SwinUNETR(1, 2, feature_size=12), (big,)
    yield (
        "monai/swinunetr2d",
        lambda: nets.SwinUNETR(1, 2, feature_size=12, spatial_dims=2, use_v2=True),
        (two,),
    )
    yield (
        "monai/flexibleunet",
        lambda: nets.FlexibleUNet(3, 2, "efficientnet-b0"),
        (_x(1, 3, 64, 64),),
    )
    yield "monai/autoencoder", lambda: nets.AutoEncoder(2, 1, 1, widths, (2, 2, 2, 2)), (two,)
    yield (
        "monai/varautoencoder",
        lambda: nets.VarAutoEncoder(2, (1, 64, 64), 1, 8, widths, (2, 2, 2, 2)),
        (two,),
    )
    yield "monai/ahnet", lambda: nets.AHNet(spatial_dims=2, out_channels=2), (_x(1, 1, 128, 128),)
    yield "monai/dints-free", lambda: nets.RegUNet(2, 1, 8, 3), (two,)
    yield "monai/localnet", lambda: nets.LocalNet(2, 1, 8, (0, 1, 2)), (two,)
    yield "monai/mednext", lambda: nets.MedNeXt(2, 8, 1, 2), (two,)
    yield (
        "monai/diffusion-unet",
        lambda: nets.DiffusionModelUNet(
            2,
            1,
            1,
            channels=(16, 32, 32),
            num_res_blocks=(1, 1, 1),
            attention_levels=(False, False, True),
            norm_num_groups=8,
            num_head_channels=8,
        ),
        (two, torch.tensor([3])),
    )
    yield (
        "monai/autoencoderkl",
        lambda: nets.AutoencoderKL(2, 1, 1, (1, 1, 1), (16, 32, 32), (False, False, True), 3, 8),
        (two,),
    )
    yield (
        "monai/vqvae",
        lambda: nets.VQVAE(
            2,
            1,
            1,
            channels=(16, 32),
            num_res_layers=1,
            num_res_channels=(16, 32),
            downsample_parameters=((2, 4, 1, 1),) * 2,
            upsample_parameters=((2, 4, 1, 1, 0),) * 2,
            num_embeddings=16,
            embedding_dim=8,
        ),
        (two,),
    )


def _segmentation_models() -> Iterator[Stranger]:
    import segmentation_models_pytorch as smp

    x = (_x(1, 3, 64, 64),)
    for arch in (
        "Unet",
        "UnetPlusPlus",
        "MAnet",
        "Linknet",
        "FPN",
        "PSPNet",
        "PAN",
        "DeepLabV3",
        "DeepLabV3Plus",
        "UPerNet",
        "Segformer",
    ):
        made = getattr(smp, arch)
        size = (_x(1, 3, 128, 128),) if arch == "PAN" else x
        yield f"smp/{arch}-resnet18", lambda made=made: made("resnet18", encoder_weights=None), size
    yield (
        "smp/DPT",
        lambda: smp.DPT("tu-vit_tiny_patch16_224.augreg_in21k", encoder_weights=None),
        (_x(1, 3, 224, 224),),
    )
    for encoder in (
        "mobilenet_v2",
        "efficientnet-b0",
        "densenet121",
        "vgg11_bn",
        "resnext50_32x4d",
        "mit_b0",
        "timm-regnetx_002",
        "xception",
        "inceptionv4",
        "dpn68",
        "mobileone_s0",
        "se_resnet50",
        "timm-res2net50_26w_4s",
        "timm-skresnet18",
        "timm-mobilenetv3_small_100",
        "tu-convnext_atto",
        "tu-swin_tiny_patch4_window7_224",
        "timm-resnest14d",
    ):
        size = (_x(1, 3, 224, 224),) if "swin" in encoder else x
        yield (
            f"smp/Unet-{encoder}",
            lambda encoder=encoder: smp.Unet(encoder, encoder_weights=None),
            size,
        )
    yield (
        "smp/Unet-scse",
        lambda: smp.Unet("resnet18", encoder_weights=None, decoder_attention_type="scse"),
        x,
    )
    yield (
        "smp/Unet-aux",
        lambda: smp.Unet("resnet18", encoder_weights=None, aux_params={"classes": 3}),
        x,
    )


def _diffusers() -> Iterator[Stranger]:
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
        (_x(1, 3, 32, 32), t),
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
        (_x(1, 4, 32, 32), t, _x(1, 5, 24)),
    )
    yield (
        "diffusers/autoencoder-kl",
        lambda: diffusers.AutoencoderKL(
            block_out_channels=(16, 32),
            norm_num_groups=8,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        (_x(1, 3, 32, 32),),
    )
    yield (
        "diffusers/vq",
        lambda: diffusers.VQModel(block_out_channels=(32,), norm_num_groups=8),
        (_x(1, 3, 32, 32),),
    )
    yield (
        "diffusers/unet1d",
        lambda: diffusers.UNet1DModel(
            block_out_channels=(32, 32, 64),
            sample_size=64,
            time_embedding_type="positional",
            extra_in_channels=32,
        ),
        (_x(1, 2, 256), t),
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
        (_x(1, 4, 16, 16), t, torch.tensor([1])),
    )
