"""The images, and how they are divided: which image may be used for what.

The order comes from SHA-256 of the image itself, class by class, so the split depends on nothing but the data: no
random generator, no library version. Parts: `golden` and `baseline` travel inside bundles, `holdout` is what the demo
and the tests replay, `train` is the rest. `first_labels` is the corner of `train` that version 1 was given.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits

CLASSES = 10
PIXELS = 64
MAX_PIXEL = 16
PER_CLASS = {"golden": 2, "baseline": 28, "holdout": 50}
FIRST_LABELS_PER_CLASS = 10
SALT = b"edgefleet/digits/split/1\n"


@dataclass(frozen=True)
class Part:
    """Some of the images. `indices` point into scikit-learn's order; `images` is [n, 64] uint8; `labels` is [n]."""

    indices: np.ndarray
    images: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.indices)

    def digest(self):
        """SHA-256 over, image by image in index order, its 64 pixel bytes and its label byte."""
        whole = hashlib.sha256()
        for image, label in zip(self.images, self.labels):
            whole.update(image.tobytes() + bytes([label]))
        return f"sha256:{whole.hexdigest()}"

    def image_digests(self):
        return [image_digest(image) for image in self.images]

    def scaled(self):
        """[n, 64] float64, 0.0 to 1.0: what the training sees. The ONNX files take 0 to 16 (see graph.py)."""
        return self.images.astype(np.float64) / MAX_PIXEL

    def raw(self):
        """[n, 64] float32, 0 to 16: what the ONNX files take."""
        return self.images.astype(np.float32)


def image_digest(image):
    return hashlib.sha256(image.tobytes()).hexdigest()


def split():
    """All parts by name. Raises AssertionError if two of them share an index or an image."""
    source = load_digits()
    images = source.data.astype(np.uint8)
    labels = source.target.astype(np.uint8)
    assert images.shape == (1797, PIXELS) and (images == source.data).all() and images.max() == MAX_PIXEL

    chosen = {name: [] for name in ("train", "first_labels", *PER_CLASS)}
    for digit in range(CLASSES):
        of_class = np.flatnonzero(labels == digit)
        queue = sorted(of_class, key=lambda i: hashlib.sha256(SALT + images[i].tobytes()).digest())
        for name, count in PER_CLASS.items():
            chosen[name] += queue[:count]
            queue = queue[count:]
        chosen["train"] += queue
        chosen["first_labels"] += queue[:FIRST_LABELS_PER_CLASS]

    parts = {}
    for name, indices in chosen.items():
        at = np.array(sorted(indices))
        parts[name] = Part(at, images[at], labels[at])
    assert_disjoint(parts)
    return parts


def assert_disjoint(parts):
    """No index and no image occurs in two of train, baseline, golden, holdout; together they are all 1797."""
    exclusive = ("train", *PER_CLASS)
    seen_index, seen_image = {}, {}
    for name in exclusive:
        for index, digest in zip(parts[name].indices, parts[name].image_digests()):
            assert index not in seen_index, f"index {index} is in {seen_index[index]} and {name}"
            assert digest not in seen_image, f"image {index} of {name} is also in {seen_image[digest]}"
            seen_index[index], seen_image[digest] = name, name
    assert len(seen_index) == 1797, f"{len(seen_index)} of 1797 images were dealt out"
    assert set(parts["first_labels"].indices) <= set(parts["train"].indices), "first_labels leaves train"


def describe(parts):
    """What split.json says: counts, digests, indices and the digest of every image, to check without this code."""
    return {
        "source": "UCI Optical Recognition of Handwritten Digits, as bundled in scikit-learn (1797 images)",
        "part_digest": "sha256 over 64 pixel bytes and 1 label byte per image, in index order",
        "image_digest": "first 16 hex digits of sha256 over 64 pixel bytes",
        "parts": {
            name: {
                "count": len(part),
                "per_class": np.bincount(part.labels, minlength=CLASSES).tolist(),
                "digest": part.digest(),
                "indices": part.indices.tolist(),
                "images": [digest[:16] for digest in part.image_digests()],
            }
            for name, part in parts.items()
        },
    }
