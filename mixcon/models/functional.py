"""From an NNX module to pure functions of plain dicts: the only file that splits and merges modules.

A module is built once, abstractly, to learn its structure; after that there are only nested dicts of
arrays with string keys, so that sharding rules, optimiser masks and checkpoints all speak of the same
readable paths ("image/blocks/0/attn/qkv/kernel").
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
from flax import nnx
from jax import Array

from mixcon.errors import InputError

Params = dict[str, Any]  # nested dict of float32 arrays: what the optimiser sees
Extra = dict[str, Any]  # nested dict of the other state (batch statistics): updated by `apply(train=True)`
Make = Callable[[nnx.Rngs], nnx.Module]


class Apply(Protocol):
    """The type of `Model.apply`."""

    def __call__(
        self,
        params: Params,
        extra: Extra,
        *inputs: Any,
        key: Array | None = None,
        train: bool = False,
        method: str | Callable[..., Any] | None = None,
    ) -> tuple[Any, Extra]: ...


class Model(NamedTuple):
    """A network as two pure functions.

    Attributes:
        init: `init(key) -> (params, extra)`; traceable, so `jax.eval_shape(init, key)` costs no memory and
            `jax.jit(init, out_shardings=...)` builds every parameter where it will live.
        apply: `apply(params, extra, *inputs, key=None, train=False, method=None) -> (outputs, extra)`.
            `key` feeds dropout and the like (no randomness is stored); with `train=False` the outputs are
            deterministic and `extra` comes back as it was. `method` names another method of the module, or is a
            function of the module: `method(module, *inputs, train=..., key=...)`.
    """

    init: Callable[[Array], tuple[Params, Extra]]
    apply: Apply


def functional(make: Make) -> Model:
    """Turns a module constructor into a `Model`.

    Args:
        make: builds the module from `nnx.Rngs`; its methods take `(*inputs, train: bool, key: Array | None)`.

    Returns:
        The `Model`. The structure is derived here once, without allocating any parameter.

    Raises:
        InputError: the module stores random state, or (in `apply`) params or extra are not this model's.

    Example:
        >>> model = functional(vit("Ti/8", image_size=32, depth=2))
        >>> params, extra = model.init(jax.random.key(0))
        >>> features, extra = model.apply(params, extra, images, key=jax.random.key(1), train=True)
    """
    graphdef, *abstract = _split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    templates = [dict(nnx.to_flat_state(state)) for state in abstract]
    stored = [_name(path) for path, leaf in templates[1].items() if isinstance(leaf, nnx.RngState)]
    if stored:
        raise InputError(
            f"The module stores random state ({', '.join(stored)}). Derive randomness from the `key` argument instead: "
            "stored keys would break exact resuming."
        )

    def init(key: Array) -> tuple[Params, Extra]:
        _, params, extra = _split(make(nnx.Rngs(key)))
        return _to_dict(params), _to_dict(extra)

    def apply(
        params: Params,
        extra: Extra,
        *inputs: Any,
        key: Array | None = None,
        train: bool = False,
        method: str | Callable[..., Any] | None = None,
    ) -> tuple[Any, Extra]:
        module = nnx.merge(graphdef, _to_state(params, templates[0], "params"), _to_state(extra, templates[1], "extra"))
        if callable(method):
            outputs = method(module, *inputs, train=train, key=key)
        else:
            outputs = getattr(module, method or "__call__")(*inputs, train=train, key=key)
        if not train or not extra:
            return outputs, extra
        _, _, state = _split(module)
        return outputs, _to_dict(state)

    return Model(init, apply)


def stack(make: Make, depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """`depth` modules of one structure as one module whose parameters have a leading depth axis."""
    return nnx.vmap(lambda key: make(nnx.Rngs(key)))(jax.random.split(rngs.params(), depth))


def scan_stack(stacked: nnx.Module, step: Callable[..., Array], x: Array, *per_layer: Any) -> Array:
    """Runs a stack: `x = step(layer, x, *slices)` for each layer in turn, compiled once for all of them.

    Batch statistics that the step updates are those of the stack afterwards.
    """
    graphdef, params, extra = _split(stacked)

    def body(x: Array, layer: tuple[Any, ...]) -> tuple[Array, Any]:
        layer_params, layer_extra, *slices = layer
        module = nnx.merge(graphdef, layer_params, layer_extra)
        x = step(module, x, *slices)
        return x, _split(module)[2]

    x, extra = jax.lax.scan(body, x, (params, extra, *per_layer))
    nnx.update(stacked, extra)
    return x


def remat(step: Callable[..., Any], policy: Callable[..., bool] | None = None) -> Callable[..., Any]:
    """`step(module, *inputs)` that recomputes its inside in the backward pass; `policy` says what is kept after all.

    Batch statistics that the step updates come out of the recomputed region like any other output.
    """

    def run(module: nnx.Module, *inputs: Any) -> Any:
        graphdef, params, extra = _split(module)

        def pure(params: Any, extra: Any, *inputs: Any) -> Any:
            inner = nnx.merge(graphdef, params, extra)
            outputs = step(inner, *inputs)
            return outputs, _split(inner)[2]

        outputs, extra = jax.checkpoint(pure, policy=policy)(params, extra, *inputs)
        nnx.update(module, extra)
        return outputs

    return run


def path_names(tree: Any) -> list[str]:
    """The slash-joined path of every leaf, in `jax.tree.leaves` order.

    Example:
        >>> path_names({"image": {"proj": {"kernel": 1.0, "bias": 0.0}}})
        ['image/proj/bias', 'image/proj/kernel']
    """
    return [_keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def map_with_path(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` whose function is given the slash-joined path first.

    Example:
        >>> map_with_path(lambda path, x: path.endswith("kernel"), {"proj": {"kernel": 1.0, "bias": 0.0}})
        {'proj': {'bias': False, 'kernel': True}}
    """
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(_keystr(path), *leaves), tree, *rest)


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dict as `{"a/b/c": leaf}`; `unflatten` is the inverse."""
    return dict(zip(path_names(tree), jax.tree.leaves(tree), strict=True))


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a/b/c": leaf}` as a nested dict."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def count(tree: Any) -> int:
    """Number of array elements (parameters) in a tree of arrays or `jax.ShapeDtypeStruct`."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _split(module: nnx.Module) -> tuple[Any, Any, Any]:
    """(structure, parameters, everything else)."""
    parts: Any = nnx.split(module, nnx.Param, ...)
    return parts


def _keystr(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _name(path: Iterable[Any]) -> str:
    return "/".join(map(str, path))


def _to_dict(state: nnx.State) -> dict[str, Any]:
    return unflatten({_name(path): leaf.get_value() for path, leaf in nnx.to_flat_state(state)})


def _to_state(tree: Mapping[str, Any], template: dict[Any, Any], what: str) -> nnx.State:
    flat, names = flatten(tree), {_name(path) for path in template}
    missing, unexpected = sorted(names - set(flat)), sorted(set(flat) - names)
    if missing or unexpected:
        raise InputError(
            f"{what} does not fit this model: missing {missing[:8] or 'nothing'}, "
            f"unexpected {unexpected[:8] or 'nothing'} "
            "(first 8 of each). Was it made by another model's init?"
        )
    return nnx.from_flat_state([(path, leaf.replace(flat[_name(path)])) for path, leaf in template.items()])
