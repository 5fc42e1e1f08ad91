"""torchsr, super-image, studiosr: super-resolution; kornia: small networks of vision."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from benchmarks.strangers.inputs import Stranger, Table, noise, read

__all__ = ["networks"]

_TORCHSR: Table = {
    "edsr": (
        "torchsr.models.edsr:EDSR",
        {"n_resblocks": 2, "n_feats": 16, "scale": 2, "res_scale": 1},
    ),
    "ninasr": (
        "torchsr.models.ninasr:NinaSR",
        {"n_resblocks": 2, "n_feats": 16, "scale": 2, "expansion": 2.0},
    ),
    "rdn": ("torchsr.models.rdn:RDN", {"scale": 2, "D": 2, "C": 2, "G": 16, "G0": 16}),
    "carn": ("torchsr.models.carn:CARN", {"scale": 2}),
    "carn-m": ("torchsr.models.carn:CARNM", {"scale": 2}),
    "vdsr": (
        "torchsr.models.vdsr:VDSR",
        {"n_resblocks": 4, "n_feats": 16, "scale": 2, "pretrained": False},
    ),
}
_STUDIO: Table = {
    "imdn": ("studiosr.models:IMDN", {"scale": 2, "n_feats": 24}),
    "swinfir": (
        "studiosr.models:SwinFIR",
        {"scale": 2, "embed_dim": 48, "depths": [2], "num_heads": [4]},
    ),
    "srcnn": ("studiosr.models:SRCNN", {"scale": 2}),
    "espcn": ("studiosr.models:ESPCN", {"scale": 2}),
}
_KORNIA: Table = {
    "dexined": ("kornia.models.dexined:DexiNed", {"pretrained": False}),
    "tinyvit": (
        "kornia.models.tiny_vit:TinyViT",
        {
            "img_size": 64,
            "embed_dims": [16, 32, 32, 48],
            "depths": (1, 1, 1, 1),
            "num_heads": (1, 2, 2, 3),
            "num_classes": 4,
        },
    ),
    "rrdbnet": (
        "kornia.models.rrdbnet:RRDBNet",
        {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 16, "num_block": 1, "num_grow_ch": 8},
    ),
}
_SUPER_IMAGE = {
    "a2n": ("a2n", "A2n"),
    "awsrn": ("awsrn", "Awsrn"),
    "drln": ("drln", "Drln"),
    "msrn": ("msrn", "Msrn"),
    "pan": ("pan", "Pan"),
    "mdsr": ("mdsr", "Mdsr"),
    "ddbpn": ("ddbpn", "Ddbpn"),
    "drn": ("drn", "Drn"),
    "carn": ("carn", "Carn"),
}


def _super_image(file: str, name: str) -> nn.Module:
    module: Any = importlib.import_module(f"super_image.models.{file}.modeling_{file}")
    return getattr(module, f"{name}Model")(getattr(module, f"{name}Config")(scale=2))


def networks() -> Iterator[Stranger]:
    x = (noise(1, 3, 32, 32),)
    yield from read("torchsr", _TORCHSR, x)
    yield from read("studiosr", _STUDIO, x)
    yield from read("kornia", _KORNIA, (noise(1, 3, 64, 64),))
    for name, (file, kind) in _SUPER_IMAGE.items():
        yield f"super-image/{name}", lambda file=file, kind=kind: _super_image(file, kind), x
