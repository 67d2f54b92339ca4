#!/usr/bin/env bash
# Pillow 13.0.0: a picture that was saved as a JPEG before cannot be appended to a TIFF.
#
# Two RGB pictures go into one TIFF with save_all and append_images. One expects that saving a copy of one of them as
# a JPEG first changes nothing. Seen: with it, the TIFF ends in a TypeError about a number of arguments; without it,
# or with append_images=[picture.copy()], the TIFF has two pages. The JPEG leaves its encoder's settings on the picture.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install --quiet --disable-pip-version-check pillow==13.0.0 2>/dev/null
env/bin/python - <<'PY'
import PIL
from PIL import Image

first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
first.save("before.tif", save_all=True, append_images=[second])
second.save("second.jpg")
try:
    first.save("after.tif", save_all=True, append_images=[second])
    seen = "no error"
except TypeError as error:
    seen = f"TypeError: {error}"
first.save("copied.tif", save_all=True, append_images=[second.copy()])
pages = [Image.open(name).n_frames for name in ("before.tif", "copied.tif")]
print(f"Pillow {PIL.__version__}: pages before the JPEG and of a copy {pages}; after the JPEG {seen}")
assert pages == [2, 2] and seen.startswith("TypeError")
PY
