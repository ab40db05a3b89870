"""ClipLoader on real videos: order, exactly once, resuming, bad videos; and the assignment on paper for many ranks."""

import inspect
import io
import json
import logging
import random
import shutil
import tarfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Value, Video

from hf_i2v.data import (
    ClipLoader,
    ReadLimits,
    TooManyBadVideosError,
    VideoClips,
    VideoDecodeError,
    epoch_order,
    eval_transform,
    load_videos,
    rank_batches,
    train_transform,
    videos_fingerprint,
)
from hf_i2v.data.failures import FailureLog, without_bad_videos

LOOK = {"size": 8, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
NUM_VIDEOS = 11


@pytest.fixture(scope="module")
def paths(tmp_path_factory, write_video):
    folder = tmp_path_factory.mktemp("loader")
    return [str(write_video(folder / f"{i}.mp4", num_frames=3 + i, height=16, width=16)) for i in range(NUM_VIDEOS)]


def make_clips(paths, train=True):
    """The label is the number of the video."""
    rows = {"video": [{"path": path, "bytes": None} for path in paths], "label": list(range(len(paths)))}
    dataset = Dataset.from_dict(rows, features=Features(video=Video(decode=False), label=Value("int64")))
    transform = train_transform(**LOOK, flip=0.5) if train else eval_transform(**LOOK)
    return VideoClips(dataset, num_frames=2, transform=transform, train=train)


@pytest.fixture
def clips(paths):
    return make_clips(paths)


def with_broken(paths, tmp_path, broken):
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    return [str(tmp_path / "broken.mp4") if i in broken else path for i, path in enumerate(paths)]


def ids(loader):
    return [batch["ids"].tolist() for batch in loader]


def real_ids(loader):
    return [i for batch in loader for i in batch["ids"][~batch["is_padding"]].tolist()]


def test_batches_are_pinned_where_a_gpu_takes_them(clips):
    for device, chosen, pinned in ((None, None, False), ("cpu", None, False), ("cuda:1", None, True)):
        assert ClipLoader(clips, batch_size=4, device=device, pin_memory=chosen)._loader.pin_memory is pinned
    assert ClipLoader(clips, batch_size=4, pin_memory=True)._loader.pin_memory
    assert not ClipLoader(clips, batch_size=4, device="cuda", pin_memory=False)._loader.pin_memory


def test_batches(clips):
    loader = ClipLoader(clips, batch_size=4, shuffle=True, seed=3)
    batches = list(loader)
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 3] and len(loader) == 3
    assert sorted(torch.cat([batch["ids"] for batch in batches]).tolist()) == list(range(NUM_VIDEOS))
    for batch in batches:
        assert set(batch) == {"pixel_values", "labels", "ids", "is_padding"}
        assert torch.equal(batch["ids"], batch["labels"]) and not batch["is_padding"].any()
        for pixels_TChw, index in zip(batch["pixel_values"], batch["ids"], strict=True):
            assert torch.equal(pixels_TChw, clips.clip(int(index), epoch=0)["pixel_values"])


def test_order_depends_on_seed_and_epoch_only(clips):
    def order(seed=0, epoch=0, num_workers=0):
        loader = ClipLoader(clips, batch_size=4, shuffle=True, seed=seed, num_workers=num_workers)
        loader.set_epoch(epoch)
        return ids(loader)

    first = order()
    torch.manual_seed(9)
    assert order() == first == order(num_workers=2)
    assert order(seed=1) != first != order(epoch=1)
    loader = ClipLoader(clips, batch_size=4, shuffle=True)
    assert [ids(loader), ids(loader)] == [first, order(epoch=1)]  # epochs count up by themselves
    assert ids(ClipLoader(clips, batch_size=4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


@pytest.fixture(scope="module")
def sources(paths, tmp_path_factory):
    """The same videos as files, in tars of 4, 1 and 6, and in parquet files of 5 and 6 with row groups of 2."""
    folder = tmp_path_factory.mktemp("shards")
    contents = [Path(path).read_bytes() for path in paths]
    for kind in ("tar", "parquet"):
        (folder / kind).mkdir()
    for start, stop in ((0, 4), (4, 5), (5, 11)):
        with tarfile.open(folder / "tar" / f"{start:02d}.tar", "w") as tar:
            for i in range(start, stop):
                for suffix, content in (("mp4", contents[i]), ("cls", str(i).encode())):
                    member = tarfile.TarInfo(f"{i}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    for start, stop in ((0, 5), (5, 11)):
        table = pa.table({"video": contents[start:stop], "label": list(range(start, stop))})
        pq.write_table(table, folder / "parquet" / f"{start:02d}.parquet", row_group_size=2)
    transform = train_transform(**LOOK, flip=0.5)
    clips = {"files": make_clips(paths)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        for kind in ("tar", "parquet"):
            rows = load_videos(train_dir=folder / kind)["train"]
            clips[kind] = VideoClips(rows, num_frames=2, transform=transform, train=True)
    return clips


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(
    ("source", "shuffle_buffer_size", "workers_before", "workers_after"),
    [("files", None, before, after) for before in (0, 2) for after in (0, 2)]
    + [("files", 4, 2, 0), ("tar", None, 0, 2), ("tar", 3, 0, 0), ("tar", 3, 2, 2), ("parquet", 4, 2, 2)],
)
def test_resume_is_exact(sources, source, shuffle_buffer_size, workers_before, workers_after, world_size):
    """Killed at random batches, also in the middle of a later epoch: ids and pixels of an uninterrupted run."""
    clips = sources[source]

    def make(rank, num_workers=0):
        options = {"rank": rank, "world_size": world_size, "num_workers": num_workers, "drop_last": True}
        return ClipLoader(clips, batch_size=2, shuffle=True, shuffle_buffer_size=shuffle_buffer_size, **options)

    draw = random.Random(f"{world_size} {source} {shuffle_buffer_size}")
    for rank in range(world_size):
        whole = make(rank)
        expected = [batch for _ in range(3) for batch in whole]
        for stop in {1, len(whole), *draw.sample(range(2, 3 * len(whole)), 2)}:
            loader, seen = make(rank, workers_before), []
            while len(seen) < stop:
                for batch in loader:
                    seen.append(batch["ids"])
                    if len(seen) == stop:
                        state = json.loads(json.dumps(loader.state_dict()))
                        break
            resumed = make(rank, workers_after)
            resumed.load_state_dict(state)
            rest = []
            for epoch in range(resumed.epoch, 3):
                resumed.set_epoch(epoch)
                rest += list(resumed)
            assert len(seen) + len(rest) == len(expected)
            for batch, expected_batch in zip(rest, expected[stop:], strict=True):
                for key in ("ids", "pixel_values", "labels"):
                    assert torch.equal(batch[key], expected_batch[key])


def test_resume_on_another_number_of_ranks(clips):
    two = [ClipLoader(clips, batch_size=2, shuffle=True, rank=rank, world_size=2) for rank in range(2)]
    seen = []
    for loader in two:
        for batch in loader:
            seen += batch["ids"].tolist()
            break
    assert two[0].state_dict() == two[1].state_dict()
    three = [ClipLoader(clips, batch_size=1, shuffle=True, rank=rank, world_size=3) for rank in range(3)]
    for loader in three:
        loader.load_state_dict(two[0].state_dict())
        seen += real_ids(loader)
    assert sorted(seen) == list(range(NUM_VIDEOS))


def test_leaving_an_iteration_starts_anew(clips):
    loader = ClipLoader(clips, batch_size=4, num_workers=2)
    next(iter(loader))
    assert ids(loader)[0] == [0, 1, 2, 3]


def test_state_of_another_run_is_refused(clips):
    state = ClipLoader(clips, batch_size=2, shuffle=True, seed=1).state_dict()
    with pytest.raises(ValueError, match=r"seed was 1, is 2; shuffle was True, is False"):
        ClipLoader(clips, batch_size=2, seed=2).load_state_dict(state)


@pytest.mark.parametrize("world_size", [1, 2, 3, 16])
def test_evaluation_sees_each_video_once(paths, world_size):
    clips = make_clips(paths, train=False)
    loaders = [ClipLoader(clips, batch_size=2, rank=rank, world_size=world_size) for rank in range(world_size)]
    per_rank = [list(loader) for loader in loaders]
    assert {len(batches) for batches in per_rank} == {len(loaders[0])}
    for step in zip(*per_rank, strict=True):
        assert len({batch["pixel_values"].shape for batch in step}) == 1  # so that they can be gathered
        assert all(batch["is_padding"].sum() <= 1 for batch in step)
    real = [i for batches in per_rank for batch in batches for i in batch["ids"][~batch["is_padding"]].tolist()]
    assert sorted(real) == list(range(NUM_VIDEOS))


def test_assignment_on_paper():
    """Nothing lost or duplicated, every rank as many batches, for 1 to 1024 ranks and any start."""
    draw = random.Random(1)
    worlds = [1, 2, 3, 5, 7, 8, 64, 333, 1024]
    for world_size in worlds:
        for num_samples in (0, 1, world_size - 1, world_size, draw.randrange(1, 5 * world_size + 99)):
            for batch_size in (1, draw.randrange(2, 9)):
                start = draw.randrange(num_samples + 1)
                for drop_last in (False, True):
                    sizes = {"batch_size": batch_size, "world_size": world_size, "drop_last": drop_last}
                    ranks = [
                        list(rank_batches(num_samples, rank=rank, start=start, **sizes)) for rank in range(world_size)
                    ]
                    assert len({tuple(len(batch) for batch in batches) for batches in ranks}) == 1
                    taken = sorted(i for batches in ranks for batch in batches for i in batch)
                    assert taken == list(range(start, start + len(taken)))
                    if drop_last:
                        assert 0 <= num_samples - start - len(taken) < batch_size * world_size
                    else:
                        assert 0 <= len(taken) - (num_samples - start) < world_size


def test_assignment_of_uneven_shards():
    """Shards of random lengths, random numbers of ranks from 1 to 1024 and of workers, with a buffer and without: an
    epoch takes each sample of each shard once, also where it is left at random and goes on with other ranks."""
    draw = random.Random(2)
    for _ in range(60):
        shards = [draw.randrange(1, draw.choice((3, 40, 400))) for _ in range(draw.randrange(1, 30))]
        samples = [(shard, row) for shard, length in enumerate(shards) for row in range(length)]
        order = epoch_order(
            len(samples),
            seed=draw.randrange(99),
            epoch=draw.randrange(9),
            shuffle=True,
            shuffle_buffer_size=draw.choice((None, 1, draw.randrange(2, 2 * len(samples) + 2))),
        ).tolist()
        taken, start = [], 0
        while start < len(samples):
            world_size, batch_size = draw.choice((1, 2, draw.randrange(1, 1025))), draw.randrange(1, 9)
            sizes = {"batch_size": batch_size, "world_size": world_size, "drop_last": False, "start": start}
            ranks = [list(rank_batches(len(samples), rank=rank, **sizes)) for rank in range(world_size)]
            assert len({len(batches) for batches in ranks}) == 1
            steps = draw.randrange(1, len(ranks[0]) + 1)  # then it is stopped, or the epoch is over
            for batches in ranks:
                taken += [samples[order[at]] for batch in batches[:steps] for at in batch if at < len(samples)]
            start += steps * batch_size * world_size
        assert sorted(taken) == samples


def test_order_through_a_buffer():
    full = epoch_order(1000, seed=0, epoch=0, shuffle=True)
    assert sorted(full.tolist()) == list(range(1000))
    order = epoch_order(1000, seed=0, epoch=0, shuffle=True, shuffle_buffer_size=50)
    assert sorted(order.tolist()) == list(range(1000))
    shift = ((order - torch.arange(1000)) % 1000).unique()  # round a circle, for the order is cut at a random place
    widest_gap = max((shift.roll(-1) - shift).max(), 1000 - shift[-1] + shift[0])
    assert shift.numel() > 30 and 1000 - widest_gap < 2 * 50
    assert not torch.equal(order, epoch_order(1000, seed=0, epoch=1, shuffle=True, shuffle_buffer_size=50))


def test_a_bad_video_is_substituted_in_training(paths, tmp_path, caplog):
    log = tmp_path / "logs" / "bad_videos.jsonl"
    clips = make_clips(with_broken(paths, tmp_path, {4, 5}))
    options = {"batch_size": 4, "max_bad_fraction": 0.2, "bad_videos_file": log}
    for num_workers in (0, 2):
        loader = ClipLoader(clips, **options, num_workers=num_workers)
        assert sorted(real_ids(loader)) == [0, 1, 2, 3, 6, 6, 6, 7, 8, 9, 10]  # the next good one, under its own label
        assert [failure["id"] for failure in loader.failures] == [4, 5]  # 5 was known by then
    assert caplog.text.count("training, epoch 0: 2 failures to read a video, listed in") == 2
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == 4 and lines[0]["path"].endswith("broken.mp4") and "not a video file" in lines[0]["reason"]


def test_bad_videos_are_left_out_of_evaluation(paths, tmp_path, caplog):
    clips = make_clips(with_broken(paths, tmp_path, {0, 1, 10}), train=False)
    loader = ClipLoader(clips, batch_size=2, max_bad_fraction=0.3)
    batches = list(loader)
    assert len(batches) == len(loader) and batches[0]["is_padding"].all()
    assert [failure["id"] for failure in loader.failures] == [0, 1, 10]  # also where another lends its pixels
    assert "evaluation, epoch 0: 3 failures to read a video" in caplog.text
    assert [i for b in batches for i in b["ids"][~b["is_padding"]].tolist()] == list(range(2, 10))
    for batch in batches:  # labels go with the pixels
        for pixels_TChw, label in zip(batch["pixel_values"], batch["labels"], strict=True):
            assert torch.equal(pixels_TChw, clips.clip(int(label), epoch=0)["pixel_values"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_that_is_left_is_reported(paths, tmp_path, caplog, num_workers):
    clips = make_clips(with_broken(paths, tmp_path, {1}))
    for _ in ClipLoader(clips, batch_size=2, max_bad_fraction=0.1, num_workers=num_workers):
        break  # as a training does after its last step
    assert caplog.text.count("training, epoch 0: 1 failures to read a video") == 1


def test_bad_videos_of_all_ranks_and_epochs_count_once(paths, tmp_path):
    options = {"batch_size": 2, "max_bad_fraction": 0.3, "bad_videos_file": tmp_path / "bad.jsonl", "world_size": 2}
    for broken in ({2, 3}, {3, 4}):  # the second time as a run that goes on, where 2 is repaired
        clips = make_clips(with_broken(paths, tmp_path, broken))
        loaders = [ClipLoader(clips, **options, rank=rank) for rank in range(2)]
        for _ in range(2):
            for loader in loaders:
                list(loader)
    assert [loader.num_bad_videos() for loader in loaders] == [3, 3]
    evaluation = ClipLoader(make_clips(paths, train=False), **options)
    assert evaluation.num_bad_videos() == 0 == ClipLoader(clips, batch_size=2).num_bad_videos()


def test_bad_videos_raise_when_asked(paths, tmp_path):
    clips = make_clips(with_broken(paths, tmp_path, {4}))
    with pytest.raises(VideoDecodeError, match=r"broken\.mp4: not a video file"):
        list(ClipLoader(clips, batch_size=4, on_bad_video="error"))


def test_too_many_bad_videos_stop_the_run(paths, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    clips = make_clips(with_broken(paths, tmp_path, {4, 9}))
    log = tmp_path / "bad.jsonl"
    options = {"batch_size": 2, "bad_videos_file": log, "world_size": 2, "max_bad_fraction": 0.1}
    options["min_bad_videos"] = 2
    with pytest.raises(TooManyBadVideosError, match=r"2 of 11 .*max_bad_fraction \(0.1\)(.|\n)*broken\.mp4: not"):
        for loader in [ClipLoader(clips, **options, rank=rank) for rank in range(2)]:
            list(loader)  # a rank counts the others' failures through the file
    options = {"batch_size": 2, "bad_videos_file": log, "max_bad_fraction": 0.2, "min_bad_videos": 1}
    list(ClipLoader(clips, **options))  # earlier runs do not count
    evaluation = make_clips(with_broken(paths, tmp_path, {1}), train=False)
    both = [ClipLoader(c, **options) for c in (clips, evaluation)]
    for loader in both:  # the other data set's failures in the same file do not count either
        list(loader)
    assert [failure["train"] for failure in both[1].failures] == [False]


def test_the_limits_of_bad_videos(tmp_path):
    """Exactly the fraction is allowed, for every fraction of a hundred; a few bad videos never stop a small run."""

    def record(count, num_videos, **limits):
        log = FailureLog(None, num_videos=num_videos, train=True, **limits)
        for i in range(count):
            log.record([{"id": i, "path": f"{i}.mp4", "reason": f"{i}.mp4: torn", "epoch": 0}])

    for percent in range(100):
        record(percent, 100, max_bad_fraction=percent / 100)
        with pytest.raises(TooManyBadVideosError, match=f"{percent + 1} of 100"):
            record(percent + 1, 100, max_bad_fraction=percent / 100)
    record(4, 33, max_bad_fraction=0.01, min_bad_videos=5)
    with pytest.raises(TooManyBadVideosError) as stopped:
        record(5, 33, max_bad_fraction=0.01, min_bad_videos=5)
    assert all(f"{i}.mp4: torn" in str(stopped.value) for i in range(5))
    assert inspect.signature(ClipLoader).parameters["min_bad_videos"].default == 5


def test_listed_bad_videos_are_left_out(paths, tmp_path, caplog):
    """A run's own list is one that the next start takes, and that is still the same run."""
    copies = [shutil.copy(path, tmp_path) for path in paths]
    for number in (2, 7):
        Path(copies[number]).write_bytes(b"torn")
    broken, log = make_clips(copies), tmp_path / "bad_videos.jsonl"
    loader = ClipLoader(broken, batch_size=2, shuffle=True, max_bad_fraction=1, bad_videos_file=log)
    assert len(real_ids(loader)) == NUM_VIDEOS
    before = videos_fingerprint(broken.dataset)
    left = without_bad_videos(DatasetDict(train=broken.dataset), log)["train"]
    assert left["label"] == [0, 1, 3, 4, 5, 6, 8, 9, 10] and "left out 2 of the 2 bad videos" in caplog.text
    assert videos_fingerprint(left) != before == videos_fingerprint(left, before=before, bad_videos=[log])
    caplog.clear()
    rest = VideoClips(left, num_frames=2, transform=broken.transform, train=True)
    following = ClipLoader(rest, batch_size=2, shuffle=True)
    following.load_state_dict({**loader.state_dict(), "samples_taken": 4})
    assert "there were 11 videos, now there are 9" in caplog.text
    assert len(real_ids(following)) == 5 and len(real_ids(following)) == 9
    (tmp_path / "list.jsonl").write_text('{"path": "elsewhere.mp4"}\nno json\n')
    with pytest.raises(ValueError, match=r"list\.jsonl, line 2: expected an object with 'path'"):
        without_bad_videos(DatasetDict(train=left), tmp_path / "list.jsonl")
    log.write_text("".join(json.dumps({"path": row["path"]}) + "\n" for row in left["video"]))
    with pytest.raises(ValueError, match="lists all 9 videos of the split 'train'"):
        without_bad_videos(DatasetDict(train=left), log)


def test_clips_are_dealt_out_one_by_one():
    """As the picture in the module's text has it."""
    deal = {"batch_size": 2, "world_size": 2}
    ranks = [list(rank_batches(10, rank=rank, drop_last=False, **deal)) for rank in range(2)]
    assert ranks == [[[0, 2], [4, 6], [8]], [[1, 3], [5, 7], [9]]]
    assert list(rank_batches(11, rank=1, drop_last=False, start=8, **deal)) == [[9, 11]]  # 11 is padding


def test_unusable_arguments(clips):
    for arguments, message in {
        (("batch_size", 0),): r"batch_size \(0\)",
        (("batch_size", 2), ("rank", 2), ("world_size", 2)): r"rank \(2\) must be in \[0, world_size\)",
        (("batch_size", 8), ("world_size", 2), ("drop_last", True)): "11 videos, a step takes 8 on each of 2",
        (("batch_size", 2), ("max_bad_fraction", 2)): r"max_bad_fraction \(2\)",
        (("batch_size", 2), ("on_bad_video", "ignore")): r"on_bad_video \('ignore'\)",
        (("batch_size", 2), ("shuffle_buffer_size", 0)): r"shuffle_buffer_size \(0\)",
    }.items():
        with pytest.raises(ValueError, match=message):
            ClipLoader(clips, **dict(arguments))


class Hanging:
    """A transform that does not come back in time, as a call of FFmpeg may not."""

    def __call__(self, frames_TCHW, generator):
        time.sleep(4.0)
        return frames_TCHW


def test_a_worker_that_hangs_is_not_waited_for_without_end(paths):
    clips = make_clips(paths)
    clips = VideoClips(clips.dataset, num_frames=2, transform=Hanging(), train=False, limits=ReadLimits(seconds=1.0))
    with pytest.raises(RuntimeError, match=r"timed out after 2\.0 seconds"):
        next(iter(ClipLoader(clips, batch_size=1, num_workers=1, on_bad_video="skip")))
