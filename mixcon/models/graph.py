"""Graph encoders: convolution over fixed adjacency, attention over views, meta-paths with the nodes met on the way.

Shapes: N target nodes, M_t nodes of type t, D_t features, W width, m meta-paths.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mixcon.errors import InputError
from mixcon.models.functional import Make
from mixcon.models.heads import l2_normalize
from mixcon.models.layers import dropout, split_key
from mixcon.ops.linear_map import LinearMap, apply

Norm = Literal["matrix", "row"]
NORM_EPS = 1e-5
FAN_IN = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # ±1/√in
FAN_OUT = jax.nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")  # ±1/√out
XAVIER = jax.nn.initializers.variance_scaling(1.414**2, "fan_avg", "normal")


class GraphViews(NamedTuple):
    """Everything of a heterogeneous graph that an encoder multiplies by; constant matrices, a pytree."""

    target: tuple[LinearMap, ...]  # [N, D] features of the targets: one, or one for each path
    masked: tuple[LinearMap, ...]  # the same with some features dropped
    features: Mapping[str, LinearMap | None]  # [M_t, D_t]; None: one-hot
    contexts: tuple[tuple[LinearMap, ...], ...]  # by path: [N, M_t] mean over the neighbours of a type
    adjacency: tuple[LinearMap, ...]  # by path: [N, N]
    masked_adjacency: tuple[LinearMap, ...]  # the same with some edges dropped


class GraphEncoding(NamedTuple):
    """What an encoder gives for the target nodes."""

    embedding: Array  # [N, W] the fine view, before the projection
    coarse: Array  # [N, P] unit rows: which nodes are joined
    fine: Array  # [N, P] unit rows: how they are joined


def linear(inputs: int, outputs: int, *, use_bias: bool = True, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer whose weights and biases start uniform in ±1/√inputs."""

    def bias(key: Array, shape: Sequence[int], dtype: Any = jnp.float32, **_: Any) -> Array:
        return jax.random.uniform(key, tuple(shape), dtype, -1 / np.sqrt(inputs), 1 / np.sqrt(inputs))

    return nnx.Linear(inputs, outputs, use_bias=use_bias, kernel_init=FAN_IN, bias_init=bias, rngs=rngs)


class GCN(nnx.Module):
    """`S drop(PReLU(S drop(X W₁)) W₂)`, then a norm without scale or shift; S is given, normalised.

    Several matrices stand for their mean. `norm="matrix"` takes one mean and one variance over the whole [N, W] at
    once, "row" those of each row.

    Reference: Kipf, Welling, "Semi-Supervised Classification with Graph Convolutional Networks", 2017, eq. 9.
    """

    def __init__(self, width: int, *, dropout: float = 0.0, norm: Norm = "matrix", rngs: nnx.Rngs):
        if norm not in get_args(Norm):
            raise InputError(f"norm={norm!r} is unknown; choose one of {', '.join(get_args(Norm))}.")
        self.rate, self.axis = dropout, None if norm == "matrix" else -1
        self.first = nnx.Linear(width, width, use_bias=False, kernel_init=FAN_OUT, rngs=rngs)
        self.second = nnx.Linear(width, width, use_bias=False, kernel_init=FAN_OUT, rngs=rngs)
        self.slope = nnx.Param(jnp.array(0.25))  # of the PReLU

    def __call__(
        self, x: Array, adjacency: Sequence[LinearMap], *, train: bool = False, key: Array | None = None
    ) -> Array:
        """[N, W] -> [N, W]."""
        keys = split_key(key, 2)

        def propagate(x: Array) -> Array:
            products = [apply(matrix, x) for matrix in adjacency]
            return sum(products[1:], products[0]) / len(products)

        hidden = propagate(dropout(self.first(x), self.rate, key=keys[0], train=train))
        hidden = jnp.where(hidden >= 0, hidden, self.slope[...].astype(hidden.dtype) * hidden)
        out = propagate(dropout(self.second(hidden), self.rate, key=keys[1], train=train))
        mean = out.mean(self.axis, keepdims=True)
        variance = jnp.square(out - mean).mean(self.axis, keepdims=True)
        return (out - mean) * jax.lax.rsqrt(variance + jnp.asarray(NORM_EPS, out.dtype))


class SemanticAttention(nnx.Module):
    """`Σ_k β_k z_k` with `β = softmax_k( a · mean_nodes tanh(W z_k + b) )`: one weight for each view.

    Reference: Wang et al., "Heterogeneous Graph Attention Network", 2019, eq. 7-9.
    """

    def __init__(self, width: int, *, dropout: float = 0.0, rngs: nnx.Rngs):
        self.rate = dropout
        self.fc = linear(width, width, rngs=rngs)
        self.fc.kernel = nnx.Param(XAVIER(rngs.params(), (width, width), jnp.float32))
        self.query = nnx.Param(XAVIER(rngs.params(), (1, width), jnp.float32))

    def __call__(self, views: Sequence[Array], *, train: bool = False, key: Array | None = None) -> Array:
        """K arrays [N, W] -> [N, W]."""
        query = dropout(self.query[...][0], self.rate, key=key, train=train)
        scores = jnp.stack([jnp.dot(jnp.tanh(self.fc(view)).mean(0), query.astype(view.dtype)) for view in views])
        weights = jax.nn.softmax(scores)
        return sum(weight * view for weight, view in zip(weights, views, strict=True))  # type: ignore[return-value]


class MetaPathContextEncoder(nnx.Module):
    """Two views of the target nodes by one convolution: the meta-paths alone, and with the nodes met along them.

    `h = ELU(drop(W₀ x + b₀))`, `u_i = ELU(h + Σ drop(V c))` with c the means over the neighbours met along path i, and
    the same of the masked features. Fine: attention over `f(u_i, S_i)` and `f(u_i', S_i')`, unit rows. Coarse:
    `f(h, mean_i S_i)`. f is one GCN; both views go through one projection, `tanh` and unit rows.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        features: Mapping[str, int],
        paths: Sequence[Sequence[str]],
        *,
        width: int,
        projection: int,
        dropout: float,
        norm: Norm,
        use_contexts: bool,
        one_draw: bool,
        rngs: nnx.Rngs,
    ):
        self.rate, self.one_draw = dropout, one_draw
        self.paths = tuple(map(tuple, paths)) if use_contexts else ()
        self.count = len(paths)
        self.target = nnx.List([linear(size, width, rngs=rngs) for size in inputs])
        met = {t: size for t, size in features.items() if any(t in path for path in self.paths)}
        self.others = nnx.Dict({t: linear(size, width, rngs=rngs) for t, size in met.items()})
        self.contexts = nnx.List(
            [nnx.List([linear(width, width, use_bias=False, rngs=rngs) for _ in path]) for path in self.paths]
        )
        self.gcn = GCN(width, dropout=dropout, norm=norm, rngs=rngs)
        self.attention = SemanticAttention(width, dropout=dropout, rngs=rngs)
        self.projection = linear(width, projection, rngs=rngs)

    def __call__(self, views: GraphViews, *, train: bool = False, key: Array | None = None) -> GraphEncoding:
        """The encoding of all target nodes."""
        keys = iter(split_key(key, 256))

        def drop(x: Array) -> Array:
            return dropout(x, self.rate, key=next(keys), train=train)

        def convolve(x: Array, *adjacency: LinearMap) -> Array:
            return self.gcn(x, adjacency, train=train, key=next(keys))

        def enter(layer: nnx.Linear, x: LinearMap | None) -> Array:
            kernel = layer.kernel[...]
            assert layer.bias is not None
            return (kernel if x is None else apply(x, kernel)) + layer.bias[...][None]

        plain = [jax.nn.elu(drop(enter(layer, x))) for layer, x in zip(self.target, views.target, strict=True)]
        masked_inputs = [enter(layer, x) for layer, x in zip(self.target, views.masked, strict=True)]
        masked = [jax.nn.elu(x if self.one_draw else drop(x)) for x in masked_inputs]
        others = {t: jax.nn.elu(drop(enter(layer, views.features[t]))) for t, layer in self.others.items()}

        fine = []
        for i in range(self.count):
            both = [h[i] if len(h) > 1 else h[0] for h in (plain, masked)]
            if self.paths:
                met = [
                    layer(apply(mean, others[t]))
                    for layer, mean, t in zip(self.contexts[i], views.contexts[i], self.paths[i], strict=True)
                ]
                first = sum(drop(c) for c in met)
                second = first if self.one_draw else sum(drop(c) for c in met)
                both = [jax.nn.elu(both[0] + first), jax.nn.elu(both[1] + second)]
            fine.append(l2_rows(convolve(both[0], views.adjacency[i])))
            fine.append(l2_rows(convolve(both[1], views.masked_adjacency[i])))
        embedding = self.attention(fine, train=train, key=next(keys))
        coarse = convolve(sum(plain[1:], plain[0]) / len(plain), *views.adjacency)
        ends = [l2_rows(jnp.tanh(self.projection(x))) for x in (coarse, embedding)]
        return GraphEncoding(embedding, *ends)


def l2_rows(x: Array) -> Array:
    """Rows of unit length, in the dtype that comes in."""
    return l2_normalize(x) if x.dtype == jnp.float32 else x / jnp.linalg.norm(x, axis=1, keepdims=True)


def meta_path_context_encoder(
    views: GraphViews,
    paths: Sequence[Sequence[str]],
    *,
    sizes: Mapping[str, int],
    width: int = 64,
    projection: int = 64,
    dropout: float = 0.0,
    norm: Norm = "matrix",
    use_contexts: bool = True,
    one_draw: bool = False,
) -> Make:
    """Constructor of a `MetaPathContextEncoder` for a graph.

    Args:
      views: the graph's matrices (or their shapes).
      paths: for each meta-path the types of its contexts, [["a"], ["s"]].
      sizes: how many nodes of each type there are.
      width: W. projection: P. dropout: rate, of every layer and of the attention's query.
      norm: of the convolution, see `GCN`.
      use_contexts: False leaves out what is met along the paths (u = h).
      one_draw: the masked view shares the dropout of the contexts, and its features have none (DBLP's form).

    Returns:
      For `functional`.

    Example:
      >>> model = functional(meta_path_context_encoder(views, [["a"], ["s"]], sizes={"a": 7167, "s": 60}))
      >>> encoding, extra = model.apply(params, extra, views, key=key, train=True)

    Reference: Yu, Ge, Li, Zhou, "Heterogeneous Graph Contrastive Learning with Meta-path Contexts and Adaptively
      Weighted Negative Samples", 2024 (MEOW, SDM 2023).
    """
    if not 0 <= dropout < 1:
        raise InputError(f"dropout={dropout} must lie in [0, 1).")
    widths = {t: sizes[t] if x is None else x.shape[1] for t, x in views.features.items()}
    return lambda rngs: MetaPathContextEncoder(
        [x.shape[1] for x in views.target],
        widths,
        paths,
        width=width,
        projection=projection,
        dropout=dropout,
        norm=norm,
        use_contexts=use_contexts,
        one_draw=one_draw,
        rngs=rngs,
    )
