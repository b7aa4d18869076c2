"""How MEOW and AdaMEOW are put together: both trace, and what cannot be is refused before anything is compiled."""

import jax
import pytest

from mixcon import config as configs
from mixcon.errors import InputError
from mixcon.train import loop

PART = ("graph.nodes=400", "views.neighbors=(20,30)", "views.ties=random")


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def build(variant, *overrides):
    config = configs.load(f"configs/meow.py:{variant}", [f"--config.{each}" for each in (*PART, *overrides)])
    return config, loop.build(config, None)


def test_adameow_traces_with_its_network_among_the_parameters():
    config, experiment = build("adameow_small")
    shapes, _ = loop.state_layout(experiment, config, loop.meshes.make_mesh(data=1))
    assert shapes.params["pair"]["hidden"].shape == (64, 16)
    batch = {**loop.device_part(next(experiment.batches())), **experiment.fixed}
    after, metrics = jax.eval_shape(experiment.step, shapes, batch)
    assert jax.tree.structure(after) == jax.tree.structure(shapes)
    assert after.objective["embedding"].shape == (400, 64)
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("clusters=(5,401)", r"k=401 clusters of 400 rows: it must lie in \[2, 400\]"),
        ("clusters=(1,)", "k=1 clusters"),
        ("views.neighbors=(20,)", "need one entry for each of"),
        ("views.edge_drop=(0.5,1.5)", r"rate=1.5 must lie in \[0, 1\]"),
        ("views.ties=first", "ties='first' is unknown"),
        ("method=heco", "method='heco' is unknown; choose meow or adameow"),
        ("embedding=mean", "embedding='mean' is unknown"),
        ("model.dropout=1.0", "dropout=1.0 must lie"),
        ("graph.graph=cora", "graph='cora' is not one of"),
    ],
)
def test_what_cannot_be_is_refused(override, said):
    with pytest.raises(InputError, match=said):
        build("small", override)
