"""The demo page in a real browser: a video is uploaded, its frames and answers appear.

Needs gradio, playwright and the program chromium, which `make test-demo` installs; skipped where they are missing.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import av
import numpy as np
import pytest
from peft import get_peft_model
from tiny import randomize_adapter, tiny_image_model
from transformers import pipeline

from hf_i2v import I2VForVideoClassification, ZeroI2VConfig

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
ROOT = Path(__file__).parent.parent.parent


def write_mjpeg(path: Path) -> Path:
    with av.open(str(path), "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for t in range(20):
            frame = np.full((48, 64, 3), 20 if t < 10 else 200, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(params=[(4, False), (32, True)], ids=["4 frames", "32 frames, causal"])
def demo(request, tmp_path):
    """The address of a running demo, the folder of its model, and how many frames that takes."""
    num_frames, causal = request.param
    tiny_image_model("clip").save_pretrained(tmp_path / "image")
    labels = {0: "<b>left</b>", 1: "right", 2: "up"}  # a label is text, never markup
    model = I2VForVideoClassification.from_image_model(tmp_path / "image", num_frames=num_frames, id2label=labels)
    merged = randomize_adapter(get_peft_model(model, ZeroI2VConfig(causal=causal))).eval().merge_and_unload()
    merged.save_pretrained(tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        ROOT / "examples" / "demo.py",
        "--model",
        tmp_path / "model",
        "--server_port",
        str(port),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GRADIO_TEMP_DIR": str(tmp_path / "uploads")}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            for _ in range(480):  # four minutes, on a busy machine
                try:
                    urlopen(f"http://127.0.0.1:{port}").close()
                    break
                except OSError:
                    assert process.poll() is None, process.stdout.read().decode()[-2000:]
                    time.sleep(0.5)
            else:
                pytest.fail(f"no page at port {port}")
            yield f"http://127.0.0.1:{port}", tmp_path / "model", num_frames
        finally:
            process.terminate()


@pytest.mark.skipif(CHROMIUM is None, reason="needs the program chromium")
def test_upload(demo, video, tmp_path):
    address, model, num_frames = demo
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    rows = pipeline("video-classification", model=str(model))(str(video))
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(120_000)  # a busy machine
        page.goto(address)
        page.set_input_files("input[type=file]", str(video))
        page.wait_for_selector("text=/^[+-][0-9.]+ %$/", timeout=60_000)
        text = page.inner_text("body")
        assert len(re.findall(r"^[+-][\d.]+ %$", text, re.MULTILINE)) == num_frames
        pictures, captions = page.locator(".frames img"), page.locator(".frames figcaption")
        assert pictures.count() == captions.count() == num_frames
        around = page.locator(".frames").bounding_box()
        for number in range(num_frames):  # whole and not hidden: each in its place, none in a box that scrolls
            box, below = pictures.nth(number).bounding_box(), captions.nth(number).bounding_box()
            assert box["width"] / box["height"] == pytest.approx(44 / 28, rel=0.02)
            assert box["y"] + box["height"] <= below["y"] + 1
            assert below["y"] + below["height"] <= around["y"] + around["height"] + 1
        shown = re.findall(r"^(<b>left</b>|right|up)\n(\d+)%$", text, re.MULTILINE)
        assert shown == [(row["label"], f"{100 * row['score']:.0f}") for row in rows]
        page.reload()
        page.set_input_files("input[type=file]", str(broken))
        page.wait_for_selector("text=/This video cannot be read. broken.mp4: not a video file/", timeout=60_000)
        assert str(tmp_path) not in page.inner_text("body")
        browser.close()


@pytest.mark.skipif(CHROMIUM is None, reason="needs the program chromium")
def test_live(demo, tmp_path):
    """Chromium's camera shows a file: dark first, then light."""
    address, _, num_frames = demo
    camera = [
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-video-capture={write_mjpeg(tmp_path / 'camera.mjpeg')}",
    ]
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *camera])
        page = browser.new_context(permissions=["camera"]).new_page()
        page.set_default_timeout(120_000)
        page.goto(address)
        page.get_by_role("tab", name="live").click()
        if num_frames == 4:  # the model that is not causal
            page.wait_for_selector("text=/The model cannot run frame by frame: .* Train it with causal=True/")
        else:
            page.get_by_text("Click to Access Webcam").click()
            page.get_by_role("button", name="capture photo").click()
            said, numbers = page.locator("#now textarea, #now input"), set()
            for _ in range(240):
                if found := re.fullmatch(
                    r"(<b>left</b>|right|up|no action)  \((\d+) %, frame (\d+)\)", said.input_value()
                ):
                    numbers.add(int(found[3]))
                if len(numbers) >= 3:  # one stream, in which the frames are counted
                    break
                page.wait_for_timeout(250)
            assert len(numbers) >= 3
            assert page.inner_text("body").count("<b>left</b>") >= 1  # text, not markup
        browser.close()
