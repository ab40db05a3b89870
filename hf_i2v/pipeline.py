"""transformers' video-classification pipeline, with frames sampled over the whole video as in training."""

from transformers import VideoClassificationPipeline

from .data import VideoReader, uniform_indices


class I2VVideoClassificationPipeline(VideoClassificationPipeline):
    """An I2V model gets the middle frames of `num_frames` equal segments of the video; transformers' pipeline takes
    the first frames. Other models, and calls with a `frame_sampling_rate`, are handled by transformers."""

    def check_model_type(self, supported_models):
        if self.model.config.model_type != "i2v":  # transformers accepts only its own models
            super().check_model_type(supported_models)

    def preprocess(self, video, num_frames=None, frame_sampling_rate=None):
        if self.model.config.model_type != "i2v" or frame_sampling_rate is not None:
            return super().preprocess(video, num_frames, frame_sampling_rate or 1)
        if isinstance(video, str) and video.startswith(("http://", "https://")):
            from huggingface_hub.utils import httpx

            response = httpx.get(video, follow_redirects=True)
            response.raise_for_status()
            video = response.content
        with VideoReader(video) as reader:
            indices = uniform_indices(
                num_video_frames=reader.num_frames, num_frames=num_frames or self.model.config.num_frames
            )
            frames_TCHW = reader.frames(indices)
        if self.video_processor is not None:
            inputs = self.video_processor([frames_TCHW], do_sample_frames=False, return_tensors="pt")
        else:
            inputs = self.image_processor(list(frames_TCHW.numpy()), return_tensors="pt")
        return inputs.to(self.dtype)
