"""The attentive probe of V-JEPA 2's evaluation: a few attention blocks on the frozen model's last tokens.

Paper: V-JEPA 2 (arXiv 2506.09985), section 4.1, in the form of its released code. On all patch tokens x of all frames,
after the final norm, `num_blocks` pre-norm blocks, then one cross-attention with a learned query q:

    x ← x + W_o attention(LN x);   x ← x + MLP(LN x)
    y = q + attention(q, LN x);    y ← y + MLP(LN y)        no norm before this query, no projection after

With `frame_positions` (ours) the tokens know their frame: x ← LN x + p_t first, LN without weights, p starting normal
with 1/2. V-JEPA 2's own tokens are of video, and need none; those of an image model are the same in any order. A start
of 0.02, usual in transformers, is not seen beside LN x, which has 1.

In a causal probe (ours) the tokens are those of the last T frames of the clip, for T the frames of a training clip: a
stream keeps these tokens, and every step reads them all.

y is the clip feature. The released probes count the cross-attention as a block (`num_probe_blocks: 4` is 3 here).
"""

import math
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from ..backbones import Backbone
from ..frames import over_frames
from ..stream_state import Kept
from .branch import Branch
from .config import I2VTunerConfig

INIT_STD = 0.02
POSITION_STD = 0.5


def attention(
    q_BND: torch.Tensor, k_BND: torch.Tensor, v_BND: torch.Tensor, num_heads: int, there_BN: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention of several heads, without projections: (B, N, D) each, of q another N. `there_BN`: which keys there
    are; None: all."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q_BND, k_BND, v_BND))
    mask = None if there_BN is None else there_BN[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


def attend_once(
    q_BD: torch.Tensor,
    x_BND: torch.Tensor,
    key: nn.Linear,
    value: nn.Linear,
    num_heads: int,
    there_BN: torch.Tensor | None = None,
) -> torch.Tensor:
    """What one projected query per clip finds in tokens x: attention(q, key(x), value(x)), (B, D).

    Keys and values of the tokens are never made: q·(W x + b) = (Wᵀq)·x + q·b; and the weights of a head sum to 1, so
    Σ w (W x + b) = W (Σ w x) + b. That is 2·H·D products a token in place of 2·D².
    """
    q_BHK = q_BD.unflatten(-1, (num_heads, -1))
    query_BHD = torch.einsum("bhk,hkd->bhd", q_BHK, key.weight.unflatten(0, (num_heads, -1)))
    constant_BH = torch.einsum("bhk,hk->bh", q_BHK, key.bias.unflatten(0, (num_heads, -1)))
    logits_BHN = query_BHD @ x_BND.mT + constant_BH[..., None]
    if there_BN is not None:
        logits_BHN = logits_BHN.masked_fill(~there_BN[:, None], -math.inf)
    weights_BHN = (logits_BHN * q_BHK.shape[-1] ** -0.5).softmax(-1)
    mean_BHD = weights_BHN @ x_BND
    v_BHK = torch.einsum("bhd,hkd->bhk", mean_BHD, value.weight.unflatten(0, (num_heads, -1)))
    return v_BHK.flatten(1) + value.bias


def mlp(width: int, ratio: float) -> nn.Sequential:
    hidden = int(width * ratio)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class SelfAttentionBlock(nn.Module):
    """A pre-norm transformer block on (B, N, D)."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = mlp(width, mlp_ratio)

    def forward(self, x_BND: torch.Tensor, there_BN: torch.Tensor | None = None) -> torch.Tensor:
        q_BND, k_BND, v_BND = self.qkv(self.norm1(x_BND)).chunk(3, dim=-1)
        x_BND = x_BND + self.out(attention(q_BND, k_BND, v_BND, self.num_heads, there_BN))
        return x_BND + self.mlp(self.norm2(x_BND))


class CrossAttentionBlock(nn.Module):
    """A learned query that reads tokens, (B, N, D) → (B, D)."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.empty(width))
        self.norm1 = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = mlp(width, mlp_ratio)
        nn.init.trunc_normal_(self.query, std=INIT_STD)

    def forward(self, x_BND: torch.Tensor, there_BN: torch.Tensor | None = None) -> torch.Tensor:
        q_BD = self.q(self.query).expand(x_BND.shape[0], -1)  # a symbol in an exported graph, unlike len()
        y_BD = self.query + attend_once(q_BD, self.norm1(x_BND), self.k, self.v, self.num_heads, there_BN)
        return y_BD + self.mlp(self.norm2(y_BD))


class AttentiveProbe(nn.Module):
    """Tokens (B, N, D) → a feature (B, D), V-JEPA 2's `AttentivePooler` with one query.

    Weights start as there: normal with 0.02, biases zero, and what enters the residual stream of block i (from 1 on)
    divided by √(2 i).

    Args:
        width: D.
        num_heads: of all attentions; must divide `width`.
        num_blocks: self-attention blocks before the cross-attention.
        mlp_ratio: hidden width of the MLPs over D.
    """

    def __init__(self, width: int, *, num_heads: int, num_blocks: int = 3, mlp_ratio: float = 4.0):
        super().__init__()
        self.blocks = nn.ModuleList(SelfAttentionBlock(width, num_heads, mlp_ratio) for _ in range(num_blocks))
        self.pool = CrossAttentionBlock(width, num_heads, mlp_ratio)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            for i, block in enumerate(self.blocks, start=1):
                block.out.weight /= math.sqrt(2 * i)
                block.mlp[-1].weight /= math.sqrt(2 * i)
            self.pool.mlp[-1].weight /= math.sqrt(2 * max(1, num_blocks))

    def forward(self, x_BND: torch.Tensor, there_BN: torch.Tensor | None = None) -> torch.Tensor:
        """The feature (B, D) of tokens. `there_BN`: which of them there are; None: all."""
        for block in self.blocks:
            x_BND = block(x_BND, there_BN)
        return self.pool(x_BND, there_BN)

    @classmethod
    def from_vjepa2_state_dict(cls, state_dict: dict[str, torch.Tensor], *, num_heads: int) -> "AttentiveProbe":
        """The probe with the weights of one of V-JEPA 2's released attentive classifiers.

        Args:
            state_dict: of an `AttentiveClassifier` or its pooler. Prefixes up to `pooler.` and the classifier's own
                weights (`linear.*`) are passed over.
            num_heads: 16 in all released probes.

        Raises:
            ValueError: weights are missing, left over or of another shape.
        """
        released = {
            name.rpartition("pooler.")[2]: value for name, value in state_dict.items() if "linear." not in name
        }
        if "query_tokens" not in released or released["query_tokens"].shape[:2] != (1, 1):
            raise ValueError(
                f"This is no attentive probe of V-JEPA 2 with one query: query_tokens of (1, 1, D) is not among "
                f"{sorted(released)[:3]} …"
            )
        depth = 1 + max((int(name.split(".")[1]) for name in released if name.startswith("blocks.")), default=-1)
        query = released.pop("query_tokens").flatten()
        ours = {"pool.query": query}
        for name, value in released.items():
            for theirs, own in (
                ("attn.qkv.", "qkv."),
                ("attn.proj.", "out."),
                ("mlp.fc1.", "mlp.0."),
                ("mlp.fc2.", "mlp.2."),
                ("cross_attention_block.", "pool."),
                ("xattn.", ""),
            ):
                name = name.replace(theirs, own)
            if name.startswith("pool.kv."):
                for part, half in zip("kv", value.chunk(2), strict=True):
                    ours[name.replace(".kv.", f".{part}.")] = half
            else:
                ours[name] = value
        hidden = ours["pool.mlp.0.weight"].shape[0] if "pool.mlp.0.weight" in ours else 4 * len(query)
        probe = cls(len(query), num_heads=num_heads, num_blocks=depth, mlp_ratio=hidden / len(query))
        try:
            probe.load_state_dict(ours)
        except RuntimeError as error:
            raise ValueError(f"These weights are not those of an attentive probe of V-JEPA 2: {error}") from error
        return probe


def nearest_num_heads(wanted: int, width: int) -> int:
    """The number of heads nearest to `wanted` that divides `width`; the larger of two."""
    return min((h for h in range(1, width + 1) if width % h == 0), key=lambda h: (abs(h - wanted), -h))


class LastTokensBranch(Branch):
    """A branch that reads the patch tokens that leave the model, after the final norm. Subclasses write `of_tokens`.

    Args:
        last_frames: how many of the last frames it reads; None: all of the clip.
    """

    reads_final_norm = True

    def __init__(self, num_blocks_of_model: int, num_prefix_tokens: int, last_frames: int | None):
        super().__init__()
        self.levels = [num_blocks_of_model - 1]
        self.num_prefix_tokens = num_prefix_tokens
        self.last_frames = last_frames

    def of_tokens(self, x_BTPD: torch.Tensor, there_BT: torch.Tensor | None = None) -> torch.Tensor:
        """The clip feature (B, D) of frames' tokens. `there_BT`: which frames there are; None: all."""
        raise NotImplementedError(f"{type(self).__name__} has no of_tokens.")

    def with_positions(self, x_BTPD: torch.Tensor, position_TD: torch.Tensor) -> torch.Tensor:
        """In a causal probe the newest frame always has the last position."""
        T = x_BTPD.shape[1]
        position_TD = over_frames(position_TD, T) if self.last_frames is None else position_TD[-T:]
        return x_BTPD + position_TD[:, None]

    def forward(self, levels_LBTPD: torch.Tensor, feature_BD: torch.Tensor) -> torch.Tensor:
        x_BTPD = levels_LBTPD[0] if self.last_frames is None else levels_LBTPD[0, :, -self.last_frames :]
        return self.of_tokens(x_BTPD).to(feature_BD.dtype)

    @property
    def why_not_streaming(self) -> str | None:
        return "reads whole clips; causal=True makes it read the last frames" if self.last_frames is None else None

    def new_state(self, levels_LSTPD: torch.Tensor) -> Kept:
        x_SPD = levels_LSTPD[0, :, 0]
        return {"tokens": x_SPD.new_zeros(x_SPD.shape[0], self.last_frames - 1, *x_SPD.shape[1:])}

    def step(
        self, levels_LSTPD: torch.Tensor, kept: Kept, *, age_S: torch.Tensor, feature_SD: torch.Tensor
    ) -> tuple[torch.Tensor, Kept]:
        x_STPD = torch.cat((kept["tokens"], levels_LSTPD[0]), dim=1)
        frames_back_T = torch.arange(self.last_frames - 1, -1, -1, device=age_S.device)
        there_ST = age_S[:, None] >= frames_back_T
        return self.of_tokens(x_STPD, there_ST).to(feature_SD.dtype), {"tokens": x_STPD[:, 1:].clone()}

    def read(self, x_MND: torch.Tensor) -> torch.Tensor:
        return x_MND[:, self.num_prefix_tokens :]


class AttentiveProbeBranch(LastTokensBranch):
    """All patch tokens of a clip through an `AttentiveProbe`."""

    def __init__(self, config: "AttentiveProbeConfig", backbone: Backbone):
        super().__init__(len(backbone.blocks), backbone.num_prefix_tokens, config.last_frames())
        self.probe = AttentiveProbe(
            backbone.hidden_size,
            num_heads=config.num_heads,
            num_blocks=config.num_blocks,
            mlp_ratio=config.mlp_ratio,
        )
        self.position = None
        if config.frame_positions:
            self.position = nn.Parameter(torch.randn(config.num_frames, backbone.hidden_size) * POSITION_STD)

    def of_tokens(self, x_BTPD: torch.Tensor, there_BT: torch.Tensor | None = None) -> torch.Tensor:
        x_BTPD = x_BTPD.to(self.probe.pool.query.dtype)
        if self.position is not None:
            x_BTPD = self.with_positions(F.layer_norm(x_BTPD, x_BTPD.shape[-1:]), self.position)
        x_BND = x_BTPD.flatten(1, 2)
        there_BN = None if there_BT is None else there_BT.repeat_interleave(x_BTPD.shape[2], dim=1)
        return self.probe(x_BND, there_BN)


@dataclass
class ProbeConfig(I2VTunerConfig):
    """What the configurations of probes share: a branch that reads the last block, and adapts none.

    Args:
        num_heads: of all attentions. Default: 16, or what divides the model's width and is nearest to it.
        causal: it reads the last `num_frames` frames of a clip of any length (ours, not the paper's).
    """

    why_alone = "reads an unchanged frozen model, which the others change"
    why_not_causal = None
    has_branch = True

    num_heads: int | None = field(
        default=None, metadata={"help": "Attention heads. None: 16, or the nearest that divides the width."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.layers_to_transform is not None:
            raise ValueError(f"{self.title} reads the last block, and adapts none: leave out layers_to_transform.")

    def resolve(self, backbone: Backbone) -> None:
        super().resolve(backbone)
        width = backbone.hidden_size
        if self.num_heads is None:
            self.num_heads = nearest_num_heads(16, width)
        if self.num_heads < 1 or width % self.num_heads:
            raise ValueError(
                f"num_heads ({self.num_heads}) must divide the model's width {width}, as "
                f"{nearest_num_heads(self.num_heads, width)} does."
            )

    def last_frames(self) -> int | None:
        """How many of the last frames are read; None: all of the clip."""
        return self.num_frames if self.causal else None

    def adapts(self, layer: int) -> bool:
        return False


@dataclass
class AttentiveProbeConfig(ProbeConfig):
    """Configuration of V-JEPA 2's attentive probe (arXiv 2506.09985): that of `ProbeConfig`, and

    Args:
        num_blocks: self-attention blocks before the cross-attention; V-JEPA 2's evaluation has 3.
        mlp_ratio: hidden width of the MLPs over the model's width.
        frame_positions: whether tokens know the number of their frame (ours).
    """

    method_name = "attentive_probe"
    title = "Attentive probe"
    paper = "arXiv 2506.09985"

    num_blocks: int = field(default=3, metadata={"help": "Self-attention blocks before the cross-attention."})
    mlp_ratio: float = field(default=4.0, metadata={"help": "Hidden width of the MLPs over the model's width."})

    frame_positions: bool = field(default=False, metadata={"help": "Learned positions of the frames (ours)."})

    def __post_init__(self):
        super().__post_init__()
        if self.num_blocks < 0 or not self.mlp_ratio > 0:
            raise ValueError(f"num_blocks ({self.num_blocks}) must be >= 0, and mlp_ratio ({self.mlp_ratio}) > 0")

    def branch_module(self, backbone: Backbone) -> Branch:
        return AttentiveProbeBranch(self, backbone)
