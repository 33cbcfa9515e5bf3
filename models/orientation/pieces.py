"""The labelled pictures: short pieces of printed lines, cut from two scans, each upright and upside down.

The lines were found by looking at the scans (rows of pixels below); a line is cut between words where a piece would
become wider than four times its height, which is the shape the model reads.
"""

import hashlib
import io

import numpy as np
from PIL import Image

import bundling

RATIO = 4.0
# (left, right, top, bottom) in pixels. `novel`: page 22 of "Adventures of Huckleberry Finn" (1885). Row 397 to 418 is
# left out: it has a word that nobody should have to read in a test.
NOVEL_ROWS = (
    (197, 218), (225, 242), (254, 275), (282, 299), (311, 332), (340, 357), (368, 385), (425, 447), (454, 475),
    (481, 503), (510, 532), (537, 558), (573, 588), (597, 613), (624, 642), (652, 675), (680, 703), (709, 731),
    (737, 756), (765, 785), (794, 816), (821, 844),
)  # fmt: skip
NOVEL = [(407, 778, top - 4, bottom + 4) for top, bottom in NOVEL_ROWS]
NOVEL += [(38, 778, top - 3, bottom + 3) for top, bottom in ((850, 875), (878, 902), (908, 934), (936, 963))]
SHEET = [(5, 294, 10, 36), (5, 378, 48, 65), (5, 378, 65, 83), (5, 378, 83, 101), (5, 378, 100, 119), (5, 172, 116, 136)]


def novel():
    """The scan is the one JPEG inside a PDF of OCRmyPDF's tests."""
    pdf = bundling.fetched("ocrmypdf-16.10.4.tar.gz", "ocrmypdf-16.10.4/tests/resources/c02-22.pdf", "ae6a3bec3809e1540911bda42dabb42ffbd63cfda17e74a5c3e9dcd87129462a")
    start = pdf.index(b"\xff\xd8\xff")
    return Image.open(io.BytesIO(pdf[start : pdf.index(b"endstream", start)])).convert("RGB")


def sheet():
    """A photographed page of scikit-image's documentation."""
    raw = bundling.source("skimage", "data", "page.png", sha256="341a6f0a61557662b02734a9b6e56ec33a915b2c41886b97509dedf2a43b47a3")
    return Image.open(io.BytesIO(raw)).convert("RGB")


def cut(scan, lines):
    """Pictures of at most RATIO times their height where words allow it."""
    found = []
    for left, right, top, bottom in lines:
        line = scan.crop((left, top, right, bottom))
        grey = np.asarray(line.convert("L")).astype(float)
        paper = np.median(grey, axis=0)
        ink = (grey < np.minimum(paper, paper.mean()) - 35).any(axis=0)
        for first, last in grouped(words(ink), RATIO * (bottom - top)):
            found.append(line.crop((max(first - 3, 0), 0, min(last + 3, line.width), line.height)))
    return found


def words(ink):
    """(first, past the last) column of runs of ink with gaps under 6 columns inside."""
    columns = np.flatnonzero(ink)
    breaks = np.flatnonzero(np.diff(columns) > 5)
    starts, ends = np.r_[columns[0], columns[breaks + 1]], np.r_[columns[breaks], columns[-1]] + 1
    return list(zip(starts.tolist(), ends.tolist()))


def grouped(runs, most):
    groups = [list(runs[0])]
    for first, last in runs[1:]:
        if last - groups[-1][0] <= most:
            groups[-1][1] = last
        else:
            groups.append([first, last])
    # A lone dash or initial says nothing about up and down.
    return [(first, last) for first, last in groups if last - first >= most / 6]


def pictures(scan, lines):
    """[(bytes of a JPEG, 0 upright or 1 upside down)]; both ways of every piece, ordered by their content."""
    found = []
    for piece in cut(scan, lines):
        found += [(bundling.jpeg(piece), 0), (bundling.jpeg(piece.rotate(180)), 1)]
    return sorted(found, key=lambda pair: hashlib.sha256(pair[0]).digest())


def png(image):
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def turned_by_exif(image):
    """Pixels upside down, and the note of the camera that says so: a viewer shows it upright."""
    exif = Image.Exif()
    exif[0x0112] = 3
    return bundling.jpeg(image.rotate(180), exif=exif)
