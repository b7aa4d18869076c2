"""The meta-path encoder: the original's loss, embedding and every gradient; its options; plain loops for its parts."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon import objectives as o
from mixcon.errors import InputError
from mixcon.models import flatten, functional, unflatten
from mixcon.models.graph import GCN, GraphViews, SemanticAttention, meta_path_context_encoder
from mixcon.ops.linear_map import linear_map

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "golden" / "meow.npz")
WIDTH, NODES = 8, 9
NAMES = {  # ours -> the original's, and whether its matrix is (out, in)
    "target/0/kernel": ("fc_list.0.weight", True),
    "target/0/bias": ("fc_list.0.bias", False),
    "others/a/kernel": ("fc_list.1.weight", True),
    "others/a/bias": ("fc_list.1.bias", False),
    "others/s/kernel": ("fc_list.2.weight", True),
    "others/s/bias": ("fc_list.2.bias", False),
    "contexts/0/0/kernel": ("agg.0.weight", True),
    "contexts/1/0/kernel": ("agg.1.weight", True),
    "gcn/first/kernel": ("Encoder.gc1.weight", False),
    "gcn/slope": ("Encoder.gc1.act.weight", False),
    "gcn/second/kernel": ("Encoder.gc2.weight", False),
    "attention/fc/kernel": ("att.fc.weight", True),
    "attention/fc/bias": ("att.fc.bias", False),
    "attention/query": ("att.att", False),
    "projection/kernel": ("project.weight", True),
    "projection/bias": ("project.bias", False),
}


def recorded(prefix, name, turned):
    value = GOLDEN[f"{prefix}{name}"]
    return value.T if turned else value


def golden_views(dense_above=0.1, dtype=np.float64):
    g = {k.removeprefix("c3/in/"): v for k, v in GOLDEN.items() if k.startswith("c3/in/")}

    def lay(matrix):
        return linear_map(matrix, dense_above=dense_above, dtype=dtype)

    def mean(b):
        return lay(b / np.maximum(b.sum(1, keepdims=True), 1))

    return GraphViews(
        target=(lay(g["feat0"]),),
        masked=(lay(g["mask_feat"]),),
        features={"a": lay(g["feat1"]), "s": lay(g["feat2"])},
        contexts=((mean(g["nei0"]),), (mean(g["nei1"]),)),
        adjacency=(lay(g["adj_norm0"]), lay(g["adj_norm1"])),
        masked_adjacency=(lay(g["mask_adj0"]), lay(g["mask_adj1"])),
    )


def make(views, **options):
    sizes = {"a": 6, "s": 4}
    return meta_path_context_encoder(views, [["a"], ["s"]], sizes=sizes, width=WIDTH, projection=WIDTH, **options)


@pytest.mark.parametrize("dense_above", [-1.0, 1.0])
def test_loss_embedding_and_every_gradient_are_the_originals(dense_above):
    with jax.enable_x64(True):
        views = golden_views(dense_above)
        model = functional(make(views))
        shapes = jax.eval_shape(model.init, jax.random.key(0))[0]
        flat = {path: recorded("c3/in/w/", *where) for path, where in NAMES.items()}
        assert flat.keys() == flatten(shapes).keys()
        params = unflatten({p: jnp.asarray(v).reshape(flatten(shapes)[p].shape) for p, v in flat.items()})
        own = jnp.stack([jnp.asarray(GOLDEN[f"c3/in/assign{k}"]) for k in range(2)])
        prototypes = [jnp.asarray(GOLDEN[f"c3/in/centroids{k}"]) for k in range(2)]
        densities = [jnp.asarray(GOLDEN[f"c3/in/density{k}"]) for k in range(2)]

        def loss(params):
            out, _ = model.apply(params, {}, views, train=True)
            info = o.cluster_weighted_info_nce(out.coarse, out.fine, own, temperature=GOLDEN["c3/in/tau"])
            prototypical = o.prototype_nce(out.coarse, prototypes, densities, own)
            return info + float(GOLDEN["c3/in/lam_proto"]) * prototypical, out

        (value, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        np.testing.assert_allclose(value, GOLDEN["c3/out/loss"], rtol=1e-8)
        np.testing.assert_allclose(out.embedding, GOLDEN["c3/out/embedding"], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(out.fine, GOLDEN["c3/out/z_projected"], rtol=1e-6, atol=1e-9)
        for path, grad in flatten(grads).items():
            want = recorded("c3/out/grad/", *NAMES[path]).reshape(grad.shape)
            np.testing.assert_allclose(grad, want, rtol=1e-6, atol=1e-9, err_msg=path)


@pytest.fixture(scope="module")
def views():
    return golden_views(dtype=np.float32)


def run(drawn, views, *, paths=(("a",), ("s",)), key=None, **options):
    model, params, extra = drawn(
        meta_path_context_encoder(views, paths, sizes={"a": 6, "s": 4}, width=WIDTH, projection=WIDTH, **options)
    )
    return model.apply(params, extra, views, train=key is not None, key=key)[0]


def test_dropout_draws_by_key_and_not_in_evaluation(drawn, views):
    first, again, other = (run(drawn, views, dropout=0.5, key=jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(first.embedding, again.embedding)
    assert not np.allclose(first.embedding, other.embedding)
    np.testing.assert_array_equal(
        run(drawn, views, dropout=0.5).embedding, run(drawn, views, dropout=0.0, key=jax.random.key(0)).embedding
    )
    assert not np.allclose(first.fine, run(drawn, views, dropout=0.5, one_draw=True, key=jax.random.key(0)).fine)


def test_other_layouts_run_several_contexts_own_features_one_hot_types_no_contexts(drawn, views):
    plain = run(drawn, views)
    two = views._replace(contexts=(views.contexts[0], (*views.contexts[1], views.contexts[0][0])))
    assert not np.allclose(run(drawn, two, paths=(("a",), ("s", "a"))).fine, plain.fine)
    own = views._replace(target=views.target * 2, masked=views.masked * 2)
    assert run(drawn, own).embedding.shape == (NODES, WIDTH)
    one_hot = views._replace(features=views.features | {"s": None})
    same = views._replace(features=views.features | {"s": linear_map(np.eye(4))})
    np.testing.assert_allclose(run(drawn, one_hot).fine, run(drawn, same).fine, rtol=1e-5, atol=1e-6)
    assert not np.allclose(run(drawn, views, use_contexts=False).fine, plain.fine)
    np.testing.assert_allclose(np.linalg.norm(plain.coarse, axis=1), 1, rtol=1e-5)


def test_convolution_and_attention_are_the_loops(drawn, views):
    rng = np.random.default_rng(0)
    x, matrix = rng.normal(size=(NODES, WIDTH)).astype(np.float32), rng.normal(size=(NODES, NODES)).astype(np.float32)
    for norm in ("matrix", "row"):
        model, params, _ = drawn(lambda rngs, norm=norm: GCN(WIDTH, norm=norm, rngs=rngs))
        hidden = matrix @ (x @ params["first"]["kernel"])
        hidden = np.where(hidden >= 0, hidden, params["slope"] * hidden)
        out = matrix @ (hidden @ params["second"]["kernel"])
        rows = [out] if norm == "matrix" else list(out)
        want = np.concatenate([((r - r.mean()) / np.sqrt(r.var() + 1e-5)).reshape(-1, WIDTH) for r in rows])
        got, _ = model.apply(params, {}, jnp.asarray(x), [linear_map(matrix)])
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    model, params, _ = drawn(lambda rngs: SemanticAttention(WIDTH, rngs=rngs))
    views = [x, 2 * x[::-1], x**2]
    scores = []
    for view in views:
        inner = np.tanh(view @ params["fc"]["kernel"] + params["fc"]["bias"])
        scores.append(np.exp(params["query"][0] @ (sum(inner) / NODES)))
    want = sum(s / sum(scores) * v for s, v in zip(scores, views, strict=True))
    np.testing.assert_allclose(model.apply(params, {}, list(map(jnp.asarray, views)))[0], want, rtol=1e-4, atol=1e-5)


def test_bad_options_are_refused(views):
    with pytest.raises(InputError, match="dropout=1"):
        make(views, dropout=1.0)
    with pytest.raises(InputError, match="norm='batch' is unknown; choose one of matrix, row"):
        functional(make(views, norm="batch"))
