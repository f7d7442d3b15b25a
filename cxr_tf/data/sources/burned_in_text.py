"""Detect text burned into the borders of a radiograph, which may be a name."""

import numpy as np

# Text is searched for up to this share of the side from a border, at this many pixels per side.
BORDER, WORKING_SIDE = 0.2, 1024

# Smallest difference between text and its surroundings, in grey levels.
CONTRAST = 50.0

# Largest width of a stroke, as a share of the side.
STROKE = 0.015

# Smallest and largest height of letters, as shares of the side, and how many letters in a row make
# a text. Side markers such as R, L or PA have fewer.
HEIGHTS, MIN_LETTERS = (0.008, 0.06), 4


def has_text(pixels: np.ndarray) -> bool:
    """Return whether there are text-like marks near the borders of a radiograph, uint8 [H, W].

    Marks count as text if four or more of similar height, brighter or darker than their
    surroundings, are next to each other in a row. Faint or handwritten text may be missed.
    """
    from PIL import Image
    from scipy import ndimage

    scale = WORKING_SIDE / max(pixels.shape)
    if scale < 1:
        size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
    image = pixels.astype(np.float32)
    side = max(image.shape)
    # Top-hat transforms keep what is narrower than the window: strokes, not ribs.
    window = 2 * int(STROKE * side / 2) + 3
    bright = image - ndimage.grey_opening(image, window)
    dark = ndimage.grey_closing(image, window) - image
    border = np.ones(image.shape, bool)
    rows, columns = (int(BORDER * n) for n in image.shape)
    border[rows : image.shape[0] - rows, columns : image.shape[1] - columns] = False
    return any(_has_row((x > CONTRAST) & border, side, ndimage) for x in (bright, dark))


def _has_row(mask: np.ndarray, side: int, ndimage: object) -> bool:
    """Return whether connected regions of a mask form a row of letters."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))  # type: ignore[attr-defined]
    boxes = [
        (s[0].start, s[0].stop, s[1].start, s[1].stop)
        for s in ndimage.find_objects(labels)  # type: ignore[attr-defined]
    ]
    low, high = max(5, HEIGHTS[0] * side), HEIGHTS[1] * side
    letters = np.array(
        [b for b in boxes if low <= b[1] - b[0] <= high and b[3] - b[2] <= 1.5 * (b[1] - b[0])],
        float,
    ).reshape(-1, 4)
    height = letters[:, 1] - letters[:, 0]
    middle = (letters[:, 0] + letters[:, 1]) / 2
    for k in np.argsort(letters[:, 2]):
        # The letters to the right of this one, each close to the previous one.
        end, count = letters[k, 3], 1
        level = (np.abs(middle - middle[k]) < 0.35 * height[k]) & (
            np.abs(np.log(height / height[k])) < np.log(1.6)
        )
        for other in np.argsort(letters[:, 2]):
            gap = letters[other, 2] - end
            if level[other] and letters[other, 2] > letters[k, 2] and gap > -0.3 * height[k]:
                if gap > 1.2 * height[k]:
                    break
                end, count = letters[other, 3], count + 1
        if count >= MIN_LETTERS:
            return True
    return False
