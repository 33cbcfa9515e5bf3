"""The pictures: portraits in the public domain with their faces marked by hand, alone, together, and none at all."""

import io

import numpy as np
from PIL import Image, ImageOps

import bundling

ARCHIVE, INSIDE = "face_recognition-1.3.0.tar.gz", "face_recognition-1.3.0/tests/test_images/"
# left, top, right, bottom of the face in pixels of the file: hairline to chin, without ears.
PORTRAITS = {
    "president": ((360, 85, 620, 395), INSIDE + "obama.jpg", "0930e3aa8cae5920329c0c8cbc6a2ab70f47b0e67b432875beaa95cbf7e741f6"),
    "speaker": ((205, 225, 500, 605), INSIDE + "obama2.jpg", "a7efcc907375274796f39646510704aa86672d59f6d5469d69af3c85590976a6"),
    "standing": ((670, 305, 940, 640), INSIDE + "obama3.jpg", "76ac6bf97c36dc2da0ad16a537d6a5ac1b10f48d49aac29a0cca9a17cdbc3ca3"),
    "vice-president": ((425, 165, 710, 553), INSIDE + "biden.jpg", "3c17508bb91554c637a2eabddfae790e5bb1caba93130814fc2ac50be9760c4c"),
    "astronaut": ((182, 76, 270, 181), None, "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5"),
}
FACELESS = {
    "coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    "chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    "rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    "coins.png": "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
    "brick.png": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    "hubble_deep_field.jpg": "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
}
SIDE = 360  # of what is committed


def portrait(name):
    """(RGB picture, face as an array of four numbers)"""
    box, member, digest = PORTRAITS[name]
    if member:
        raw = bundling.fetched(ARCHIVE, member, digest)
    else:
        raw = bundling.source("skimage", "data", "astronaut.png", sha256=digest)
    return Image.open(io.BytesIO(raw)).convert("RGB"), np.array(box, float)


def faceless():
    for name, digest in FACELESS.items():
        raw = bundling.source("skimage", "data", name, sha256=digest)
        yield name.split(".")[0], shrunk(Image.open(io.BytesIO(raw)).convert("RGB"), np.zeros((0, 4)))


def shrunk(image, boxes, side=SIDE):
    ratio = side / max(image.size)
    size = [max(1, round(length * ratio)) for length in image.size]
    scale = np.array([size[0] / image.width, size[1] / image.height] * 2)
    return image.resize(size, Image.Resampling.LANCZOS), boxes * scale


def cropped(image, box, around):
    """A square `around` times as high as the face, the face in its middle as far as the picture allows."""
    middle, half = (box[:2] + box[2:]) / 2, (box[3] - box[1]) * around / 2
    half = min(half, min(image.size) / 2)
    left, top = (int(min(max(m - half, 0), length - 2 * half)) for m, length in zip(middle, image.size))
    side = int(2 * half)
    return image.crop((left, top, left + side, top + side)), box - [left, top, left, top]


def views(name):
    """[(name of the view, (picture, boxes [faces, 4]))] of one portrait."""
    image, box = portrait(name)
    boxes = box[None]
    upper = image.crop((0, 0, image.width, min(image.height, image.width)))
    turned = cropped(ImageOps.mirror(image), np.array([image.width - box[2], box[1], image.width - box[0], box[3]]), 2.6)
    close, far = cropped(image, box, 2.0), cropped(image, box, 3.2)
    grey = ImageOps.grayscale(far[0]).convert("RGB")
    dark = Image.fromarray((np.asarray(upper) * 0.45).astype(np.uint8))
    return [
        ("whole", shrunk(image, boxes)),
        ("upper", shrunk(upper, boxes)),
        ("mirrored", shrunk(turned[0], turned[1][None])),
        ("close", shrunk(close[0], close[1][None])),
        ("grey", shrunk(grey, far[1][None])),
        ("dark", shrunk(dark, boxes)),
    ]


def groups():
    """Two or three people side by side."""
    for number, names in enumerate((("president", "astronaut"), ("vice-president", "speaker", "astronaut"), ("standing", "vice-president"))):
        parts, boxes, left = [], [], 0
        for name in names:
            image, box = portrait(name)
            piece, box = cropped(image, box, 2.8)
            piece, box = shrunk(piece, box[None], 240)
            boxes.append(box + [left, 0, left, 0])
            parts.append(piece)
            left += piece.width
        whole = Image.new("RGB", (left, 240))
        for at, piece in enumerate(parts):
            whole.paste(piece, (sum(p.width for p in parts[:at]), 0))
        yield f"group-{number}", shrunk(whole, np.concatenate(boxes), 480)


def holdout():
    """[(name, bytes of a JPEG, boxes [faces, 4])]"""
    found = []
    for name in PORTRAITS:
        found += [(f"{name}-{view}", *scene) for view, scene in views(name)]
    found += [(name, *scene) for name, scene in groups()]
    found += [(name, *scene) for name, scene in faceless()]
    return [(name, bundling.jpeg(image, 82), boxes) for name, image, boxes in found]


def golden():
    """{name: bytes of a JPEG}; other views than those above, one of a common 4:2:0 kind."""
    found = {}
    for number, name in enumerate(("president", "astronaut", "vice-president")):
        image, box = portrait(name)
        view = cropped(image, box, 2.3)
        found[f"{number:02}-{name}"] = bundling.jpeg(shrunk(*view, 300 + 40 * number)[0])
    left, right = (shrunk(*cropped(*portrait(name), 2.5), 260)[0] for name in ("astronaut", "standing"))
    pair = Image.new("RGB", (540, 300), (90, 90, 90))
    pair.paste(left, (5, 20))
    pair.paste(right, (275, 35))
    found["03-pair"] = bundling.jpeg(pair)
    found["04-nobody"] = bundling.jpeg(next(faceless())[1][0].crop((20, 20, 300, 220)))
    return found
