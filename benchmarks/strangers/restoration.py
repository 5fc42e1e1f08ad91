"""spandrel and spandrel-extra-arches: networks that restore, denoise and enlarge images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.strangers.inputs import Stranger, Table, noise, read

__all__ = ["networks"]

_SWIN: dict[str, Any] = {"depths": (2, 2), "num_heads": (3, 3), "embed_dim": 48}
_FFC = {"ratio_gin": 0, "ratio_gout": 0, "enable_lfu": False}
_FFC_IN = {"ratio_gin": 0.75, "ratio_gout": 0.75, "enable_lfu": False}
_MASKED = (noise(1, 3, 64, 64), noise(1, 1, 64, 64).round())
_SPANDREL: Table = {
    "nafnet": (
        "spandrel.architectures.NAFNet.__arch.NAFNet_arch:NAFNet",
        {"enc_blk_nums": [1, 1, 2], "dec_blk_nums": [1, 1, 1]},
    ),
    "swinir": (
        "spandrel.architectures.SwinIR:SwinIR",
        {**_SWIN, "window_size": 8, "upscale": 2, "upsampler": "pixelshuffle"},
    ),
    "swinir-denoise": ("spandrel.architectures.SwinIR:SwinIR", {**_SWIN, "window_size": 8}),
    "hat": (
        "spandrel.architectures.HAT:HAT",
        {**_SWIN, "window_size": 8, "upscale": 2, "upsampler": "pixelshuffle"},
    ),
    "scunet": ("spandrel.architectures.SCUNet:SCUNet", {"config": [1] * 7, "dim": 64}),
    "uformer": (
        "spandrel.architectures.Uformer:Uformer",
        {"img_size": 64, "embed_dim": 16, "depths": [1] * 9},
    ),
    "drunet": (
        "spandrel.architectures.DRUNet:DRUNet",
        {"in_nc": 3, "out_nc": 3, "nc": [16, 32, 64, 128], "nb": 2},
    ),
    "dncnn": ("spandrel.architectures.DnCNN:DnCNN", {"in_nc": 3, "out_nc": 3, "nc": 32, "nb": 7}),
    "esrgan": ("spandrel.architectures.ESRGAN:ESRGAN", {"num_filters": 32, "num_blocks": 2}),
    "compact": ("spandrel.architectures.Compact:Compact", {"num_feat": 32, "num_conv": 4}),
    "fbcnn": ("spandrel.architectures.FBCNN:FBCNN", {"nb": 1}),
    "safmn": ("spandrel.architectures.SAFMN:SAFMN", {"dim": 36, "n_blocks": 2}),
    "swin2sr": (
        "spandrel.architectures.Swin2SR:Swin2SR",
        {**_SWIN, "window_size": 8, "upsampler": "pixelshuffledirect"},
    ),
    "omnisr": ("spandrel.architectures.OmniSR:OmniSR", {"num_feat": 32}),
    "dat": (
        "spandrel.architectures.DAT:DAT",
        {"embed_dim": 48, "depth": [2], "num_heads": [2], "split_size": [8, 8]},
    ),
    "lama": (
        "spandrel.architectures.LaMa.__arch.LaMa:FFCResNetGenerator",
        {
            "input_nc": 4,
            "output_nc": 3,
            "ngf": 16,
            "n_blocks": 2,
            "init_conv_kwargs": _FFC,
            "downsample_conv_kwargs": _FFC,
            "resnet_conv_kwargs": _FFC_IN,
        },
        _MASKED,
    ),
    "kbnet": (
        "spandrel.architectures.KBNet.__arch.kbnet_s:KBNet_s",
        {"width": 16, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]},
    ),
    "kbnet-l": (
        "spandrel.architectures.KBNet:KBNet_l",
        {"dim": 24, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1},
    ),
    "cugan": ("spandrel.architectures.RealCUGAN:UpCunet2x", {}),
    "mixdehaze": ("spandrel.architectures.MixDehazeNet:MixDehazeNet", {}),
    "fftformer": (
        "spandrel.architectures.FFTformer:FFTformer",
        {"dim": 16, "num_blocks": [1, 1, 2], "num_refinement_blocks": 1},
    ),
    "retinexformer": (
        "spandrel.architectures.RetinexFormer:RetinexFormer",
        {"n_feat": 16, "stage": 1},
    ),
    "plksr": ("spandrel.architectures.PLKSR:PLKSR", {"dim": 32, "n_blocks": 2}),
    "realplksr": (
        "spandrel.architectures.PLKSR.__arch.RealPLKSR:RealPLKSR",
        {"dim": 32, "n_blocks": 2},
    ),
    "span": (
        "spandrel.architectures.SPAN:SPAN",
        {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 32},
    ),
    "craft": ("spandrel.architectures.CRAFT:CRAFT", {"depths": [1, 1], "num_heads": [6, 6]}),
    "drct": (
        "spandrel.architectures.DRCT:DRCT",
        {"depths": (1, 1), "num_heads": (6, 6), "embed_dim": 60, "window_size": 8},
    ),
    "atd": ("spandrel.architectures.ATD:ATD", {"depths": (2,), "num_heads": (6,), "embed_dim": 48}),
    "rgt": ("spandrel.architectures.RGT:RGT", {"depth": [2], "num_heads": [2], "embed_dim": 48}),
    "grl": (
        "spandrel.architectures.GRL:GRL",
        {"depths": [2], "num_heads_window": [3], "num_heads_stripe": [3], "embed_dim": 48},
    ),
    "fdat": ("spandrel.architectures.FDAT:FDAT", {}),
    "seemore": ("spandrel.architectures.SeemoRe:SeemoRe", {}),
    "mosr": ("spandrel.architectures.MoSR:MoSR", {}),
    "ditn": ("spandrel.architectures.DITN:DITN", {}),
    "swiftsrgan": ("spandrel.architectures.SwiftSRGAN:SwiftSRGAN", {}),
    "rcan": ("spandrel.architectures.RCAN:RCAN", {}),
}
_EXTRA: Table = {
    "restormer": (
        "spandrel_extra_arches.architectures.Restormer:Restormer",
        {"dim": 16, "num_blocks": [1, 1, 1, 2], "num_refinement_blocks": 1},
    ),
    "mprnet": (
        "spandrel_extra_arches.architectures.MPRNet:MPRNet",
        {"n_feat": 24, "scale_unetfeats": 12, "scale_orsnetfeats": 8},
    ),
    "mirnet2": (
        "spandrel_extra_arches.architectures.MIRNet2.__arch.mirnet_v2_arch:MIRNet_v2",
        {"n_feat": 32, "n_MRB": 1},
    ),
    "m3snet": ("spandrel_extra_arches.architectures.M3SNet:M3SNet", {}),
    "srformer": (
        "spandrel_extra_arches.architectures.SRFormer:SRFormer",
        {**_SWIN, "window_size": 8},
    ),
}


def networks() -> Iterator[Stranger]:
    yield from read("spandrel", _SPANDREL, (noise(1, 3, 64, 64),))
    yield from read("spandrel-extra-arches", _EXTRA, (noise(1, 3, 64, 64),))
