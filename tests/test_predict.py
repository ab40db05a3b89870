"""`hf-i2v predict`: the answers of an evaluation, for any files, in three formats."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image
from tiny import randomize_adapter, tiny_image_model, write_moving_texture

from hf_i2v import I2VForVideoClassification, ZeroI2VConfig
from hf_i2v.data import Preprocessing, decode_frames, eval_transform, uniform_indices
from hf_i2v.predict import load_model, main, predict_videos

LABELS = {0: "=left", 1: "right", 2: "up"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An adapter, the model it was merged into, and videos, one of them broken."""
    folder = tmp_path_factory.mktemp("predict")
    tiny_image_model("dinov2", image_size=32).save_pretrained(folder / "image")  # crops are smaller
    look = Preprocessing(size=16, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
    look.image_processor().save_pretrained(folder / "image")
    model = I2VForVideoClassification.from_image_model(folder / "image", num_frames=4, id2label=LABELS)
    model = randomize_adapter(get_peft_model(model, ZeroI2VConfig())).eval()
    model.save_pretrained(folder / "adapter")
    model.merge_and_unload().save_pretrained(folder / "model")
    for name in ("b", "a", "below/c"):
        (folder / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        write_moving_texture(folder / "videos" / f"{name}.mp4")
    (folder / "videos" / "broken.mp4").write_bytes(b"no video at all")
    (folder / "videos" / "notes.txt").write_text("no video")
    return folder


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def names(folder) -> list[str]:
    return [str(folder / "videos" / name) for name in ("a.mp4", "b.mp4", "below/c.mp4", "broken.mp4")]


@torch.no_grad()
def test_answers_are_those_of_the_model(folder, capsys):
    videos = folder / "videos"
    status, out, err = run(
        capsys, folder / "model", videos, videos / "a.mp4", "--format", "json", "--top_k", "2", "--batch_size", "2"
    )
    answers = json.loads(out)
    assert status == 1 and "broken.mp4" in err and "a.mp4" not in err
    assert sorted(one["video"] for one in answers[:4]) == names(folder) and answers[4]["video"] == names(folder)[0]
    model = I2VForVideoClassification.from_pretrained(folder / "model").eval()
    transform = eval_transform(**vars(Preprocessing(**model.config.preprocessing)))
    for one in answers:
        if one["video"].endswith("broken.mp4"):
            assert one["labels"] == one["scores"] == [] and "broken.mp4" in one["error"]
            continue
        frames = decode_frames(one["video"], uniform_indices(num_video_frames=30, num_frames=4))
        expected = model(transform(frames)[None]).logits[0].softmax(-1).topk(2)
        assert one["labels"] == [LABELS[k] for k in expected.indices.tolist()] and one["error"] is None
        assert one["scores"] == pytest.approx(expected.values.tolist(), abs=1e-6)


def test_an_adapter_answers_like_the_merged_model(folder):
    videos = names(folder)[:1]
    (merged,) = predict_videos(load_model(str(folder / "model")), videos, top_k=9)
    (adapted,) = predict_videos(load_model(str(folder / "adapter")), videos, top_k=9)
    assert len(merged.labels) == 3  # all there are
    assert adapted.labels == merged.labels and adapted.scores == pytest.approx(merged.scores, abs=1e-5)


def test_csv_and_table(folder, capsys):
    _, out, _ = run(capsys, folder / "model", folder / "videos", "--format", "csv")
    head, *rows = csv.reader(io.StringIO(out))
    assert head == ["video", "class1", "score1", "class2", "score2", "class3", "score3", "error"]
    rows = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert rows.keys() == set(names(folder))
    assert rows[names(folder)[3]]["class1"] == "" and "broken.mp4" in rows[names(folder)[3]]["error"]
    best = rows[names(folder)[0]]
    assert {best["class1"], best["class2"], best["class3"]} == {"'=left", "right", "up"}  # no formula
    _, out, _ = run(capsys, folder / "model", folder / "videos", "--top_k", "1")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert lines.keys() == rows.keys() and lines[names(folder)[3]].endswith("cannot be read")
    assert f"{100 * float(best['score1']):.1f} % {best['class1'].lstrip(chr(39))}" in lines[names(folder)[0]]


def test_a_folder_of_pictures_is_a_video(folder, tmp_path, capsys):
    frames = np.random.default_rng(0).integers(0, 256, (5, 20, 20, 3), dtype=np.uint8)
    (tmp_path / "clip").mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "clip" / f"{number}.png")
    status, out, _ = run(capsys, folder / "model", tmp_path, "--format", "json")
    assert status == 0 and [one["video"] for one in json.loads(out)] == [str(tmp_path / "clip")]


def test_what_cannot_be_predicted_with(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no video in .*: expected files named \.mp4"):
        main([str(folder / "model"), str(tmp_path)])
    model = I2VForVideoClassification.from_pretrained(folder / "model")
    model.config.preprocessing = None
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="does not say how its pixels are made"):
        load_model(str(tmp_path / "model"))
