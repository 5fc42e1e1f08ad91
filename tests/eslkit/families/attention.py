"""Products of matrices: linear layers, einsum, attention of all kinds."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.eslkit.families.family import DIMS, Family, Written, conv

__all__ = ["FAMILIES", "tokens", "untokens"]

FIXED = ("size there is fixed",)
"""Why positions and heads that stand in parameters are no channels."""
INDEX = ("uses it as an index", "picks positions by index")


def tokens(x: Tensor) -> Tensor:
    """(batch, channels, *positions) -> (batch, positions, channels)."""
    return x.flatten(2).transpose(1, 2)


def untokens(x: Tensor, like: Tensor) -> Tensor:
    """Back to the positions of `like`."""
    return x.transpose(1, 2).reshape(like.shape[0], -1, *like.shape[2:])


def linear(a: int, b: int, dims: int) -> nn.Module:
    def use(m: Written, x: Tensor) -> Tensor:
        return m.down(F.gelu(m.up(x.movedim(1, -1)))).movedim(-1, 1)

    return Written(use, up=nn.Linear(a, 4 * a), down=nn.Linear(4 * a, b))


def matmul(a: int, b: int, dims: int) -> nn.Module:
    """A bare weight, used by matmul and transposed by hand."""

    def use(m: Written, x: Tensor) -> Tensor:
        made = torch.matmul(m.weight.t(), x.flatten(2)) + m.bias[:, None]
        return made.reshape(x.shape[0], -1, *x.shape[2:])

    weight, bias = nn.Parameter(torch.randn(a, b) / a), nn.Parameter(torch.randn(b))
    return Written(use, weight=weight, bias=bias)


def einsum(a: int, b: int, dims: int) -> nn.Module:
    def use(m: Written, x: Tensor) -> Tensor:
        made = torch.einsum("bcn,dc->bdn", x.flatten(2), m.weight)
        return m.out(made.reshape(x.shape[0], -1, *x.shape[2:]))

    return Written(use, weight=nn.Parameter(torch.randn(b, a) / a), out=conv(dims, b, b))


def positions_mixed(a: int, b: int, dims: int) -> nn.Module:
    """Linear layers over positions, then over channels (MLP-Mixer)."""
    count = 8**dims

    def use(m: Written, x: Tensor) -> Tensor:
        x = x + m.over(x.flatten(2)).reshape(x.shape)
        return m.out(x)

    return Written(use, over=nn.Linear(count, count), out=conv(dims, a, b, 3))


def non_local(a: int, b: int, dims: int) -> nn.Module:
    def use(m: Written, x: Tensor) -> Tensor:
        q, k, v = (layer(x).flatten(2) for layer in (m.theta, m.phi, m.g))
        weights = torch.bmm(q.transpose(1, 2), k).softmax(-1)
        made = torch.bmm(v, weights.transpose(1, 2)).reshape(x.shape[0], -1, *x.shape[2:])
        return m.back(x + m.out(made))

    half = a // 2
    layers = {name: conv(dims, a, half) for name in ("theta", "phi", "g")}
    return Written(use, out=conv(dims, half, a), back=conv(dims, a, b), **layers)


def scaled_product(a: int, b: int, dims: int) -> nn.Module:
    """One projection cut into q, k, v and heads by a view; torch's own product."""

    def use(m: Written, x: Tensor) -> Tensor:
        t = tokens(x)
        batch, count, width = t.shape
        q, k, v = m.qkv(t).reshape(batch, count, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        made = F.scaled_dot_product_attention(q, k, v)
        made = made.transpose(1, 2).reshape(batch, count, width)
        return m.out(x + untokens(m.proj(made), x))

    return Written(use, qkv=nn.Linear(a, 3 * a), proj=nn.Linear(a, a), out=conv(dims, a, b))


def head_dim_held(a: int, b: int, dims: int) -> nn.Module:
    """Heads of a size that the module keeps, q, k and v by chunk, a causal mask."""

    def use(m: Any, x: Tensor) -> Tensor:
        t = tokens(x)
        heads = [y.unflatten(-1, (-1, m.head_dim)).transpose(1, 2) for y in m.qkv(t).chunk(3, -1)]
        made = F.scaled_dot_product_attention(*heads, is_causal=True)
        return m.out(untokens(m.proj(made.transpose(1, 2).flatten(2)), x))

    layers = {"qkv": nn.Linear(a, 3 * a), "proj": nn.Linear(a, a), "head_dim": a // 2}
    return Written(use, out=conv(dims, a, b), **layers)


def einsum_heads(a: int, b: int, dims: int) -> nn.Module:
    """Heads first on the channel axis, scores by einsum, scaled by the size of a head."""

    def use(m: Written, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(1, (4, -1)).flatten(3) for y in m.qkv(x).chunk(3, 1))
        scores = torch.einsum("bhdi,bhdj->bhij", q, k) * q.shape[2] ** -0.5
        made = torch.einsum("bhij,bhdj->bhdi", scores.softmax(-1), v)
        return m.out(made.reshape(x.shape))

    return Written(use, qkv=conv(dims, a, 3 * a, bias=False), out=conv(dims, a, b))


def lanes(a: int, b: int, dims: int) -> nn.Module:
    """One projection, cut by a view as (heads, channels of a head, q k v) (ViT)."""

    def use(m: Written, x: Tensor) -> Tensor:
        t = tokens(x)
        q, k, v = m.qkv(t).reshape(*t.shape[:2], 2, -1, 3).permute(4, 0, 2, 1, 3)
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1)
        made = torch.einsum("bhal,bhlv->bhav", scores, v).permute(0, 2, 1, 3).flatten(2)
        return m.out(x + untokens(m.proj(made), x))

    return Written(use, qkv=nn.Linear(a, 3 * a), proj=nn.Linear(a, a), out=conv(dims, a, b))


def lanes_of_maps(a: int, b: int, dims: int) -> nn.Module:
    """The same over maps, heads beside the batch, scaled by the size of a head (ADM, EDM)."""

    def use(m: Written, x: Tensor) -> Tensor:
        count, width = x.shape[0] * 2, x.shape[1] // 2
        q, k, v = m.qkv(x).reshape(count, width, 3, -1).unbind(2)
        scores = torch.einsum("ncq,nck->nqk", q, k / k.shape[1] ** 0.5).softmax(2)
        made = torch.einsum("nqk,nck->ncq", scores, v)
        return m.out(x + m.proj(made.reshape(*x.shape)))

    return Written(use, qkv=conv(dims, a, 3 * a), proj=conv(dims, a, a), out=conv(dims, a, b))


def grouped_queries(a: int, b: int, dims: int) -> nn.Module:
    """Four heads of queries, two of keys and values."""

    def use(m: Written, x: Tensor) -> Tensor:
        t = tokens(x)
        q = m.q(t).unflatten(-1, (4, -1)).transpose(1, 2)
        k, v = (y.unflatten(-1, (2, -1)).transpose(1, 2) for y in m.kv(t).chunk(2, -1))
        k, v = (y.repeat_interleave(2, dim=1) for y in (k, v))
        made = F.scaled_dot_product_attention(q, k, v)
        return untokens(m.proj(made.transpose(1, 2).flatten(2)), x)

    return Written(use, q=nn.Linear(a, a), kv=nn.Linear(a, a), proj=nn.Linear(a, b))


def self_attention(*, batch_first: bool) -> Any:
    def make(a: int, b: int, dims: int) -> nn.Module:
        def use(m: Written, x: Tensor) -> Tensor:
            t = tokens(x) if batch_first else x.flatten(2).permute(2, 0, 1)
            made, _ = m.mix(t, t, t, need_weights=not batch_first)
            made = made.transpose(1, 2) if batch_first else made.permute(1, 2, 0)
            return m.out(x + made.reshape(x.shape))

        mix = nn.MultiheadAttention(a, 2, batch_first=batch_first)
        return Written(use, mix=mix, out=conv(dims, a, b))

    return make


def cross_attention(a: int, b: int, dims: int) -> nn.Module:
    """Queries of one width, keys and values of two others."""

    def use(m: Written, x: Tensor) -> Tensor:
        keys, values = tokens(m.keys(x)), tokens(m.values(x))
        made, _ = m.mix(tokens(x), keys, values)
        return m.out(x + untokens(made, x))

    mix = nn.MultiheadAttention(a, 2, kdim=a // 2, vdim=2 * a, batch_first=True)
    layers = {"keys": conv(dims, a, a // 2), "values": conv(dims, a, 2 * a)}
    return Written(use, mix=mix, out=conv(dims, a, b), **layers)


def attention_extra(a: int, b: int, dims: int) -> nn.Module:
    """Biases as a further key and value, and a key of zeros."""

    def use(m: Written, x: Tensor) -> Tensor:
        made, _ = m.mix(tokens(x), tokens(x), tokens(x))
        return m.out(untokens(made, x))

    mix = nn.MultiheadAttention(a, 2, add_bias_kv=True, add_zero_attn=True, batch_first=True)
    return Written(use, mix=mix, out=conv(dims, a, b))


def transformer(a: int, b: int, dims: int) -> nn.Module:
    """Torch's own encoder and decoder layers, one after the norm and one before."""

    def use(m: Written, x: Tensor) -> Tensor:
        memory = m.encoder(tokens(x))
        return m.out(untokens(m.decoder(tokens(x), memory), x))

    encoder = nn.TransformerEncoderLayer(a, 2, 2 * a, batch_first=True, norm_first=True)
    decoder = nn.TransformerDecoderLayer(a, 2, 2 * a, batch_first=True)
    return Written(use, encoder=encoder, decoder=decoder, out=conv(dims, a, b))


def memory(a: int, b: int, dims: int) -> nn.Module:
    """Learned queries and a class token beside the tokens of the image (Perceiver, ViT)."""

    def use(m: Written, x: Tensor) -> Tensor:
        t = torch.cat([m.token.expand(x.shape[0], -1, -1), tokens(x)], 1)
        t, _ = m.read(m.queries.expand(x.shape[0], -1, -1), t, t)
        made, _ = m.write(tokens(x), t, t)
        return m.out(untokens(made, x))

    layers = {n: nn.MultiheadAttention(a, 2, batch_first=True) for n in ("read", "write")}
    bare = {
        "token": nn.Parameter(torch.randn(1, 1, a)),
        "queries": nn.Parameter(torch.randn(1, 5, a)),
    }
    return Written(use, out=conv(dims, a, b), **layers, **bare)


def transposed_attention(a: int, b: int, dims: int) -> nn.Module:
    """Scores between channels of a head, normalised rows, a temperature a head (Restormer)."""

    def use(m: Written, x: Tensor) -> Tensor:
        made = [y.unflatten(1, (2, -1)).flatten(3) for y in m.deep(m.qkv(x)).chunk(3, 1)]
        q, k = (F.normalize(y, dim=-1) for y in made[:2])
        scores = (q @ k.transpose(-2, -1)) * m.temperature
        return m.out((scores.softmax(-1) @ made[2]).reshape(x.shape))

    deep = conv(dims, 3 * a, 3 * a, 3, groups=3 * a, bias=False)
    temperature = nn.Parameter(torch.ones(2, 1, 1))
    return Written(
        use, qkv=conv(dims, a, 3 * a), deep=deep, out=conv(dims, a, b), temperature=temperature
    )


def linear_attention(a: int, b: int, dims: int) -> nn.Module:
    """Softmax over the channels of q and the positions of k; the product of k and v first."""

    def use(m: Written, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(1, (2, -1)).flatten(3) for y in m.qkv(x).chunk(3, 1))
        context = torch.einsum("bhdn,bhen->bhde", k.softmax(-1), v)
        made = torch.einsum("bhde,bhdn->bhen", context, q.softmax(-2))
        return m.out(made.reshape(x.shape))

    return Written(use, qkv=conv(dims, a, 3 * a, bias=False), out=conv(dims, a, b))


def gram(a: int, b: int, dims: int) -> nn.Module:
    """Scores between all channels, learned weight on the way back (dual attention)."""

    def use(m: Written, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        scores = torch.bmm(flat, flat.transpose(1, 2))
        scores = (scores.amax(-1, keepdim=True) - scores).softmax(-1)
        return m.out(m.gamma * torch.bmm(scores, flat).reshape(x.shape) + x)

    return Written(use, gamma=nn.Parameter(torch.ones(1)), out=conv(dims, a, b, 3))


class Window(nn.Module):
    """Shifted windows of 4x4 with a table of relative positions (Swin)."""

    def __init__(self, width: int, heads: int = 2, window: int = 4, shift: int = 2) -> None:
        super().__init__()
        self.dim, self.heads, self.window, self.shift = width, heads, window, shift
        self.scale = (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.table = nn.Parameter(0.1 * torch.randn((2 * window - 1) ** 2, heads))
        grid = torch.stack(torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij")).flatten(1)
        apart = (grid[:, :, None] - grid[:, None]) + window - 1
        self.register_buffer("index", apart[0] * (2 * window - 1) + apart[1])

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        n, area = self.window, self.window**2
        moved = torch.roll(self.norm(x.permute(0, 2, 3, 1)), (-self.shift, -self.shift), (1, 2))
        windows = moved.view(b, h // n, n, w // n, n, c).permute(0, 1, 3, 2, 4, 5)
        windows = windows.reshape(-1, area, c)
        qkv = self.qkv(windows).reshape(-1, area, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.table[self.index.reshape(-1)].reshape(area, area, -1).permute(2, 0, 1)
        made = (scores + bias.unsqueeze(0)).softmax(-1) @ v
        made = self.proj(made.transpose(1, 2).reshape(-1, area, c))
        made = made.view(b, h // n, w // n, n, n, -1).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, -1)
        made = torch.roll(made, (self.shift, self.shift), (1, 2))
        return x + made.permute(0, 3, 1, 2)


def window(a: int, b: int, dims: int) -> nn.Module:
    return nn.Sequential(Window(a), Window(a, shift=0), conv(dims, a, b))


def additive_gate(a: int, b: int, dims: int) -> nn.Module:
    """Attention U-Net's gate: two projections added, one map of weights."""

    def use(m: Written, x: Tensor) -> Tensor:
        low = F.interpolate(m.low(x), scale_factor=0.5)
        seen = m.see(x) + F.interpolate(m.gate(low), size=x.shape[2:])
        return m.out(x * m.weigh(seen.relu()).sigmoid())

    layers = {"low": conv(dims, a, 2 * a), "gate": conv(dims, 2 * a, a), "see": conv(dims, a, a)}
    return Written(use, weigh=conv(dims, a, 1), out=conv(dims, a, b), **layers)


def codebook(a: int, b: int, dims: int) -> nn.Module:
    """The nearest of a table of vectors (VQ-VAE)."""

    def use(m: Written, x: Tensor) -> Tensor:
        flat = x.movedim(1, -1)
        far = (flat.unsqueeze(-2) - m.table.weight).square().sum(-1)
        taken = m.table(far.argmin(-1)).movedim(-1, 1)
        return m.out(x + (taken - x).detach())

    return Written(use, table=nn.Embedding(6, a), out=conv(dims, a, b))


def far_codes(a: int, b: int, dims: int) -> nn.Module:
    """The same by torch's own distance, which is another operation for more vectors than these."""

    def use(m: Written, x: Tensor) -> Tensor:
        flat = x.movedim(1, -1)
        made = flat
        for table in (m.few, m.many):
            far = torch.cdist(flat.flatten(0, -2), table.weight)
            taken = table(far.argmin(1)).view_as(flat)
            made = made + (taken - flat).detach()
        near = torch.cdist(tokens(x), m.few.weight[None]).neg().softmax(-1) @ m.values.weight
        return m.out(made.movedim(-1, 1) + untokens(near, x))

    tables = {"few": nn.Embedding(6, a), "many": nn.Embedding(30, a), "values": nn.Embedding(6, a)}
    return Written(use, out=conv(dims, a, b), **tables)


FAMILIES = (
    Family("linear", linear, DIMS),
    Family("matmul", matmul, DIMS, 0.35),
    Family("einsum", einsum, DIMS, 0.35),
    Family("positions-mixed", positions_mixed, (1,), 0.4, keeps=FIXED, anywhere=False),
    Family("non-local", non_local, DIMS, 0.35),
    Family("scaled-product", scaled_product, DIMS, mixes=True),
    Family("head-dim-held", head_dim_held, DIMS, mixes=True),
    Family("einsum-heads", einsum_heads, DIMS, mixes=True),
    Family("lanes", lanes, DIMS),
    Family("lanes-of-maps", lanes_of_maps, DIMS, mixes=True),
    Family("grouped-queries", grouped_queries, DIMS, 0.35, mixes=True),
    Family("self-attention", self_attention(batch_first=True), DIMS, mixes=True),
    Family("self-attention-positions-first", self_attention(batch_first=False), DIMS, mixes=True),
    Family("cross-attention", cross_attention, DIMS, mixes=True),
    Family("attention-extra", attention_extra, mixes=True),
    Family("transformer", transformer, DIMS, mixes=True),
    Family("memory", memory, mixes=True, keeps=FIXED),
    Family("transposed-attention", transposed_attention, DIMS, 0.36, mixes=True, keeps=FIXED),
    Family("linear-attention", linear_attention, DIMS, mixes=True),
    Family("gram", gram, DIMS, mixes=True),
    Family("window", window, ratio=0.35, mixes=True, keeps=(*FIXED, *INDEX)),
    Family("additive-gate", additive_gate, DIMS, 0.35),
    Family("far-codes", far_codes, DIMS, 0.5, mixes=True, keeps=INDEX),
    Family("codebook", codebook, DIMS, 0.4, mixes=True, keeps=INDEX),
)
