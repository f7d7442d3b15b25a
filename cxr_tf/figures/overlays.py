"""Heatmaps as plain pictures over a radiograph, without axes or colour bar."""

import io

import numpy as np
from PIL import Image

LONGEST_SIDE = 1024


def heat_layer(heat: np.ndarray) -> np.ndarray:
    """Render a heatmap, float [S, S], as a colour layer, uint8 [S, S, 4].

    The layer is red above 0, blue below 0 and transparent at 0.
    """
    from matplotlib import colormaps

    share = heat / max(float(np.abs(heat).max()), 1e-12)
    layer = colormaps["RdBu_r"](0.5 + 0.5 * share)
    # Faint heat must not veil the lungs, nor strong heat hide the anatomy below it.
    layer[..., 3] = 0.75 * np.abs(share) ** 0.8
    return np.round(255 * layer).astype(np.uint8)


def overlay(gray: np.ndarray, heat: np.ndarray, *, longest_side: int = LONGEST_SIDE) -> np.ndarray:
    """Overlay a heatmap, float [S, S], on a radiograph, uint8 [H, W]: uint8 [H', W', 3].

    The image keeps its aspect ratio and is shrunk to `longest_side` if it is larger.
    """
    below = shrunk(gray, longest_side).convert("RGBA")
    above = Image.fromarray(heat_layer(heat)).resize(below.size, Image.Resampling.BILINEAR)
    return np.asarray(Image.alpha_composite(below, above).convert("RGB"))


def shrunk(gray: np.ndarray, longest_side: int) -> Image.Image:
    """Shrink a grey image to at most `longest_side` pixels, keeping its aspect ratio."""
    image = Image.fromarray(gray)
    image.thumbnail((longest_side, longest_side))
    return image


def with_caption(picture: np.ndarray, lines: list[str]) -> np.ndarray:
    """Add lines of text on a black strip below a picture, uint8 [H, W, 3]."""
    from PIL import ImageDraw, ImageFont

    width = picture.shape[1]
    size = max(11, width // 40)
    strip = Image.new("RGB", (width, round(size * (1.5 * len(lines) + 0.5))))
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(size)
    for row, line in enumerate(lines):
        draw.text((size // 2, size * (0.4 + 1.5 * row)), line, fill="white", font=font)
    return np.concatenate([picture, np.asarray(strip)])


def png(picture: Image.Image | np.ndarray) -> bytes:
    """Encode a picture as the contents of a PNG file."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
