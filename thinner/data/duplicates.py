"""Near-duplicates: pictures that show the same but for a crop, a mirror, another JPEG quality, another brightness.

``find(images)`` answers with pairs, by pixels alone: no network, so nothing depends on what one was trained on.
Similarity of two pictures is the cosine of their whitened pixels (the whitening part of https://arxiv.org/abs/1604.01325,
section 3, with no network in front). Each picture is brought to mean 0 and norm 1, which takes brightness and contrast
out of it, and projected on the leading principal components of these very data, each divided by the root of its
variance:

    e(x) = P^T x,  P = V diag(1 / sqrt(w + 0.001 w[0])),  similarity = <e(x), e(y)> / (|e(x)| |e(y)|)

What all pictures of a set share (every pair of trousers looks like a pair of trousers) then counts little, and what
tells them apart counts much. The floor under w is for the noise of JPEG, which would be blown up else.

1. Search. Of each picture all crops of nine tenths on a grid of five by five, and the whole, each also mirrored, are
   compared with all pictures at 16 px in 64 components; the best `NEIGHBOURS` that reach `CANDIDATE` are kept. This
   costs pictures squared.
2. Confirmation. At up to 32 px in 128 components the crop is moved and scaled in steps of down to 0.6 % of the side,
   as long as the similarity grows; pairs that reach `DUPLICATE` are answered.

What it does not find: rotations other than the mirror, crops much smaller than 0.85 of a side, a cut-out object on
another ground. `benchmarks.cleaning` measures precision and recall; the three bounds are from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from thinner.files.mapped import read_rows

DUPLICATE = 0.984
NEAR = 0.90  # at the best crop of the grid, before it is moved
CANDIDATE = 0.85  # in the search
NEIGHBOURS = 20
SEARCH_SIDE_PX, SIDE_PX = 16, 32
SEARCH_COMPONENTS, COMPONENTS = 64, 128
CROP, OFFSETS = 0.9, 5
SMALLEST_CROP = 0.85
FLOOR = 1e-3  # of the largest variance
LEARNT_FROM = 10_000  # pictures, for the components
IMAGES_PER_COMPONENT = 3  # at least: with few pictures a component would be the very difference of two copies

Images = UInt8[np.ndarray, "all height width channels"]
Thumbs = Float[Tensor, "n channels _ _"]


@dataclass(frozen=True)
class Pair:
    """Two pictures by number, ``first`` < ``second``; ``similarity`` 1.0 is the same in every pixel."""

    first: int
    second: int
    similarity: float
    how: str  # "identical", or what was done to one to match the other: "crop 0.91, mirrored", "" for neither


def find(
    images: Images, *, device: torch.device | str = "cpu", progress: Callable[[int], None] = lambda done: None
) -> list[Pair]:
    """All pairs, the most similar first. ``progress`` is told how many pictures have been compared with all.

    Of several identical pictures the first stands for all: each other one is in a pair with it, and in no other.
    """
    same = identical(images)
    alone = np.flatnonzero(same == np.arange(len(images)))
    pairs = [Pair(int(same[i]), int(i), 1.0, "identical") for i in np.flatnonzero(same != np.arange(len(images)))]
    if len(alone) > 1:
        found = _confirm(images, alone, list(_search(images, alone, device, progress)), device)
        pairs += [Pair(int(alone[i]), int(alone[j]), similarity, how) for (i, j), (similarity, how) in found.items()]
    return sorted(pairs, key=lambda pair: (-pair.similarity, pair.first, pair.second))


def identical(images: Images) -> Int64[np.ndarray, " all"]:
    """For each picture the number of the first that equals it in every pixel: its own, mostly."""
    first: dict[bytes, int] = {}
    digests = (hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest() for image in images)
    return np.array([first.setdefault(digest, i) for i, digest in enumerate(digests)], dtype=np.int64)


def groups(count: int, pairs: Sequence[Pair]) -> Int64[np.ndarray, " count"]:
    """The number of each picture's group: pictures that pairs join, directly or through others."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ends = np.array([(pair.first, pair.second) for pair in pairs], dtype=np.int64).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(ends), dtype=bool), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def leaks(home: Sequence[str], group: Int64[np.ndarray, " n"], splits: Sequence[str]) -> dict[tuple[str, str], int]:
    """(split, later split) -> how many pictures of the later one are in a group with one of the other; the test's
    first. ``home``: the split of each picture. The last of ``splits`` is for pictures in none, and leaks nothing."""
    inside: dict[str, set[int]] = {name: set() for name in splits}
    for name, number in zip(home, group.tolist(), strict=True):
        inside[name].add(number)
    found = {}
    for place in range(len(splits) - 2, 0, -1):
        for first in splits[:place]:
            later = splits[place]
            both = inside[first] & inside[later]
            found[first, later] = sum(
                number in both for name, number in zip(home, group.tolist(), strict=True) if name == later
            )
    return found


# ------------------------------------------------------------------------------- whitened pixels


def _thumbs(images: Images, rows: Int64[np.ndarray, " n"], side: int, device: torch.device | str) -> Thumbs:
    """The pictures at ``side`` px; smaller ones as they are."""
    made = []
    for part in _parts(rows, max(1, 2**24 // images[0].size)):  # large pictures are not all in memory at once
        pixels = torch.from_numpy(read_rows(images, part)).to(device).permute(0, 3, 1, 2).float()
        if pixels.shape[-1] > side:
            pixels = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True, align_corners=False)
        made.append(pixels)
    return torch.cat(made)


def _normal(thumbs: Thumbs) -> Float[Tensor, "n pixels"]:
    flat = thumbs.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    return flat / (flat.norm(dim=1, keepdim=True) + 1e-6)  # one colour all over: zero, which is like nothing


def _components(
    images: Images, rows: Int64[np.ndarray, " chosen"], side: int, most: int, device: torch.device | str
) -> Float[Tensor, "pixels components"]:
    """P of the module's head, learnt from at most `LEARNT_FROM` pictures, evenly spread."""
    from sklearn.utils.extmath import randomized_svd

    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(LEARNT_FROM, len(rows))).astype(int))]
    x = torch.cat([_normal(_thumbs(images, part, side, "cpu")) for part in _parts(chosen, 1024)]).numpy()
    count = min(most, max(8, len(x) // IMAGES_PER_COMPONENT), *x.shape)
    _, s, v = randomized_svd(x, n_components=count, n_iter=4, random_state=0)
    variance = np.square(s) / len(x)
    scale = 1 / np.sqrt(variance + FLOOR * max(variance[0], 1e-12))
    return torch.from_numpy((v.T * scale).astype(np.float32)).to(device)


def _embed(thumbs: Thumbs, components: Float[Tensor, "pixels components"]) -> Float[Tensor, "n components"]:
    whitened = _normal(thumbs) @ components
    return whitened / (whitened.norm(dim=1, keepdim=True) + 1e-6)


def _parts(rows: Any, size: int) -> Iterator[Any]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


# ------------------------------------------------------------------------------- crops


def _resampling(low: Float[Tensor, " n"], size: Float[Tensor, " n"], side: int) -> Float[Tensor, "n side side"]:
    """Matrices that take, from a line of ``side`` pixels, the part from ``low`` on, ``size`` long (ratios of the
    line), bilinearly, and stretch it to ``side`` pixels."""
    centre = torch.arange(side, device=low.device) + 0.5
    x = (low[:, None] * side + centre * size[:, None] - 0.5).clamp(0, side - 1)
    left = x.floor().clamp(0, side - 2)
    weight = (x - left)[..., None]
    left = left.long()[..., None]
    matrix = torch.zeros(len(low), side, side, device=low.device)
    return matrix.scatter_(2, left, 1 - weight).scatter_(2, left + 1, weight)


@dataclass(frozen=True)
class _Crops:
    """One crop for each of n pictures: side, top and left as ratios of the picture's side, and whether mirrored."""

    side: Float[Tensor, " n"]
    top: Float[Tensor, " n"]
    left: Float[Tensor, " n"]
    mirrored: Bool[Tensor, " n"]

    def of(self, thumbs: Thumbs) -> Thumbs:
        size = thumbs.shape[-1]
        down = _resampling(self.top, self.side, size)
        across = _resampling(self.left, self.side, size)
        across = torch.where(self.mirrored[:, None, None], across.flip(1), across)
        return (down[:, None] @ thumbs) @ across.transpose(1, 2)[:, None]

    def moved(self, wider: float, down: float, right: float) -> _Crops:
        """The same crop about its centre, ``wider``, and then shifted, but never over the edge."""
        side = (self.side + wider).clamp(SMALLEST_CROP, 1.0)
        top = (self.top + (self.side - side) / 2 + down).clamp(min=0)
        left = (self.left + (self.side - side) / 2 + right).clamp(min=0)
        return _Crops(side, torch.minimum(top, 1 - side), torch.minimum(left, 1 - side), self.mirrored)

    def taken(self, better: Bool[Tensor, " n"], other: _Crops) -> _Crops:
        """``other`` where it is ``better``."""
        return _Crops(
            torch.where(better, other.side, self.side),
            torch.where(better, other.top, self.top),
            torch.where(better, other.left, self.left),
            torch.where(better, other.mirrored, self.mirrored),
        )


def _grid() -> list[tuple[float, float, float, bool]]:
    """(side, top, left, mirrored) of the search."""
    steps = [(1 - CROP) * step / (OFFSETS - 1) for step in range(OFFSETS)]
    places = [(1.0, 0.0, 0.0), *((CROP, top, left) for top in steps for left in steps)]
    return [(*place, mirrored) for place in places for mirrored in (False, True)]


def _crops(views: Float[Tensor, "n 4"]) -> _Crops:
    return _Crops(views[:, 0], views[:, 1], views[:, 2], views[:, 3] > 0.5)


# ------------------------------------------------------------------------------- search and confirmation

_Candidate = tuple[int, int, int]  # picture, picture that a crop of it is like, number of the crop in `_grid`


def _search(
    images: Images, rows: Int64[np.ndarray, " chosen"], device: torch.device | str, progress: Callable[[int], None]
) -> Iterator[_Candidate]:
    """Pictures by their place in ``rows``."""
    components = _components(images, rows, SEARCH_SIDE_PX, SEARCH_COMPONENTS, device)
    thumbs = torch.cat([_thumbs(images, part, SEARCH_SIDE_PX, device) for part in _parts(rows, 1024)])
    plain = torch.cat([_embed(part, components) for part in thumbs.split(4096)])
    grid = torch.tensor([[float(value) for value in view] for view in _grid()], device=device)
    for start in range(0, len(rows), 512):
        asked = thumbs[start : start + 512]
        count = len(asked)
        crops = [_embed(_crops(view.expand(count, 4)).of(asked), components) for view in grid]
        best = torch.full((count, len(rows)), -1.0, device=device)
        for low in range(0, len(rows), 2048):  # in pieces that stay in a processor's cache
            piece, others = best[:, low : low + 2048], plain[low : low + 2048].T
            for crop in crops:
                torch.maximum(piece, crop @ others, out=piece)
        here = torch.arange(count, device=device)
        best[here, here + start] = -1.0  # a picture is like itself
        likeness, like = best.topk(min(NEIGHBOURS, len(rows)), dim=1)
        of_each = torch.stack([(crop[:, None] * plain[like]).sum(2) for crop in crops])
        view = of_each.argmax(0)
        for i, k in (likeness >= CANDIDATE).nonzero().tolist():
            yield start + i, int(like[i, k]), int(view[i, k])
        progress(start + count)


def _confirm(
    images: Images,
    rows: Int64[np.ndarray, " chosen"],
    candidates: Sequence[_Candidate],
    device: torch.device | str,
) -> dict[tuple[int, int], tuple[float, str]]:
    """(place in ``rows``, larger place) -> similarity and what was done, of those that reach `DUPLICATE`."""
    side = min(SIDE_PX, images.shape[1])
    components = _components(images, rows, side, COMPONENTS, device)
    grid = torch.tensor([[float(value) for value in view] for view in _grid()], device=device)
    found: dict[tuple[int, int], tuple[float, str]] = {}
    for part in _parts(candidates, 2048):
        first, second, view = (np.array(column) for column in zip(*part, strict=True))
        crops = _crops(grid[torch.from_numpy(view).to(device)])
        thumbs = _thumbs(images, rows[first], side, device)
        wanted = _embed(_thumbs(images, rows[second], side, device), components)
        likeness = (_embed(crops.of(thumbs), components) * wanted).sum(1)
        near = likeness >= NEAR
        thumbs, wanted, likeness = thumbs[near], wanted[near], likeness[near]
        crops = _Crops(crops.side[near], crops.top[near], crops.left[near], crops.mirrored[near])
        kept = np.flatnonzero(near.cpu().numpy())
        for step in (0.012, 0.006):
            start = crops
            for wider in (-1.5 * step, 0.0, 1.5 * step):
                for down in (-step, 0.0, step):
                    for right in (-step, 0.0, step):
                        tried = start.moved(wider, down, right)
                        now = (_embed(tried.of(thumbs), components) * wanted).sum(1)
                        crops = crops.taken(now > likeness, tried)
                        likeness = torch.maximum(likeness, now)
        for place, value, width, mirrored in zip(
            kept.tolist(), likeness.tolist(), crops.side.tolist(), crops.mirrored.tolist(), strict=True
        ):
            pair = (int(min(first[place], second[place])), int(max(first[place], second[place])))
            if value >= DUPLICATE and value > found.get(pair, (0.0, ""))[0]:
                found[pair] = min(value, 1.0), _how(width, mirrored)
    return found


def _how(side: float, mirrored: bool) -> str:
    words = [f"crop {side:.2f}"] * (side < 1 - 0.006) + ["mirrored"] * mirrored
    return ", ".join(words)
