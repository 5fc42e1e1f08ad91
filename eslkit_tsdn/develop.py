"""Denoised mosaics as pictures: developed at full size, or side by side with what they were.

Developing is LibRaw's: demosaicing (AHD), the camera's white balance and colour matrix, the
camera's orientation, the sRGB curve; no other tone curve and no automatic brightness, so that the
picture is as bright as the data.
"""

from __future__ import annotations

import io

import numpy as np
import rawpy
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageDraw, ImageFont

from eslkit_tsdn.dng import encode_dng
from eslkit_tsdn.quiet import native_stderr_off
from eslkit_tsdn.raw import RawImage, render
from eslkit_tsdn.shot import Shot

__all__ = ["compare", "develop", "encode_png", "encode_tiff"]

_SIDE = 1000
"""Longer side, in pixels, of each picture of a comparison."""
_MARGIN = 24
_TURNS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_270,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_90,),
}
"""What turns the sensor's picture upright, by Exif's orientation."""


def develop(mosaic: NDArray[np.uint16], *, raw: RawImage, shot: Shot) -> NDArray[np.uint16]:
    """Develops a mosaic.

    Args:
        mosaic: H x W, of the size, phase and levels of `raw`.
        raw: the camera's file that it came from.
        shot: its circumstances.

    Returns:
        H x W x 3 sRGB, 0 to 65535, turned upright.
    """
    red, green, blue = raw.white_balance
    file = io.BytesIO(encode_dng(mosaic, raw=raw, shot=shot))
    with native_stderr_off(), rawpy.imread(file) as opened:
        picture: NDArray[np.uint16] = opened.postprocess(  # type: ignore[assignment]
            user_wb=[red, green, blue, green],
            no_auto_bright=True,
            adjust_maximum_thr=0.0,  # white is where the camera says, not where the picture ends
            gamma=(2.4, 12.92),
            output_color=rawpy.ColorSpace.sRGB,  # pyright: ignore[reportAttributeAccessIssue]
            output_bps=16,
        )
    return picture


def encode_tiff(picture: NDArray[np.uint16], *, shot: Shot) -> bytes:
    """An uncompressed TIFF of 16 bits with the sRGB profile, and camera and time of the shot."""
    named = ((271, shot.make), (272, shot.model))
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        picture,
        photometric="rgb",
        software="eslkit",
        datetime=shot.taken,
        iccprofile=_srgb_profile(),
        extratags=[(code, "s", 0, text, True) for code, text in named if text],
        metadata=None,
    )
    return buffer.getvalue()


def encode_png(picture: NDArray[np.uint16]) -> bytes:
    """A PNG of 8 bits with the sRGB profile."""
    eight = ((picture.astype(np.uint32) + 128) // 257).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(eight).save(buffer, "png", icc_profile=_srgb_profile(), compress_level=3)
    return buffer.getvalue()


def compare(
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    *,
    raw: RawImage,
    shot: Shot,
    captions: tuple[str, str],
) -> bytes:
    """Two packed pictures side by side: the whole of them, and below their centres pixel by pixel.

    Both are rendered in the same way, one pixel per Bayer cell.

    Args:
        before: 4 x h x w in [0, 1].
        after: 4 x h x w in [0, 1].
        raw: the camera's file, for its white balance and matrix.
        shot: its circumstances, for the orientation.
        captions: what stands above each.

    Returns:
        A PNG.
    """
    columns = [_upright(_rendered(planes, raw), shot) for planes in (before, after)]
    width, height = columns[0].size
    scale = min(1.0, _SIDE / max(width, height))
    whole = (max(1, round(width * scale)), max(1, round(height * scale)))
    crop = (min(whole[0], width), min(whole[1], height))
    rows = 1 if scale == 1.0 else 2
    sheet = Image.new("RGB", (2 * whole[0] + _MARGIN // 3, _MARGIN + rows * whole[1]), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (picture, caption) in enumerate(zip(columns, captions, strict=True)):
        x = index * (whole[0] + _MARGIN // 3)
        pen.text((x + 4, 4), caption, fill="black", font=ImageFont.load_default(14))
        sheet.paste(picture.resize(whole, Image.Resampling.BOX), (x, _MARGIN))
        if rows == 2:
            left, top = (width - crop[0]) // 2, (height - crop[1]) // 2
            box = (left, top, left + crop[0], top + crop[1])
            sheet.paste(picture.crop(box), (x, _MARGIN + whole[1]))
    buffer = io.BytesIO()
    sheet.save(buffer, "png")
    return buffer.getvalue()


def _rendered(planes: NDArray[np.float32], raw: RawImage) -> Image.Image:
    return Image.fromarray(
        render(planes, white_balance=raw.white_balance, color_matrix=raw.color_matrix)
    )


def _upright(picture: Image.Image, shot: Shot) -> Image.Image:
    for turn in _TURNS.get(shot.orientation, ()):
        picture = picture.transpose(turn)
    return picture


def _srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
