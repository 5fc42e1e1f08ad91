"""Measured noise of cameras: how strong each kind of noise is at each system gain.

Sources of the numbers: ELD (Wei et al., "A physics-based noise formation model for extreme
low-light raw denoising", CVPR 2020; github.com/Vandermode/ELD, MIT) and PMN / PNNP (Feng et al.,
"Learnability enhancement for low-light raw denoising", ACM MM 2022; github.com/megvii-research/PMN
and github.com/fenghansen/PNNP, Apache-2.0). They are carried here as plain numbers; no file that
a user gives is ever unpickled.

All scales are in DN (digital numbers of the 14-bit file) after black subtraction; the system
gain K is in DN per photoelectron.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eslkit.errors import InputError

__all__ = [
    "SONY_A7S2_ELD",
    "SONY_A7S2_PMN",
    "CameraNoise",
    "LogLinear",
    "LogTable",
    "ScaleLaw",
]


@dataclass(frozen=True)
class LogLinear:
    """A noise scale whose logarithm is linear in that of the gain.

    `ln scale | K ~ N(slope * ln K + bias, sigma^2)` (ELD, equation 11; facts.md section 10).
    """

    slope: float
    """Slope over ln K."""
    bias: float
    """ln of the scale in DN at K = 1."""
    sigma: float
    """Standard deviation of ln scale at a given K."""

    def moments(self, log_k: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation of ln scale at each ln K, of `log_k`'s shape."""
        return self.slope * log_k + self.bias, torch.full_like(log_k, self.sigma)


@dataclass(frozen=True)
class LogTable:
    """A noise scale measured at some gains; between them ln scale is linear in ln K.

    Outside the table the nearest entry holds. An entry's spread is small against its scale, so
    the spread of ln scale is taken as spread / scale.
    """

    gains: tuple[float, ...]
    """System gains K, ascending, in DN per photoelectron."""
    scales: tuple[float, ...]
    """Scale at each gain, in DN."""
    spreads: tuple[float, ...]
    """Standard deviation of the scale at each gain, in DN."""

    def moments(self, log_k: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation of ln scale at each ln K, of `log_k`'s shape."""
        log_scales = [math.log(scale) for scale in self.scales]
        relative = [a / b for a, b in zip(self.spreads, self.scales, strict=True)]
        return interpolate(log_k, self.gains, log_scales), interpolate(log_k, self.gains, relative)


ScaleLaw = LogLinear | LogTable
"""How a noise scale follows from the gain: `moments(ln K)` of its logarithm."""


@dataclass(frozen=True)
class CameraNoise:
    """The calibrated noise of one camera (the model of facts.md section 10)."""

    name: str
    """Camera, and who measured it."""
    black: float
    """Black level, in DN."""
    white: float
    """White level, in DN."""
    k_min: float
    """Smallest system gain measured, in DN per photoelectron."""
    k_max: float
    """Largest system gain measured, in DN per photoelectron."""
    read: ScaleLaw
    """Scale of the Tukey-lambda read noise."""
    row: ScaleLaw
    """Standard deviation of the row noise."""
    gaussian: ScaleLaw
    """Standard deviation of the read noise where it is taken as Gaussian."""
    shapes: tuple[float, ...]
    """Shapes lambda of the read noise, one per calibration."""
    color_bias: tuple[tuple[float, float, float, float], ...] = ()
    """Mean of the read noise in R, G1, B, G2, in DN, one row per shape; empty means 0."""
    shape_gains: tuple[float, ...] = ()
    """Gain at which each shape was measured; empty where it is not known (ELD's release): then
    shape and colour bias are those of one calibration picked at random, as ELD does."""
    iso_gain: tuple[float, float] | None = None
    """Slope and offset of K over ISO; None where not published."""

    def gain(self, iso: float) -> float:
        """Returns the system gain at an ISO speed.

        Raises:
            InputError: the calibration does not tell, or the ISO is below its range.
        """
        if self.iso_gain is None:
            raise InputError(f"the calibration {self.name} does not tell K from ISO; pass K itself")
        k = self.iso_gain[0] * iso + self.iso_gain[1]
        if k <= 0:
            raise InputError(f"ISO {iso:g} is below what {self.name} was measured at")
        return k

    @property
    def span(self) -> float:
        """White level less black level, in DN."""
        return self.white - self.black


def interpolate(log_k: Tensor, gains: Sequence[float], values: Sequence[float]) -> Tensor:
    """Interpolates linearly in ln K between `values` at `gains`; constant outside."""
    knots = torch.tensor(gains, dtype=torch.float64).log()
    table = torch.tensor(values, dtype=torch.float64)
    x = log_k.detach().to("cpu", torch.float64).clamp(knots[0], knots[-1])
    right = torch.searchsorted(knots, x).clamp(1, len(knots) - 1)
    weight = (x - knots[right - 1]) / (knots[right] - knots[right - 1])
    return torch.lerp(table[right - 1], table[right], weight).to(log_k)


_ELD_READ = (
    (0.1142857, 1.4822, 1.4682, 1.4833, 1.4701),
    (0.1285714, 1.4975, 1.4802, 1.4970, 1.4816),
    (0.05714286, -1.0176, -1.0377, -1.0215, -1.0378),
    (0.04285714, -1.0172, -1.0392, -1.0185, -1.0371),
    (0.0, -0.2604, -0.2952, -0.2670, -0.2945),
    (0.0, -0.2576, -0.2897, -0.2619, -0.2919),
    (-0.04285714, 0.6113, 0.5769, 0.6101, 0.5755),
    (-0.05714286, 0.6053, 0.5678, 0.6009, 0.5606),
    (-0.08571429, 2.0719, 2.0092, 2.3061, 2.2434),
    (-0.08571429, 2.0913, 2.0202, 2.3282, 2.2599),
    (-0.08571429, -1.3466, -1.3706, -1.3489, -1.3657),
    (-0.08571429, -1.3219, -1.3641, -1.3314, -1.3595),
    (-0.1142857, -1.5595, -1.5977, -1.3204, -1.3572),
    (-0.1142857, -1.5530, -1.6019, -1.3225, -1.3585),
    (-0.1428571, 1.1710, 1.0815, 1.1473, 1.0725),
    (-0.1285714, 1.1832, 1.0718, 1.1786, 1.0671),
    (-0.1428571, 4.0732, 3.8571, 4.2958, 4.0960),
    (-0.1428571, 4.0542, 3.8497, 4.2923, 4.0853),
)
"""Shape lambda and colour bias of R, G1, B, G2 (DN), one row per calibration."""

SONY_A7S2_ELD = CameraNoise(
    name="SonyA7S2 (ELD)",
    black=512.0,
    white=16383.0,
    k_min=0.0939160709,
    k_max=6.01062854,
    read=LogLinear(slope=0.462105, bias=0.5657147, sigma=0.2633712),
    row=LogLinear(slope=0.527536, bias=-0.5917003, sigma=0.2942881),
    gaussian=LogLinear(slope=0.5407496, bias=1.218237, sigma=0.2675121),
    shapes=tuple(row[0] for row in _ELD_READ),
    color_bias=tuple(row[1:] for row in _ELD_READ),
    # Not published: k_max / k_min is 64.0000, as ISO 6400 to ISO 100.
    iso_gain=(0.0009391607, 0.0),
)
"""Sony A7S II, log-linear laws, K between ISO 100's and ISO 6400's (ELD)."""

_PMN = (
    (50, 0.14747, 0.707276, 0.004361, 1.01647, 0.005272, 0.139974, 0.006438),
    (64, 0.13243, 0.715356, 0.005686, 1.05097, 0.008081, 0.143465, 0.006401),
    (80, 0.11215, 0.779947, 0.009348, 1.1809, 0.01133, 0.195402, 0.008197),
    (100, 0.14875, 0.701819, 0.003753, 1.00674, 0.003368, 0.139147, 0.00653),
    (125, 0.12905, 0.696197, 0.004869, 1.02797, 0.007365, 0.144856, 0.006732),
    (160, 0.094135, 0.725859, 0.008032, 1.12931, 0.00834, 0.197556, 0.008275),
    (200, 0.079024, 0.811746, 0.01025, 1.29264, 0.01217, 0.228158, 0.01073),
    (250, 0.051688, 0.863092, 0.01384, 1.4346, 0.01607, 0.262719, 0.01306),
    (320, 0.040701, 1.03345, 0.01763, 1.74814, 0.01963, 0.30971, 0.0162),
    (400, 0.022254, 1.18168, 0.02506, 2.05956, 0.02487, 0.362097, 0.01995),
    (500, -0.0031342, 1.31772, 0.02863, 2.39569, 0.03014, 0.425283, 0.0251),
    (640, 0.0025666, 1.64742, 0.04672, 2.96629, 0.04566, 0.488396, 0.03159),
    (800, -0.0081997, 1.93465, 0.04613, 3.54759, 0.05232, 0.572377, 0.03782),
    (1000, -0.021061, 2.27951, 0.0592, 4.27278, 0.06972, 0.684556, 0.0488),
    (1250, -0.032423, 2.70844, 0.07623, 5.1776, 0.09268, 0.817701, 0.06162),
    (1600, -0.044104, 3.2284, 0.09118, 6.29925, 0.1153, 0.988786, 0.07857),
    (2000, -0.012964, 1.43568, 0.02179, 2.65387, 0.01589, 0.331242, 0.0188),
    (2500, -0.027097, 1.68979, 0.02587, 3.20023, 0.01931, 0.382643, 0.02377),
    (3200, -0.034863, 2.04177, 0.03287, 3.91938, 0.02649, 0.445435, 0.03011),
    (4000, -0.043701, 2.46293, 0.0424, 4.80158, 0.03782, 0.523474, 0.0393),
    (5000, -0.05315, 2.9761, 0.06133, 5.89958, 0.06258, 0.619027, 0.05335),
    (6400, -0.075171, 3.4503, 0.08226, 7.11635, 0.08435, 0.721879, 0.06423),
    (8000, -0.082084, 4.26962, 0.1338, 8.91652, 0.1276, 0.877603, 0.07389),
    (10000, -0.07329, 5.49532, 0.1628, 11.2915, 0.164, 1.05223, 0.09436),
    (12800, -0.064952, 7.03826, 0.1882, 14.2459, 0.1728, 1.27498, 0.1205),
    (16000, -0.060692, 8.87755, 0.2334, 17.8335, 0.1981, 1.55593, 0.1579),
    (20000, -0.060213, 11.0024, 0.2881, 22.0848, 0.2182, 1.88108, 0.1894),
    (25600, -0.090891, 12.1757, 0.4216, 25.853, 0.3537, 2.27602, 0.2609),
)
"""ISO, lambda, then scale and spread of the Tukey-lambda, Gaussian and row noise (DN)."""

_PMN_ISO, _PMN_SHAPES, *_PMN_SCALES = zip(*_PMN, strict=True)
_PMN_GAINS = tuple(0.0009563 * iso for iso in _PMN_ISO)

SONY_A7S2_PMN = CameraNoise(
    name="SonyA7S2 (PMN)",
    black=512.0,
    white=16383.0,
    k_min=_PMN_GAINS[0],
    k_max=_PMN_GAINS[-1],
    read=LogTable(gains=_PMN_GAINS, scales=_PMN_SCALES[0], spreads=_PMN_SCALES[1]),
    gaussian=LogTable(gains=_PMN_GAINS, scales=_PMN_SCALES[2], spreads=_PMN_SCALES[3]),
    row=LogTable(gains=_PMN_GAINS, scales=_PMN_SCALES[4], spreads=_PMN_SCALES[5]),
    shapes=_PMN_SHAPES,
    shape_gains=_PMN_GAINS,
    # Their line through K; the K of the table are 0.0009563 * ISO, within 1 % above ISO 300.
    iso_gain=(0.0009546, -0.00193),
)
"""Sony A7S II, ISO 50 to 25600, measured at every ISO (PMN, PNNP). Between ISO 1600 and 2000 the
sensor switches its conversion gain, and read and row noise fall to less than half. Without
colour bias: PMN takes it out of the pictures with dark frames."""
