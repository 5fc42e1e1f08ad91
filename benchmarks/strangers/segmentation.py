"""segmentation-models-pytorch: decoders upon the usual classifiers."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.strangers.inputs import Stranger, noise

__all__ = ["networks"]


def networks() -> Iterator[Stranger]:
    import segmentation_models_pytorch as smp

    x = (noise(1, 3, 64, 64),)
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
        size = (noise(1, 3, 128, 128),) if arch == "PAN" else x
        yield f"smp/{arch}-resnet18", lambda made=made: made("resnet18", encoder_weights=None), size
    yield (
        "smp/DPT",
        lambda: smp.DPT("tu-vit_tiny_patch16_224.augreg_in21k", encoder_weights=None),
        (noise(1, 3, 224, 224),),
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
        size = (noise(1, 3, 224, 224),) if "swin" in encoder else x
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
