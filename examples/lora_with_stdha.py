"""LoRA, or any mergeable tuner of peft, on an image model that sees time: STDHA is native to the model.

    python examples/lora_with_stdha.py --model_name_or_path openai/clip-vit-base-patch16

STDHA moves heads between frames and has no parameters, so the merged result costs what the image model costs.
"""

import argparse

import torch
from peft import LoraConfig, get_peft_model

from hf_i2v import I2VForVideoClassification
from hf_i2v.cost import cost


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--num_frames", type=int, default=8)
    parser.add_argument("--num_labels", type=int, default=400)
    parser.add_argument("--r", type=int, default=16, help="rank of LoRA")
    args = parser.parse_args(argv)

    model = I2VForVideoClassification.from_image_model(
        args.model_name_or_path, num_frames=args.num_frames, num_labels=args.num_labels
    ).with_stdha()
    shape = model.config.clip_shape()  # (B, T, C, h, w)
    print(f"time offsets {model.config.time_offsets}; before: {cost(model, shape)}")

    lora = LoraConfig(r=args.r, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    model = get_peft_model(model, lora)
    print(f"with LoRA: {cost(model, shape)}")
    model(torch.randn(shape), labels=torch.zeros(1, dtype=torch.long)).loss.backward()  # train it as usual

    merged = model.merge_and_unload()
    print(f"merged: {cost(merged, shape)}; time offsets {merged.config.time_offsets}")


if __name__ == "__main__":
    main()
