"""Videos of real human motion capture, rendered on the CPU: the material of the comparison.

    python benchmarks/compare/human_motion.py --output_dir motion --task getup --train 300 --validation 60

The motions are DeepMimic's, in the wheel of `pybullet` (pip install pybullet scikit-image scikit-learn). Tasks:

- getup: a person stands up, or the same motions backwards. 2 classes; a single frame cannot tell them apart.
- order: 6 motions, each forwards and backwards. 12 classes; single frames tell the motion, only time the direction.
- actions: which of 15 actions. Appearance and motion both help.

Writes <output_dir>/<task>/{train,validation}/<class>/<number>.mp4: 2 seconds of H.264. What is in the validation set
was never in the training set: other camera sides, other bodies, other photos behind them. A video depends on its
task, class, number, `--height` and `--seed` only. One that exists is left as it is, so a run that was stopped goes on.
"""

import argparse
import importlib.util
import json
import math
import os
import re
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pybullet as p
import pybullet_data
from PIL import Image
from tqdm import tqdm

PYBULLET_DATA = Path(pybullet_data.getDataPath())
ACTIONS = (
    "backflip cartwheel crawl dance_a dance_b getup_facedown getup_faceup jump kick punch roll run spin spinkick walk"
)
REVERSIBLE = "crawl getup_facedown getup_faceup jump roll walk"
TASKS = {  # class → (motions, backwards)
    "getup": {
        "stand_up": (("getup_facedown", "getup_faceup"), False),
        "lie_down": (("getup_facedown", "getup_faceup"), True),
    },
    "order": {
        f"{name}_{direction}": ((name,), direction == "backwards")
        for name in REVERSIBLE.split()
        for direction in ("forwards", "backwards")
    },
    "actions": {name: ((name,), False) for name in ACTIONS.split()},
}
# joint of humanoid.urdf: (first value in a frame of the motion file, number of values: 4 for a quaternion, 1 an angle)
JOINTS = {1: (8, 4), 2: (12, 4), 3: (16, 4), 4: (20, 1), 5: (21, 4), 6: (25, 4), 7: (29, 1)}
JOINTS |= {9: (30, 4), 10: (34, 1), 11: (35, 4), 12: (39, 4), 13: (43, 1)}
QUATERNIONS = [4, *(first for first, count in JOINTS.values() if count == 4)]
SHIRT, TROUSERS = (1, 6, 12), (-1, 0, 3, 4, 9, 10)  # links; the others are skin
FLOOR_UP = p.getQuaternionFromEuler([-math.pi / 2, 0, 0])  # the motions have y up, the plane z
SECONDS, FPS = 2.0, 12


class Split(NamedTuple):
    """What training and validation do not share."""

    bodies: tuple[tuple[float, float], ...]  # thickness of torso and head, of limbs
    photos: tuple[str, ...]  # package/file
    sides: tuple[float, float]  # of each quarter turn around the person, the share that the camera is drawn from


SPLITS = {
    "train": Split(
        bodies=((1.0, 1.0), (1.2, 1.15), (0.85, 0.85), (1.1, 0.8)),
        photos=("sklearn/datasets/images/china.jpg", "skimage/data/coffee.png", "skimage/data/rocket.jpg",
                "skimage/data/grass.png", "skimage/data/brick.png", "skimage/data/camera.png"),
        sides=(0.0, 0.7),
    ),
    "validation": Split(
        bodies=((1.15, 0.95), (0.9, 1.1)),
        photos=("sklearn/datasets/images/flower.jpg", "skimage/data/motorcycle_left.png", "skimage/data/gravel.png"),
        sides=(0.7, 1.0),
    ),
}  # fmt: skip


class Motion:
    """A motion file as poses at any time: linear between its frames. What loops goes on from where it ended."""

    def __init__(self, name: str):
        motion = json.loads((PYBULLET_DATA / "data" / "motions" / f"humanoid3d_{name}.txt").read_text())
        self.frames = np.array(motion["Frames"])
        self.times = np.concatenate([[0], np.cumsum(self.frames[:-1, 0])])
        self.duration, self.loops = self.times[-1], motion["Loop"] == "wrap"
        for i in QUATERNIONS:  # q and -q are the same rotation: take the one nearer to the frame before
            for before, after in zip(self.frames, self.frames[1:], strict=False):
                after[i : i + 4] *= -1 if before[i : i + 4] @ after[i : i + 4] < 0 else 1

    def pose(self, seconds: float) -> np.ndarray:
        cycle, seconds = divmod(seconds, self.duration) if self.loops else (0, min(max(seconds, 0), self.duration))
        i = min(np.searchsorted(self.times, seconds, side="right") - 1, len(self.frames) - 2)
        share = (seconds - self.times[i]) / (self.times[i + 1] - self.times[i])
        pose = (1 - share) * self.frames[i] + share * self.frames[i + 1]
        pose[[1, 3]] += cycle * (self.frames[-1] - self.frames[0])[[1, 3]]
        return pose

    def window(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Two seconds of poses at a random speed. Of a motion that does not loop at least three quarters are seen."""
        count = round(SECONDS * FPS)
        if self.loops:
            start, length = rng.uniform(0, self.duration), SECONDS * rng.uniform(0.8, 1.3)
        else:
            length = self.duration * rng.uniform(0.75, 1.0)
            start = rng.uniform(0, self.duration - length)
        return [self.pose(start + length * i / (count - 1)) for i in range(count)]


class Person:
    """A body in a simulator of its own, on a floor. Its colours and the floor's are drawn anew for each video."""

    def __init__(self, torso: float, limbs: float):
        self.world = p.connect(p.DIRECT)
        at_world = {"physicsClientId": self.world}
        text = (PYBULLET_DATA / "humanoid" / "humanoid.urdf").read_text()
        for shape, thickness in (("sphere", torso), ("capsule", limbs)):  # no XML parser takes the file: it ends in \0
            text = re.sub(
                f'(<{shape}[^>]* radius *= *")([^"]+)', lambda m, k=thickness: f"{m[1]}{k * float(m[2])}", text
            )
        self.floor = p.loadURDF(str(PYBULLET_DATA / "plane.urdf"), [0, 0, 0], FLOOR_UP, useMaximalCoordinates=True,
                                **at_world)  # fmt: skip
        with tempfile.NamedTemporaryFile("w", suffix=".urdf") as file:
            file.write(text)
            file.flush()
            self.body = p.loadURDF(file.name, [0, 0.9, 0], globalScaling=0.25, useFixedBase=True, **at_world)

    def colour(self, rng: np.random.Generator) -> None:
        skin, shirt, trousers = rng.uniform(0, 1, (3, 3))
        for link in range(-1, p.getNumJoints(self.body, physicsClientId=self.world)):
            rgb = trousers if link in TROUSERS else shirt if link in SHIRT else skin
            p.changeVisualShape(self.body, link, rgbaColor=[*rgb, 1], physicsClientId=self.world)
        rgb = rng.uniform(0.25, 0.75, 3)
        p.changeVisualShape(self.floor, -1, textureUniqueId=-1, rgbaColor=[*rgb, 1], physicsClientId=self.world)

    def set_pose(self, pose: np.ndarray) -> None:
        def rotation(i: int) -> list[float]:
            w, x, y, z = pose[i : i + 4] / np.linalg.norm(pose[i : i + 4])
            return [x, y, z, w]

        p.resetBasePositionAndOrientation(self.body, pose[1:4], rotation(4), physicsClientId=self.world)
        for joint, (i, count) in JOINTS.items():
            value = rotation(i) if count == 4 else pose[i : i + 1]
            p.resetJointStateMultiDof(self.body, joint, value, physicsClientId=self.world)


def render(person: Person, poses: list[np.ndarray], photo_hw3: np.ndarray, sides, rng) -> list[np.ndarray]:
    """The poses from a random side, before a photo and as large. The camera follows the person along the ground."""
    height, width = photo_hw3.shape[:2]
    person.colour(rng)
    quarter, share = rng.integers(4), rng.uniform(*sides)
    azimuth, elevation, distance = (quarter + share) * math.pi / 2, rng.uniform(0.05, 0.6), rng.uniform(2.0, 2.6)
    eye = distance * np.array([math.cos(azimuth) * math.cos(elevation), math.sin(elevation),
                               math.sin(azimuth) * math.cos(elevation)])  # fmt: skip
    roots, follow = np.array([pose[1:4] for pose in poses]), rng.uniform(0.8, 1.0)
    shift, light, ambient = rng.uniform(-0.1, 0.1, 3), rng.uniform([-2, 1, -2], [2, 3, 2]), rng.uniform(0.35, 0.65)
    mirrored, floor_share = rng.random() < 0.5, rng.uniform(0, 0.8)
    lens = p.computeProjectionMatrixFOV(44, width / height, 0.1, 30)
    images = []
    for pose, root in zip(poses, roots, strict=True):
        person.set_pose(pose)
        target = follow * root + (1 - follow) * roots.mean(0) + shift
        target[1] = 0.7 + shift[1]
        view = p.computeViewMatrix(list(target + eye), list(target), [0, 1, 0])
        *_, pixels, _, objects = p.getCameraImage(
            width, height, view, lens, lightDirection=list(light), shadow=1, lightAmbientCoeff=ambient,
            lightDiffuseCoeff=0.7, lightSpecularCoeff=0.05, renderer=p.ER_TINY_RENDERER,
            physicsClientId=person.world)  # fmt: skip
        image = np.reshape(pixels, (height, width, 4))[..., :3].astype(np.float32)
        objects = np.reshape(objects, (height, width, 1))
        seen_floor = np.where(objects == person.floor, floor_share, 0)  # so that the shadow is on the photo too
        image = np.where(objects == person.body, image, seen_floor * image + (1 - seen_floor) * photo_hw3)
        image = image.round().astype(np.uint8)
        images.append(np.ascontiguousarray(image[:, ::-1] if mirrored else image))
    return images


def part_of_photo(name: str, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of a photo that a package has, muted, (height, width, 3)."""
    package, _, file = name.partition("/")
    photo = Image.open(Path(importlib.util.find_spec(package).submodule_search_locations[0]) / file).convert("RGB")
    share = rng.uniform(0.4, 1.0) * min(photo.width / width, photo.height / height)
    w, h = share * width, share * height
    left, top = rng.uniform(0, photo.width - w), rng.uniform(0, photo.height - h)
    part = photo.resize((width, height), box=(left, top, left + w, top + h), reducing_gap=2)
    contrast, tone = rng.uniform(0.4, 0.8), rng.uniform(60, 190)
    return contrast * np.asarray(part, np.float32) + (1 - contrast) * tone


def write_video(path: Path, images: list[np.ndarray]) -> None:
    """H.264, written beside and renamed, so that a file is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with av.open(str(partial), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=FPS, options={"crf": "20", "preset": "veryfast", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], "yuv420p"
        for image in images:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--train", type=int, default=40, help="videos of a class")
    parser.add_argument("--validation", type=int, default=20, help="videos of a class")
    parser.add_argument("--height", type=int, default=112, help="of the videos, in pixels; 9/7 as wide")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    people = {split: [Person(*body) for body in facts.bodies] for split, facts in SPLITS.items()}
    motions = {name: Motion(name) for names, _ in TASKS[args.task].values() for name in names}
    videos = [  # number by number, so that a part of the work has all classes
        (split, label, number)
        for split, count in (("train", args.train), ("validation", args.validation))
        for number in range(count)
        for label in TASKS[args.task]
    ]
    for split, label, number in tqdm(videos, unit="video"):
        path = args.output_dir / args.task / split / label / f"{number:04d}.mp4"
        if path.exists():
            continue
        names, backwards = TASKS[args.task][label]
        rng = np.random.default_rng([args.seed, zlib.crc32(f"{args.task} {split} {label}".encode()), number])
        facts = SPLITS[split]
        poses = motions[names[number % len(names)]].window(rng)
        photo = part_of_photo(facts.photos[rng.integers(len(facts.photos))], args.height, args.height * 9 // 7, rng)
        images = render(people[split][rng.integers(len(facts.bodies))], poses, photo, facts.sides, rng)
        write_video(path, images[::-1] if backwards else images)


if __name__ == "__main__":
    main()
