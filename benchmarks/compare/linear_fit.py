"""The control without a video model: a linear fit to convergence on the frozen image model's CLS token of each frame.

    features of a clip:   mean over frames,  mean of the last half − mean of the first half

The difference knows the order of the frames, so it tells what the frozen features hold about time.
"""

import torch
from torch.nn import functional as F
from transformers import AutoModel


@torch.no_grad()
def features(model_name_or_path: str, batches, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 2·D) and labels (N,) of batches of clips, computed on a device."""
    model = AutoModel.from_pretrained(model_name_or_path).eval().to(device)
    rows, labels = [], []
    for clips_BTChw, label_B in batches:
        half = clips_BTChw.shape[1] // 2
        cls_MD = model(clips_BTChw.flatten(0, 1).to(device)).last_hidden_state[:, 0].cpu()
        cls_BTD = cls_MD.unflatten(0, clips_BTChw.shape[:2])
        rows.append(torch.cat((cls_BTD.mean(1), cls_BTD[:, half:].mean(1) - cls_BTD[:, :half].mean(1)), dim=-1))
        labels.append(label_B)
    return torch.cat(rows), torch.cat(labels)


def fit(x_NF: torch.Tensor, labels_N: torch.Tensor, num_classes: int, l2: float = 1e-2) -> torch.nn.Module:
    """Multinomial logistic regression on standardised features, by L-BFGS."""
    mean_F, std_F = x_NF.mean(0), x_NF.std(0) + 1e-6
    linear = torch.nn.Linear(x_NF.shape[1], num_classes)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=300, line_search_fn="strong_wolfe")
    normal_NF = (x_NF - mean_F) / std_F

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(linear(normal_NF), labels_N) + l2 * linear.weight.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():  # so that it takes features as they are
        linear.weight /= std_F
        linear.bias -= linear.weight @ mean_F
    return linear
