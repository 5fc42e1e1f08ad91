"""deepinv: denoisers of inverse problems; neuraloperator: operators between functions."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.strangers.inputs import Stranger, Table, noise, read

__all__ = ["networks"]

_SIGMA = (noise(1, 3, 64, 64), 0.1)
_DEEPINV: Table = {
    "drunet": (
        "deepinv.models:DRUNet",
        {"nc": (16, 32, 48, 64), "nb": 1, "pretrained": None},
        _SIGMA,
    ),
    "drunet3d": (
        "deepinv.models:DRUNet",
        {
            "nc": (8, 16, 24, 32),
            "nb": 1,
            "pretrained": None,
            "dim": 3,
            "in_channels": 1,
            "out_channels": 1,
        },
        (noise(1, 1, 16, 16, 16), 0.1),
    ),
    "unet": ("deepinv.models:UNet", {"in_channels": 3, "out_channels": 3, "scales": 3}),
    "unet-biasfree": (
        "deepinv.models:UNet",
        {
            "in_channels": 3,
            "out_channels": 3,
            "scales": 3,
            "bias": False,
            "batch_norm": "biasfree",
            "circular_padding": True,
        },
    ),
    "scunet": ("deepinv.models:SCUNet", {"config": (1,) * 7, "pretrained": None}),
    "restormer": (
        "deepinv.models:Restormer",
        {"dim": 16, "num_blocks": (1, 1, 1, 1), "num_refinement_blocks": 1, "pretrained": None},
    ),
    "swinir": (
        "deepinv.models:SwinIR",
        {"img_size": 64, "embed_dim": 48, "depths": (2,), "num_heads": (4,), "pretrained": None},
    ),
    "dncnn": ("deepinv.models:DnCNN", {"depth": 5, "nf": 32, "pretrained": None}),
    "ncsnpp": (
        "deepinv.models:NCSNpp",
        {
            "img_resolution": 32,
            "model_channels": 32,
            "channel_mult": [1, 2],
            "num_blocks": 1,
            "attn_resolutions": [16],
            "pretrained": None,
        },
        (noise(1, 3, 32, 32), 0.1),
    ),
    "adm": (
        "deepinv.models:ADMUNet",
        {
            "img_resolution": 32,
            "model_channels": 32,
            "channel_mult": [1, 2],
            "num_blocks": 1,
            "attn_resolutions": [16],
            "pretrained": None,
        },
        (noise(1, 3, 32, 32), 0.1),
    ),
    "ffdnet": (
        "deepinv.models:FFDNet",
        {"n_conv_layers": 5, "nf": 32, "img_channels": 3, "pretrained": None},
        _SIGMA,
    ),
    "srresnet": ("deepinv.models:SRResNet", {"num_blocks": 2, "feats": 32, "upscale": 2}),
    "convdecoder": (
        "deepinv.models:ConvDecoder",
        {"img_size": (3, 64, 64), "layers": 4, "channels": 32, "in_size": (4, 4)},
        (noise(1, 32, 4, 4),),
    ),
    "autoencoder": (
        "deepinv.models:AutoEncoder",
        {"dim_input": 48, "dim_mid": 32, "dim_hid": 16},
        (noise(1, 48),),
    ),
}
_NEURALOP: Table = {
    "fno": (
        "neuralop.models:FNO",
        {
            "n_modes": (8, 8),
            "in_channels": 1,
            "out_channels": 1,
            "hidden_channels": 16,
            "n_layers": 2,
        },
    ),
    "uno": (
        "neuralop.models:UNO",
        {
            "in_channels": 1,
            "out_channels": 1,
            "hidden_channels": 16,
            "lifting_channels": 32,
            "projection_channels": 32,
            "n_layers": 3,
            "uno_out_channels": [16, 32, 16],
            "uno_n_modes": [[8, 8], [4, 4], [8, 8]],
            "uno_scalings": [[1.0, 1.0], [0.5, 0.5], [2.0, 2.0]],
            "channel_mlp_skip": "linear",
        },
    ),
}


def networks() -> Iterator[Stranger]:
    yield from read("deepinv", _DEEPINV, (noise(1, 3, 64, 64),))
    yield from read("neuralop", _NEURALOP, (noise(1, 1, 32, 32),))
