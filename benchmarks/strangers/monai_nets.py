"""MONAI: encoder-decoders for medical images, flat and in space."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.strangers.inputs import Stranger, noise

__all__ = ["networks"]


def networks() -> Iterator[Stranger]:
    import monai.networks.nets as nets

    two, three = noise(1, 1, 64, 64), noise(1, 1, 32, 32, 32)
    big = noise(1, 1, 64, 64, 64)
    widths, strides = (16, 32, 64, 128), (2, 2, 2)
    yield "monai/unet2d", lambda: nets.UNet(2, 1, 2, widths, strides), (two,)
    yield "monai/unet3d-res", lambda: nets.UNet(3, 1, 2, widths, strides, num_res_units=2), (three,)
    yield (
        "monai/unet1d",
        lambda: nets.UNet(1, 1, 2, widths, strides, num_res_units=1),
        (noise(1, 1, 64),),
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
        (noise(1, 3, 64, 64),),
    )
    yield "monai/autoencoder", lambda: nets.AutoEncoder(2, 1, 1, widths, (2, 2, 2, 2)), (two,)
    yield (
        "monai/varautoencoder",
        lambda: nets.VarAutoEncoder(2, (1, 64, 64), 1, 8, widths, (2, 2, 2, 2)),
        (two,),
    )
    yield (
        "monai/ahnet",
        lambda: nets.AHNet(spatial_dims=2, out_channels=2),
        (noise(1, 1, 128, 128),),
    )
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
    yield (
        "monai/quicknat",
        lambda: nets.Quicknat(num_classes=2, num_channels=1, num_filters=16),
        (two,),
    )
    yield (
        "monai/spade-diffusion",
        lambda: nets.SPADEDiffusionModelUNet(
            2,
            1,
            1,
            label_nc=2,
            channels=(16, 32),
            num_res_blocks=(1, 1),
            attention_levels=(False, True),
            norm_num_groups=8,
            num_head_channels=8,
        ),
        {"x": two[..., :32, :32], "timesteps": torch.tensor([3]), "seg": noise(1, 2, 32, 32)},
    )
    yield (
        "monai/voxelmorph",
        lambda: nets.VoxelMorphUNet(2, 2, 16, (8, 16, 16, 16, 16, 16), (16, 16)),
        (noise(1, 2, 64, 64),),
    )
    yield "monai/globalnet", lambda: nets.GlobalNet([64, 64], 2, 2, 8, 3), (noise(1, 2, 64, 64),)
    yield (
        "monai/vitautoenc",
        lambda: nets.ViTAutoEnc(1, (64, 64), (16, 16), 1, 16, 48, 96, 2, 4, spatial_dims=2),
        (two,),
    )
    yield (
        "monai/swinunetr-merging",
        lambda: nets.SwinUNETR(1, 2, feature_size=12, spatial_dims=2, downsample="mergingv2"),
        (two,),
    )
    yield (
        "monai/unet-groupnorm-prelu",
        lambda: nets.UNet(
            2,
            1,
            2,
            (16, 32, 64),
            (2, 2),
            num_res_units=2,
            act="PRELU",
            norm=("group", {"num_groups": 2}),
        ),
        (two,),
    )
