"""Networks for sound: sources separated, speech cleaned, codecs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from benchmarks.strangers.inputs import Stranger, Table, noise, read, wave

__all__ = ["networks"]

_STEREO = (wave(1, 2, 16384),)
_DEMUCS: Table = {
    "demucs": (
        "demucs.demucs:Demucs",
        {"sources": ["a", "b"], "channels": 16, "depth": 4, "lstm_layers": 1, "resample": False},
    ),
    "demucs-plain": (
        "demucs.demucs:Demucs",
        {"sources": ["a"], "channels": 16, "depth": 3, "dconv_mode": 0, "norm_starts": 9},
    ),
    "hdemucs": (
        "demucs.hdemucs:HDemucs",
        {"sources": ["a", "b"], "channels": 16, "nfft": 1024, "depth": 5},
    ),
    "htdemucs": (
        "demucs.htdemucs:HTDemucs",
        {
            "sources": ["a", "b"],
            "channels": 16,
            "nfft": 1024,
            "depth": 3,
            "t_layers": 2,
            "t_heads": 4,
            "bottom_channels": 64,
            "segment": 1,
            "samplerate": 16384,
        },
    ),
}
_DENOISER: Table = {
    "demucs": ("denoiser.demucs:Demucs", {"hidden": 16, "depth": 4, "resample": 2}),
}
_ASTEROID: Table = {
    "conv-tasnet": (
        "asteroid.models:ConvTasNet",
        {
            "n_src": 2,
            "n_blocks": 3,
            "n_repeats": 2,
            "bn_chan": 32,
            "hid_chan": 64,
            "skip_chan": 32,
            "n_filters": 64,
        },
    ),
    "dprnn": (
        "asteroid.models:DPRNNTasNet",
        {
            "n_src": 2,
            "n_repeats": 1,
            "n_filters": 32,
            "bn_chan": 32,
            "hid_size": 32,
            "chunk_size": 20,
        },
    ),
    "dptnet": (
        "asteroid.models:DPTNet",
        {"n_src": 2, "n_repeats": 1, "n_filters": 32, "ff_hid": 32, "chunk_size": 20},
    ),
    "sudormrf": (
        "asteroid.models:SuDORMRFNet",
        {"n_src": 2, "bn_chan": 32, "num_blocks": 2, "upsampling_depth": 3, "n_filters": 64},
    ),
    "sudormrf-improved": (
        "asteroid.models:SuDORMRFImprovedNet",
        {"n_src": 2, "bn_chan": 32, "num_blocks": 2, "upsampling_depth": 3, "n_filters": 64},
    ),
    "dcunet": (
        "asteroid.models:DCUNet",
        {"architecture": "DCUNet-10", "fix_length_mode": "pad"},
        (wave(1, 16384),),
    ),
    "lstm-tasnet": (
        "asteroid.models:LSTMTasNet",
        {"n_src": 2, "n_filters": 64, "hid_size": 32, "n_layers": 1},
    ),
}
_CODECS: Table = {
    "seanet": ("encodec.modules.seanet:SEANetEncoder", {"n_filters": 8, "dimension": 32}),
}


def _seanet() -> nn.Module:
    from encodec.modules.seanet import SEANetDecoder, SEANetEncoder

    form: dict[str, Any] = {"n_filters": 8, "dimension": 32, "ratios": [4, 4, 2]}
    return nn.Sequential(SEANetEncoder(**form), SEANetDecoder(**form))


def _seanet_group() -> nn.Module:
    from encodec.modules.seanet import SEANetDecoder, SEANetEncoder

    form: dict[str, Any] = {
        "n_filters": 8,
        "dimension": 32,
        "ratios": [4, 4],
        "lstm": 0,
        "norm": "time_group_norm",
    }
    return nn.Sequential(SEANetEncoder(**form), SEANetDecoder(**form))


def _dac() -> nn.Module:
    from dac.model.dac import Decoder, Encoder

    return nn.Sequential(Encoder(16, [2, 4], 32), Decoder(32, 64, [4, 2]))


def _openunmix() -> nn.Module:
    from openunmix.model import OpenUnmix

    return OpenUnmix(nb_bins=65, nb_channels=2, hidden_size=32, nb_layers=1)


def networks() -> Iterator[Stranger]:
    mono = (wave(1, 1, 8192),)
    yield from read("demucs", _DEMUCS, _STEREO)
    yield from read("denoiser", _DENOISER, (wave(1, 1, 8192),))
    yield from read("asteroid", _ASTEROID, (wave(1, 8192),))
    yield "encodec/seanet", _seanet, mono
    yield "encodec/seanet-group", _seanet_group, mono
    yield "dac/encoder-decoder", _dac, mono
    yield "openunmix/umx", _openunmix, (noise(1, 2, 65, 20),)
    yield from read(
        "bs-roformer",
        {
            "bs-roformer": (
                "bs_roformer:BSRoformer",
                {
                    "dim": 32,
                    "depth": 1,
                    "time_transformer_depth": 1,
                    "freq_transformer_depth": 1,
                    "heads": 2,
                    "dim_head": 16,
                    "stereo": True,
                    "stft_n_fft": 256,
                    "stft_win_length": 256,
                    "stft_hop_length": 64,
                    "freqs_per_bands": (9,) * 13 + (12,),
                    "flash_attn": False,
                },
            )
        },
        (wave(1, 2, 4096),),
    )
