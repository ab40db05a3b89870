"""What data-parallel training sends per step, and what share of the time is left for computing. Counted and divided,
not measured.

    python benchmarks/scaling.py        # writes scaling.md beside this script; a minute, on the meta device

A ring all-reduce of G bytes over n GPUs sends 2 (n - 1) / n · G bytes from each. G is 4 bytes for each trained
parameter: DDP reduces float32 gradients, and frozen weights have none. A training step computes, per clip, the forward
pass and the gradients of the activations (as many MACs again, from the first adapter on); the gradients of frozen
weights, a third of a full training's work, are never computed. So a step of b clips takes 2 · 2 · MACs · b / F seconds
at F sustained FLOP/s. Nothing is assumed to overlap, so that the shares are lower bounds.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))

from run_video_cls import build_model, parse_args  # noqa: E402

from hf_i2v.cost import cost  # noqa: E402

SUSTAINED = 120e12  # FLOP/s, about 40 % of an A100's bf16 peak
NETWORKS = {"NVLink, 300 GB/s": 300e9, "InfiniBand, 25 GB/s": 25e9, "Ethernet, 1.25 GB/s": 1.25e9}  # sent per GPU
RECIPES = ("zeroi2v_b16_k400", "zeroi2v_l14_k400", "st_adapter_b16_k400", "aim_b16_k400")


def sent_bytes(parameters: int, num_gpus: int) -> float:
    """What each GPU sends in a step."""
    return 2 * (num_gpus - 1) / num_gpus * 4 * parameters


def main() -> None:
    lines = [
        "| recipe | GPUs | clips each | sent per step and GPU: adapters | all weights | computing "
        + "".join(f"| {network} " for network in NETWORKS)
        + "|",
        "|---|---|---|---|---|---|" + "---|" * len(NETWORKS),
    ]
    for name in RECIPES:
        recipe = ROOT / "examples" / "recipes" / f"{name}.yaml"
        args = parse_args(["--config", str(recipe), "--output_dir", "unused", "--dry_run"])
        model = build_model(args, [str(i) for i in range(args.num_labels)])
        counted = cost(model, (1, args.num_frames, 3, 224, 224))
        seconds = 2 * 2 * counted.macs * args.per_device_train_batch_size / SUSTAINED
        for num_gpus in (8, 64, 1024):
            adapters = sent_bytes(counted.trainable_parameters, num_gpus)
            everything = sent_bytes(counted.total_parameters, num_gpus)
            shares = [seconds / (seconds + adapters / speed) for speed in NETWORKS.values()]
            lines.append(
                f"| {name} | {num_gpus} | {args.per_device_train_batch_size} | {adapters / 1e6:.0f} MB "
                f"| {everything / 1e6:.0f} MB | {1e3 * seconds:.0f} ms "
                + "".join(f"| {100 * share:.1f} % " for share in shares)
                + "|"
            )
    text = "\n".join(lines)
    text += (
        "\n\nMade by `python benchmarks/scaling.py`, which states the assumptions: the last columns are the share of "
        f"a step spent computing at {SUSTAINED / 1e12:.0f} TFLOP/s, for a network with that much bandwidth per GPU, "
        "with no overlap of sending and computing.\n"
    )
    Path(__file__).with_suffix(".md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
