"""Frame2Freq against its equation written with `torch.fft`."""

import pytest
import torch
from peft import get_peft_model
from tiny import per_frame_feature, randomize_adapter, tiny_image_model
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from hf_i2v import Frame2FreqConfig, STAdapterConfig
from hf_i2v.counting import count_macs, count_parameters
from hf_i2v.methods.frame2freq import FrequencyConv, real_fourier_matrices


@pytest.mark.parametrize("length", [1, 2, 3, 4, 8, 16])
def test_the_matrices_are_the_transform_of_real_signals(length):
    x = torch.randn(2, length, 5, generator=torch.Generator().manual_seed(0))
    forward, inverse = real_fourier_matrices(length)
    spectrum = torch.fft.rfft(x, dim=1)
    torch.testing.assert_close(forward @ x, torch.cat((spectrum.real, spectrum.imag), dim=1), atol=1e-5, rtol=1e-5)
    spectrum = spectrum + 1j * torch.randn(spectrum.shape, generator=torch.Generator().manual_seed(1))
    expected = torch.fft.irfft(spectrum, n=length, dim=1)
    ours = inverse @ torch.cat((spectrum.real, spectrum.imag), dim=1)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_the_convolution_along_frequency():
    generator = torch.Generator().manual_seed(0)
    module = FrequencyConv(6, 3, [1, 2, 4])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x_BTNR = torch.randn(2, 8, 3, 6, generator=generator)
    total = torch.zeros_like(x_BTNR)
    for window in (8, 4, 2):
        for start in range(0, 8, window):
            spectrum = torch.fft.rfft(x_BTNR[:, start : start + window], dim=1)
            parts = [
                F.conv1d(
                    part.permute(0, 2, 3, 1).flatten(0, 1), weight[:, None], bias, padding=1, groups=6
                ).unflatten(0, (2, 3)).permute(0, 3, 1, 2)
                for part, weight, bias in zip((spectrum.real, spectrum.imag), module.weight, module.bias, strict=True)
            ]  # fmt: skip
            total[:, start : start + window] += torch.fft.irfft(torch.complex(*parts), n=window, dim=1)
    torch.testing.assert_close(module(x_BTNR), total / 3, atol=1e-5, rtol=1e-5)
    halves = module(x_BTNR.bfloat16())
    assert halves.dtype == torch.float32  # whatever comes in
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x_BTNR), module(x_BTNR.float())) and module(x_BTNR).dtype == torch.float32


@pytest.mark.parametrize("sites", [["after"], ["before", "between"]])
def test_fresh_it_is_the_image_model(sites, clip_pixels):
    image_model = tiny_image_model("clip")
    expected_BD = per_frame_feature(image_model, clip_pixels)
    config = Frame2FreqConfig(num_frames=4, adapter_width=8, adapter_sites=sites, pooling="after_norm")
    torch.testing.assert_close(get_peft_model(image_model, config)(clip_pixels).pooler_output, expected_BD)


def test_it_has_the_parameters_and_nearly_the_cost_of_st_adapter():
    size = {"hidden_size": 768, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 12}
    trained, macs = {}, {}
    for config in (Frame2FreqConfig(num_frames=8), STAdapterConfig(num_frames=8)):
        with torch.device("meta"):
            model = get_peft_model(CLIPVisionModel(CLIPVisionConfig(**size)), config)
        trained[config.method_name] = count_parameters(model)[1]
        macs[config.method_name] = count_macs(model, (1, 8, 3, 224, 224))
    assert macs["frame2freq"] == pytest.approx(macs["st_adapter"], rel=0.02)
    assert trained["frame2freq"] == pytest.approx(trained["st_adapter"], rel=0.002)


def test_clips_of_another_length(clip_pixels):
    model = randomize_adapter(get_peft_model(tiny_image_model("clip"), Frame2FreqConfig(num_frames=4))).eval()
    assert model(torch.cat([clip_pixels, clip_pixels], dim=1)).pooler_output.shape == (2, 32)
    with pytest.raises(ValueError, match="cuts clips into 2 windows, but the clip has 3 frames"):
        model(clip_pixels[:, :3])
