"""ELD's other cameras: Canon EOS 5D Mark IV, 70D and 700D, Nikon D850 (Wei et al., CVPR 2020).

The numbers are those of github.com/Vandermode/ELD (MIT), to seven digits of the laws and four
decimals of the colour bias. That release tells neither K from ISO nor the cameras' levels: its
code takes black 800 and white 16383 for every camera, and so do these. For a camera's own files
take their levels: `dataclasses.replace(CANON_EOS70D_ELD, black=raw.black[0], white=raw.white)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eslkit_tsdn.calibration import SONY_A7S2_ELD, SONY_A7S2_PMN, CameraNoise, LogLinear

__all__ = [
    "CAMERAS",
    "CANON_EOS5D4_ELD",
    "CANON_EOS70D_ELD",
    "CANON_EOS700D_ELD",
    "NIKON_D850_ELD",
]

_Read = Sequence[tuple[float, float, float, float, float]]


def _eld(
    name: str,
    gains: tuple[float, float],
    read: _Read,
    *,
    scale: LogLinear,
    row: LogLinear,
    gaussian: LogLinear,
) -> CameraNoise:
    """A calibration of ELD's; `read` holds shape and colour bias of every measurement."""
    return CameraNoise(
        name=f"{name} (ELD)",
        black=800.0,
        white=16383.0,
        k_min=gains[0],
        k_max=gains[1],
        read=scale,
        row=row,
        gaussian=gaussian,
        shapes=tuple(line[0] for line in read),
        color_bias=tuple(line[1:] for line in read),
    )


CANON_EOS5D4_ELD = _eld(
    "CanonEOS5D4",
    (0.2181895, 13.96413),
    (
        (0.1571429, 0.0319, 0.7473, 0.7182, -0.0304),
        (0.1428571, 0.0386, 0.7376, 0.7105, -0.0157),
        (0.08571429, 0.9017, 0.7995, 0.7789, -0.0264),
        (0.08571429, 0.8692, 0.7743, 0.7504, -0.0320),
        (0.2, 0.0945, 0.1141, 0.0366, 0.0299),
        (0.2, 0.0587, 0.1142, 0.0392, 0.0050),
        (0.1, 0.0457, 0.9214, 0.8723, 0.0340),
        (0.08571429, 0.0291, 0.9394, 0.9068, 0.0859),
        (0.05714286, 0.9560, 0.0673, 0.8980, 0.2180),
        (0.07142857, 0.9396, 0.1126, 0.8604, 0.0236),
        (0.02857143, -0.0678, -0.0962, 0.8907, 0.7934),
        (0.02857143, 0.0232, -0.0855, 0.8703, 0.6630),
        (0.01428571, 0.8120, 0.8134, -0.0870, 0.0711),
        (0.02857143, 0.6971, 0.7573, -0.1303, 0.9105),
        (0.08571429, -0.1813, -0.3095, 0.1754, 0.3761),
        (0.07142857, -0.0155, -0.3699, 0.3606, 0.4699),
        (0.1142857, -0.1359, 0.1286, 0.1639, 0.1385),
        (0.1142857, 0.1751, 0.0374, 0.8743, 0.2679),
    ),
    scale=LogLinear(slope=0.6558756, bias=1.092687, sigma=0.2860472),
    row=LogLinear(slope=0.4712798, bias=-0.8078959, sigma=0.2436176),
    gaussian=LogLinear(slope=0.6771268, bias=1.512188, sigma=0.246411),
)
"""Canon EOS 5D Mark IV, log-linear laws (ELD)."""

CANON_EOS70D_ELD = _eld(
    "CanonEOS70D",
    (0.407497, 26.07981),
    (
        (0.1428571, 0.7145, 0.5804, 0.3192, 0.4214),
        (0.1428571, 0.6966, 0.6329, 0.3341, 0.3351),
        (0.1142857, 0.5566, 0.6014, 0.2884, 0.2211),
        (0.1142857, 0.6256, 0.5710, 0.2830, 0.2833),
        (0.02857143, 0.6154, 0.6635, 0.2857, 0.2875),
        (0.02857143, 0.6572, 0.5787, 0.2086, 0.2324),
        (-0.1, 0.9003, 0.8295, 0.1892, 0.2821),
        (-0.08571429, 0.8011, 0.9897, 0.3374, 0.1594),
        (-0.1714286, 1.1451, 1.4027, 0.7498, 0.4188),
        (-0.1714286, 0.9111, 1.2890, 0.4804, 0.0034),
        (-0.1571429, 1.7778, 1.9533, 1.1469, 0.6870),
        (-0.1571429, 1.6913, 2.0377, 0.4171, 0.2918),
        (-0.08571429, 3.3214, 3.4302, 1.2067, 0.0874),
        (-0.08571429, 2.8049, 3.2619, 0.4390, 0.0162),
        (-0.02857143, 3.6559, 5.3062, 1.5786, 0.0077),
        (-0.02857143, 3.4211, 6.1318, -0.5191, -1.3929),
    ),
    scale=LogLinear(slope=0.4868061, bias=1.464268, sigma=0.3820056),
    row=LogLinear(slope=0.7292221, bias=-0.9370565, sigma=0.2502156),
    gaussian=LogLinear(slope=0.5681184, bias=1.998266, sigma=0.2487022),
)
"""Canon EOS 70D, log-linear laws (ELD)."""

CANON_EOS700D_ELD = _eld(
    "CanonEOS700D",
    (0.4476289, 28.64825),
    (
        (0.1285714, 0.7213, 0.5402, 0.5855, 0.7727),
        (0.1285714, 0.7199, 0.3598, 0.4093, 0.7750),
        (0.1, 0.6217, 0.4189, -0.3363, -0.1275),
        (0.1, 0.5784, 0.5329, -0.2117, -0.1773),
        (0.01428571, 0.0992, -0.1232, -0.4248, -0.2218),
        (0.01428571, -0.1080, -0.0369, -0.3663, -0.4345),
        (-0.08571429, 0.6565, 0.7305, 0.2908, 0.2119),
        (-0.1, 0.7376, 0.7867, 0.2974, 0.2708),
        (-0.1428571, 0.7117, 0.1313, 0.4459, 0.0633),
        (-0.1571429, 0.8130, 1.1408, -0.5248, 0.1730),
        (-0.1285714, 0.5164, 1.5122, 0.1524, -0.6169),
        (-0.1285714, 0.7626, 1.2393, -0.0014, -0.3500),
        (-0.02857143, 0.9775, 0.4691, -0.6790, -0.9992),
        (-0.02857143, 1.5260, 1.7995, -0.5902, 0.3169),
        (0.01428571, 2.4948, 3.4149, -1.9865, -1.5825),
        (0.01428571, 2.1826, 1.8064, -2.5192, -2.9355),
    ),
    scale=LogLinear(slope=0.5982362, bias=1.537044, sigma=0.3888189),
    row=LogLinear(slope=0.6220588, bias=-0.7756471, sigma=0.2484808),
    gaussian=LogLinear(slope=0.6524588, bias=2.079864, sigma=0.2578159),
)
"""Canon EOS 700D, log-linear laws (ELD)."""

NIKON_D850_ELD = _eld(
    "NikonD850",
    (0.4150393, 26.56252),
    (
        (-0.1142857, -0.1738, -0.1940, -0.1637, -0.1768),
        (-0.1142857, -0.1698, -0.1832, -0.1620, -0.1695),
        (-0.2, 0.1406, 0.1037, 0.0291, 0.0007),
        (-0.2, 0.1364, 0.0952, 0.0271, -0.0062),
        (-0.2142857, 0.4942, 0.3575, 0.2392, 0.1351),
        (-0.2142857, 0.4992, 0.3610, 0.2446, 0.1408),
        (-0.2285714, -2.7570, -1.6280, -2.1686, -1.0784),
        (-0.2285714, -2.7499, -1.6164, -2.1673, -1.0654),
        (-0.2428571, -1.4161, -0.6997, -1.3712, -0.6156),
        (-0.2428571, -1.4073, -0.6858, -1.3685, -0.6092),
        (-0.1714286, 0.4045, 0.5790, 0.5337, -0.2882),
        (-0.1714286, 0.3939, 0.5644, 0.5197, -0.2757),
        (-0.1428571, 0.9373, 1.4886, 1.1286, 1.6910),
        (-0.1428571, 1.0624, 1.5927, 1.2800, -0.1684),
        (-0.1, 2.4149, 3.8368, 3.0318, 0.3554),
        (-0.1, 2.3356, 3.6721, 2.6267, 0.1420),
    ),
    scale=LogLinear(slope=0.4773897, bias=-0.090445, sigma=0.2392006),
    row=LogLinear(slope=0.4482922, bias=-1.79771, sigma=0.2321799),
    gaussian=LogLinear(slope=0.5634613, bias=0.7994101, sigma=0.2140823),
)
"""Nikon D850, log-linear laws (ELD, its first profile)."""

CAMERAS: Mapping[str, CameraNoise] = {
    camera.name: camera
    for camera in (
        SONY_A7S2_ELD,
        SONY_A7S2_PMN,
        CANON_EOS5D4_ELD,
        CANON_EOS70D_ELD,
        CANON_EOS700D_ELD,
        NIKON_D850_ELD,
    )
}
"""All calibrations that are carried, by name."""
