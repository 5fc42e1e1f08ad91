"""transformers and others: transformers that segment and estimate depth; more decoders."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from benchmarks.strangers.inputs import Stranger, Table, noise, read

__all__ = ["networks"]

_X = (noise(1, 3, 64, 64),)


def _hugging(kind: str, **arguments: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{kind.partition(':')[0]}Config")(**arguments)
    name = kind.replace(":", "")
    return getattr(transformers, name)(config)


_VIT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 8,
}
_SEG: dict[str, Any] = {
    "hidden_sizes": [16, 32, 40, 64],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 2, 4],
    "decoder_hidden_size": 32,
}


def _transformers() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    yield "segformer", lambda: _hugging("Segformer:ForSemanticSegmentation", **_SEG)
    yield "glpn", lambda: _hugging("GLPN:ForDepthEstimation", **_SEG)
    yield (
        "dpt",
        lambda: _hugging(
            "DPT:ForDepthEstimation",
            **_VIT,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[16, 16, 32, 32],
            fusion_hidden_size=16,
            reassemble_factors=[4, 2, 1, 0.5],
            is_hybrid=False,
        ),
    )
    yield (
        "beit",
        lambda: _hugging(
            "Beit:ForSemanticSegmentation",
            **_VIT,
            out_indices=[1, 2, 3, 4],
            use_auxiliary_head=True,
            use_relative_position_bias=True,
            use_mask_token=False,
        ),
    )
    yield (
        "swin2sr",
        lambda: _hugging(
            "Swin2SR:ForImageSuperResolution",
            image_size=64,
            embed_dim=32,
            depths=[2, 2],
            num_heads=[2, 2],
            window_size=8,
        ),
    )
    yield (
        "mobilevit",
        lambda: _hugging(
            "MobileViT:ForSemanticSegmentation",
            image_size=64,
            hidden_sizes=[32, 40, 48],
            neck_hidden_sizes=[16, 32, 32, 48, 48, 48, 64],
        ),
    )
    yield (
        "mobilenetv2",
        lambda: _hugging("MobileNetV2:ForSemanticSegmentation", depth_multiplier=0.5),
    )
    yield (
        "upernet-convnext",
        lambda: _upernet("ConvNext", hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1]),
    )
    yield (
        "upernet-swin",
        lambda: _upernet(
            "Swin",
            embed_dim=16,
            depths=[1, 1, 1, 1],
            num_heads=[1, 2, 2, 4],
            window_size=4,
            image_size=64,
        ),
    )
    yield (
        "depth-anything",
        _depth_anything,
    )
    yield "maskformer", _maskformer
    yield "mask2former", _mask2former
    yield (
        "vitmae",
        lambda: _hugging(
            "ViTMAE:ForPreTraining",
            **_VIT,
            decoder_hidden_size=32,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=4,
            decoder_intermediate_size=64,
        ),
    )
    yield "vitmatte", _vitmatte
    yield "sam-vision", _sam


def _upernet(kind: str, **arguments: Any) -> nn.Module:
    import transformers

    backbone = getattr(transformers, f"{kind}Config")(
        out_features=["stage1", "stage2", "stage3", "stage4"], **arguments
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone,
        hidden_size=32,
        auxiliary_channels=16,
        num_labels=4,
        auxiliary_in_channels=48 if kind == "ConvNext" else 64,
    )
    return transformers.UperNetForSemanticSegmentation(config)


def _depth_anything() -> nn.Module:
    import transformers

    vit = {**_VIT, "image_size": 112, "patch_size": 14}
    vit.pop("intermediate_size")
    backbone = transformers.Dinov2Config(
        **vit, out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=True
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        patch_size=14,
        neck_hidden_sizes=[16, 16, 32, 32],
        fusion_hidden_size=16,
        head_hidden_size=8,
    )
    return transformers.DepthAnythingForDepthEstimation(config)


def _maskformer() -> nn.Module:
    import transformers

    backbone = transformers.SwinConfig(
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        image_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    decoder = transformers.DetrConfig(
        d_model=32,
        decoder_layers=1,
        encoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        encoder_ffn_dim=64,
        num_queries=5,
    )
    config = transformers.MaskFormerConfig(
        fpn_feature_size=32, mask_feature_size=32, backbone_config=backbone, decoder_config=decoder
    )
    return transformers.MaskFormerForInstanceSegmentation(config)


def _mask2former() -> nn.Module:
    import transformers

    backbone = transformers.SwinConfig(
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        image_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=64,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=4,
        dim_feedforward=64,
        num_queries=5,
    )
    return transformers.Mask2FormerForUniversalSegmentation(config)


def _vitmatte() -> nn.Module:
    import transformers

    backbone = transformers.VitDetConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        patch_size=16,
        num_channels=4,
        out_features=["stage2"],
        window_block_indices=[0],
        window_size=2,
        residual_block_indices=[1],
        use_relative_position_embeddings=True,
    )
    config = transformers.VitMatteConfig(
        backbone_config=backbone,
        hidden_size=32,
        convstream_hidden_sizes=[8, 16, 24],
        fusion_hidden_sizes=[32, 16, 16, 8],
    )
    return transformers.VitMatteForImageMatting(config)


def _sam() -> nn.Module:
    import transformers

    config = transformers.SamVisionConfig(
        hidden_size=32,
        output_channels=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
        window_size=4,
        global_attn_indexes=[1],
    )
    return transformers.SamVisionModel(config)


_TORCHSEG_DECODERS = (
    "Unet",
    "UnetPlusPlus",
    "MAnet",
    "Linknet",
    "FPN",
    "PSPNet",
    "PAN",
    "DeepLabV3Plus",
)
_SEGFORMER: Table = {
    "segformer": (
        "segformer_pytorch:Segformer",
        {"dims": (16, 32, 40, 64), "num_layers": 1, "decoder_dim": 32},
    ),
}


def networks() -> Iterator[Stranger]:
    inputs = {
        "vitmatte": (noise(1, 4, 64, 64),),
        "depth-anything": (noise(1, 3, 112, 112),),
        "vitmae": {"pixel_values": noise(1, 3, 64, 64), "noise": noise(1, 64)},
    }
    for name, make in _transformers():
        yield f"transformers/{name}", make, inputs.get(name, _X)
    yield from read("segformer-pytorch", _SEGFORMER, _X)
    if importlib.util.find_spec("torchseg"):
        yield from _torchseg()
    if importlib.util.find_spec("segmentation_models_pytorch_3d"):
        yield from _cells()


def _torchseg() -> Iterator[Stranger]:
    import torchseg

    for kind in _TORCHSEG_DECODERS:
        made = getattr(torchseg, kind)
        size = (noise(1, 3, 128, 128),) if kind == "PAN" else _X
        yield f"torchseg/{kind}", lambda made=made: made("resnet18", encoder_weights=None), size
    yield (
        "torchseg/Unet-vit",
        lambda: torchseg.Unet(
            "vit_tiny_patch16_224",
            encoder_weights=None,
            encoder_indices=(2, 5, 8, 11),
            encoder_depth=4,
            decoder_channels=(64, 32, 16, 8),
            encoder_params={"img_size": 64, "scale_factors": (8, 4, 2, 1)},
        ),
        _X,
    )


def _cells() -> Iterator[Stranger]:
    import segmentation_models_pytorch_3d as flat3d

    x = (noise(1, 3, 32, 32, 32),)
    for kind in ("Unet", "FPN", "Linknet"):
        made = getattr(flat3d, kind)
        yield f"smp-3d/{kind}", lambda made=made: made("resnet18", encoder_weights=None), x
