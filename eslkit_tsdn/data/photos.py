"""Clean pictures in packed raw form: unprocessed photographs, or a photographer's own raw files.

The photographs lie inside the wheels of scikit-image and scikit-learn; nothing is downloaded.
They are taken back from sRGB to what a camera's sensor would have given (Brooks et al.,
"Unprocessing images for learned raw denoising", CVPR 2019): inverse tone curve, inverse colour
matrix, inverse white balance, optical low-pass filter, mosaic. Matrix and white balances are
those of the Sony A7S II in the SID dataset (facts.md section 9).

Test pictures: chelsea (a cat: fine fur, soft background), china (a pagoda: architecture, leaves,
sky up to saturation) and coffee (a cup indoors: smooth, warm, saturated colours, dark corners).
All others are training pictures. The second picture of the stereo pair `motorcycle` is not used:
it shows what the first shows.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from eslkit.errors import InputError
from eslkit_tsdn.color import srgb_decode, srgb_encode
from eslkit_tsdn.raw import Pattern, normalize, pack, read_raw

__all__ = [
    "SONY_A7S2_MATRIX",
    "TEST_NAMES",
    "WHITE_BALANCES",
    "Photo",
    "packaged_photos",
    "photos_digest",
    "raw_photos",
    "split",
    "unprocess",
]

TEST_NAMES = ("chelsea", "china", "coffee")
"""The packaged photographs that are never trained on."""

SONY_A7S2_MATRIX = np.array(
    [
        [1.9712269, -0.6789218, -0.29230508],
        [-0.29104823, 1.748401, -0.45735288],
        [0.02051281, -0.5380369, 1.5175241],
    ]
)
"""White-balanced colours of the Sony A7S II to linear sRGB, from SID's files (facts.md 9)."""

WHITE_BALANCES: tuple[tuple[float, float, float], ...] = (
    (1.7109, 1.0, 2.8047),
    (1.8281, 1.0, 2.2422),
    (1.8828, 1.0, 2.5781),
    (1.9102, 1.0, 2.0742),
    (1.9492, 1.0, 2.5469),
    (1.9570, 1.0, 2.9102),
    (1.9766, 1.0, 1.9570),
    (2.0039, 1.0, 2.2227),
    (2.0234, 1.0, 3.0469),
    (2.0781, 1.0, 2.5898),
    (2.1055, 1.0, 2.2617),
    (2.1602, 1.0, 2.6719),
    (2.2344, 1.0, 2.2695),
    (2.3203, 1.0, 1.7852),
    (2.3828, 1.0, 2.1484),
    (2.4375, 1.0, 2.3672),
)
"""Gains of R, G, B of sixteen of SID's scenes, spread over the whole range that occurs there."""

RAW_SUFFIXES = (
    *(".3fr", ".ari", ".arw", ".bay", ".cap", ".cr2", ".cr3", ".crw", ".dcr", ".dcs", ".dng"),
    *(".drf", ".eip", ".erf", ".fff", ".gpr", ".iiq", ".k25", ".kdc", ".mdc", ".mef", ".mos"),
    *(".mrw", ".nef", ".nrw", ".orf", ".pef", ".ptx", ".r3d", ".raf", ".rw2", ".rwl", ".rwz"),
    *(".sr2", ".srf", ".srw", ".x3f"),
)
"""Extensions of camera files. `.raw` is not among them: most such files are dumps."""

_SKIMAGE, _SKLEARN = ("skimage", "data"), ("sklearn", "datasets/images")
_FILES: dict[str, tuple[tuple[str, str], str, int]] = {
    "astronaut": (_SKIMAGE, "astronaut.png", 1),
    "chelsea": (_SKIMAGE, "chelsea.png", 1),
    "china": (_SKLEARN, "china.jpg", 1),
    "coffee": (_SKIMAGE, "coffee.png", 1),
    "flower": (_SKLEARN, "flower.jpg", 1),
    "hubble": (_SKIMAGE, "hubble_deep_field.jpg", 2),
    "ihc": (_SKIMAGE, "ihc.png", 2),
    "motorcycle": (_SKIMAGE, "motorcycle_left.png", 1),
    "retina": (_SKIMAGE, "retina.jpg", 2),
    "rocket": (_SKIMAGE, "rocket.jpg", 1),
}
"""Package, file and by how much it is scaled down. Three are: `ihc` and `retina` show JPEG's
blocks (steps at every eighth column 14 % and 20 % above the others, gone after averaging 2x2)
and hardly any detail at their finest scale; `hubble` is noisy (3.9 of 255). The others have
been scaled down by their makers and are compressed lightly; neighbours in a packed plane are two
pixels apart, so scaling once more would cost half of the data and take nothing else out."""

_KNEE = 0.97
"""Above this mean a pixel counts as bright. Brooks et al. take 0.9, which tints skies: between
the knee and 1, red and blue come out clipped at 1 and green at its own value."""

_RGGB: Pattern = ((0, 1), (3, 2))


@dataclass(frozen=True, eq=False)
class Photo:
    """A clean picture as a camera's sensor gives it."""

    name: str
    """Where it comes from: a packaged photograph's name, or a file's path in its folder."""
    packed: Tensor
    """(4, h, w) float32 in [0, 1], order R, G1, B, G2."""
    white_balance: tuple[float, float, float]
    """Gains of R, G, B that make grey grey, G = 1."""
    color_matrix: NDArray[np.float64] | None
    """3x3, white-balanced camera colours to linear sRGB; None where unknown."""


def packaged_photos() -> tuple[Photo, ...]:
    """Unprocesses the colour photographs that scikit-image and scikit-learn carry.

    Which white balance a photograph gets depends on its name alone.

    Returns:
        The photographs, sorted by name.

    Raises:
        InputError: the packages are not installed, or without one of the files.
    """
    return tuple(_packaged_photo(name) for name in sorted(_FILES))


def split(photos: Sequence[Photo]) -> tuple[tuple[Photo, ...], tuple[Photo, ...]]:
    """Divides photographs into training and test pictures, by name.

    Packaged photographs: `TEST_NAMES` are for testing. Any others: the last quarter in the order
    of names, one at least, so that a burst of one scene is not spread over both.

    Args:
        photos: pictures of different names.

    Returns:
        Training and test pictures, each sorted by name, neither empty.

    Raises:
        InputError: fewer than two photographs, or two of one name.
    """
    ordered = sorted(photos, key=lambda photo: photo.name)
    names = [photo.name for photo in ordered]
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(
            f"expected two or more photographs of different names to train and to test on, got "
            f"{', '.join(names) or 'none'}"
        )
    tests = set(names) & set(TEST_NAMES) if set(names) <= set(_FILES) else set[str]()
    if not tests or len(tests) == len(names):
        tests = set(names[-max(1, len(names) // 4) :])
    return (
        tuple(photo for photo in ordered if photo.name not in tests),
        tuple(photo for photo in ordered if photo.name in tests),
    )


def photos_digest(photos: Sequence[Photo]) -> str:
    """SHA-256 over names and pixels, so that a run notices when its pictures have changed.

    Args:
        photos: in the order that counts.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for photo in photos:
        pixels = photo.packed.to(torch.float32).contiguous()
        digest.update(f"{photo.name} {tuple(pixels.shape)}\n".encode())
        digest.update(pixels.numpy().tobytes())
    return digest.hexdigest()


def raw_photos(
    folder: str | Path, *, max_photos: int = 24, max_side: int = 1024, max_iso: int = 800
) -> tuple[Photo, ...]:
    """Reads camera files as clean pictures: take them in good light, at the camera's base ISO.

    The folder is searched with all that is below it for files with a camera file's extension.
    Files that state an ISO above `max_iso` are left out: their own noise would be learnt. Of
    more than `max_photos`, evenly spaced ones in the order of names are taken.

    Args:
        folder: where to look.
        max_photos: how many pictures to return at most.
        max_side: larger pictures are cut to their centre, in packed pixels; together with
            `max_photos` this bounds the memory, 16 MiB per picture by default.
        max_iso: the highest ISO that counts as clean.

    Returns:
        The pictures, sorted by name (their path below the folder).

    Raises:
        InputError: the folder is absent or holds no such file; a file cannot be read or has no
            Bayer filter.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected one with camera files")
    files = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in RAW_SUFFIXES and path.is_file()
    )
    photos: list[Photo] = []
    for index in evenly(len(files), max_photos):
        photo = raw_photo(files[index], folder=folder, max_side=max_side, max_iso=max_iso)
        if photo is not None:
            photos.append(photo)
    if not photos:
        found = f"{len(files)} camera files, all above ISO {max_iso}" if files else "no camera file"
        raise InputError(
            f"{folder} holds {found}; expected raw files with a Bayer filter (.ARW, .DNG, .NEF, "
            f"...) taken at ISO {max_iso} or below"
        )
    return tuple(photos)


def unprocess(
    rgb: NDArray[np.uint8],
    *,
    white_balance: tuple[float, float, float],
    color_matrix: ArrayLike | None,
    smoothstep: bool = False,
    low_pass: bool = True,
) -> Tensor:
    """Takes an sRGB picture back to packed raw: the inverse of `eslkit_tsdn.raw.render`.

    Dividing by the gains would leave no raw value above 1 / gain and make white coloured. As in
    Brooks et al. (section 3.4) bright pixels are divided by less, so that white saturates all
    four planes as it does in a sensor.

    Args:
        rgb: H x W x 3 uint8; an odd last row or column is left out.
        white_balance: gains of R, G, B to be undone.
        color_matrix: 3x3, camera colours to linear sRGB, to be undone; None for none.
        smoothstep: also undo the tone curve `3 x^2 - 2 x^3` that Brooks et al. assume. `render`
            has none, so pictures look flatter than the photograph then.
        low_pass: spread every pixel over 2x2 sites before the mosaic, as the optical low-pass
            filter before a sensor does. Without it photographs, sharp to the pixel, alias in the
            mosaic: fine detail of one colour plane is unrelated to that of the others.

    Returns:
        (4, H // 2, W // 2) float32 in [0, 1], order R, G1, B, G2.

    Raises:
        InputError: not an H x W x 3 uint8 picture, or smaller than 2x2.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise InputError(f"expected H x W x 3 in uint8, got {rgb.shape} in {rgb.dtype}")
    return unprocess_unit(
        rgb / 255.0, white_balance, color_matrix, smoothstep=smoothstep, low_pass=low_pass
    )


def unprocess_unit(
    rgb: NDArray[np.float64],
    white_balance: tuple[float, float, float],
    color_matrix: ArrayLike | None,
    *,
    smoothstep: bool = False,
    low_pass: bool = True,
) -> Tensor:
    """`unprocess` for sRGB in [0, 1]."""
    if smoothstep:
        rgb = 0.5 - np.sin(np.arcsin(1.0 - 2.0 * rgb) / 3.0)
    camera = srgb_decode(rgb)
    if color_matrix is not None:
        camera = np.clip(camera @ np.linalg.inv(np.asarray(color_matrix)).T, 0.0, 1.0)
    camera *= _safe_inverse_gains(camera, white_balance)
    if low_pass:
        beyond = np.pad(camera, ((0, 1), (0, 1), (0, 0)), mode="edge")
        camera = (beyond[:-1, :-1] + beyond[1:, :-1] + beyond[:-1, 1:] + beyond[1:, 1:]) / 4
    codes = np.empty(camera.shape[:2])
    for (i, j), channel in {(0, 0): 0, (0, 1): 1, (1, 0): 1, (1, 1): 2}.items():
        codes[i::2, j::2] = camera[i::2, j::2, channel]
    return torch.from_numpy(pack(codes.astype(np.float32), _RGGB))


def _safe_inverse_gains(
    camera: NDArray[np.float64], white_balance: tuple[float, float, float]
) -> NDArray[np.float64]:
    """1 / gain, going over to 1 where the pixel's mean goes from the knee to 1 (H x W x 3)."""
    inverse = 1.0 / np.asarray(white_balance)
    mean = camera.mean(axis=-1, keepdims=True)
    bright = np.clip((mean - _KNEE) / (1.0 - _KNEE), 0.0, 1.0) ** 2
    return np.maximum(bright + (1.0 - bright) * inverse, inverse)


def _packaged_photo(name: str) -> Photo:
    (package, folder), file, factor = _FILES[name]
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / folder / file if spec and spec.origin else None
    if path is None or not path.is_file():
        raise InputError(
            f"the photograph {file} of {package} is not installed; install it with "
            "pip install 'eslkit[tsdn]', or pass a folder of camera files"
        )
    with Image.open(path) as image:
        rgb = np.asarray(image.convert("RGB")) / 255.0
    balance = WHITE_BALANCES[hashlib.sha256(name.encode()).digest()[0] % len(WHITE_BALANCES)]
    packed = unprocess_unit(area_average(rgb, factor), balance, SONY_A7S2_MATRIX)
    return Photo(name, packed, balance, SONY_A7S2_MATRIX)


def area_average(rgb: NDArray[np.float64], factor: int) -> NDArray[np.float64]:
    """Averages squares of factor x factor pixels, in linear light."""
    if factor == 1:
        return rgb
    rows, columns = (side // factor for side in rgb.shape[:2])
    cells = srgb_decode(rgb[: rows * factor, : columns * factor])
    return srgb_encode(cells.reshape(rows, factor, columns, factor, 3).mean(axis=(1, 3)))


def raw_photo(path: Path, *, folder: Path, max_side: int, max_iso: int) -> Photo | None:
    """Reads one camera file; None where its ISO is above `max_iso`."""
    raw = read_raw(path)
    if raw.iso is not None and raw.iso > max_iso:
        return None
    planes = normalize(raw)
    rows, columns = (min(side, max_side) for side in planes.shape[1:])
    top, left = (planes.shape[1] - rows) // 2, (planes.shape[2] - columns) // 2
    packed = torch.from_numpy(planes[:, top : top + rows, left : left + columns].copy())
    name = path.relative_to(folder).as_posix()
    return Photo(name, packed, raw.white_balance, raw.color_matrix)


def evenly(num_files: int, num_wanted: int) -> list[int]:
    """Indices of `num_wanted` files, evenly spaced; all where there are no more."""
    if num_files <= num_wanted:
        return list(range(num_files))
    return [round(i * (num_files - 1) / max(1, num_wanted - 1)) for i in range(num_wanted)]
