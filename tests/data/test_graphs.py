"""Heterogeneous graphs: the packaged ACM, the repository's layout, DBLP from its text files, and what is refused."""

import numpy as np
import pytest
import scipy.sparse as sp

from mixcon.data.catalog import locate
from mixcon.data.graph_files import Packed, incidence
from mixcon.data.graphs import check_graph, load_graph
from mixcon.data.metapaths import normalize_rows
from mixcon.errors import InputError

SIDES = ("train", "val", "test")


@pytest.fixture(scope="module")
def acm():
    return load_graph("acm")


def write_splits(folder, count):
    for per_class in (20, 40, 60):
        for side in SIDES:
            np.save(folder / f"{side}_{per_class}.npy", np.arange(count))


def star(folder, types, target, labels, edges):
    """A tiny graph in the repository's layout."""
    folder.mkdir(parents=True)
    np.save(folder / "labels.npy", np.array(labels))
    write_splits(folder, len(labels))
    sp.save_npz(folder / f"{target}_feat.npz", sp.csr_matrix(np.eye(len(labels))))
    for t in types:
        rows, cols, size = edges[t]
        sp.save_npz(folder / f"nei_{t}.npz", sp.coo_matrix((np.ones(len(rows)), (rows, cols)), (len(labels), size)))


def test_the_packaged_acm_is_the_published_one(acm):
    assert len(acm.labels) == 4019
    np.testing.assert_array_equal(np.bincount(acm.labels), [1993, 965, 1061])
    assert acm.sizes == {"a": 7167, "s": 60}
    assert [(path.name, path.counts.nnz) for path in acm.paths] == [("pap", 57853), ("psp", 4338213)]
    assert acm.target[0].shape == (4019, 1902)
    assert [len(acm.splits[k].train) for k in (20, 40, 60)] == [60, 120, 180]
    assert acm.features["a"].nnz == 888869


def test_the_downloaded_files_give_the_same_graph(acm):
    try:
        folder = locate("meow")
    except InputError as reason:
        pytest.skip(f"the set is not here: {reason}")
    given = load_graph("acm", root=folder)
    assert abs(normalize_rows(given.target[0]) - normalize_rows(acm.target[0])).max() < 1e-6
    written = normalize_rows(sp.load_npz(folder / "acm" / "a_feat.npz"))
    assert abs(written - normalize_rows(acm.features["a"])).max() < 1e-6
    for path, name in zip(given.paths, ("pap", "psp"), strict=True):
        assert (path.counts != sp.load_npz(folder / "acm" / f"{name}.npz")).nnz == 0
    imdb = load_graph("imdb", root=folder)
    assert imdb.labels.min() == 0
    ours = load_graph("imdb")  # the one in the package
    assert (ours.target[0] != imdb.target[0]).nnz == 0
    assert all((a.counts != b.counts).nnz == 0 for a, b in zip(ours.paths, imdb.paths, strict=True))
    assert [path.counts.nnz for path in imdb.paths] == [81360, 16498, 319435]
    dblp = load_graph("dblp", root=folder)
    assert [c.incidence.nnz for path in dblp.paths for c in path.contexts[:2]] == [19645, 19645, 9205, 19645, 90685]
    assert (dblp.paths[0].counts != sp.load_npz(folder / "dblp" / "apa.npz")).nnz == 0


def test_an_induced_part_keeps_labelled_nodes_and_their_paths(acm):
    part = load_graph("acm", nodes=400, seed=3)
    assert len(part.labels) == 400
    assert [len(part.splits[k].train) for k in (20, 40, 60)] == [60, 120, 180]
    for k in (20, 40, 60):
        np.testing.assert_array_equal(part.labels[part.splits[k].train], acm.labels[acm.splits[k].train])
    assert part.paths[0].contexts[0].incidence.shape == (400, 7167)
    both = part.paths[0].contexts[0].incidence
    assert (part.paths[0].counts != both @ both.T).nnz == 0
    with pytest.raises(InputError, match=r"nodes=100 must lie in \[355, 4019\]"):
        load_graph("acm", nodes=100)


def test_labels_from_one_are_counted_from_zero(tmp_path):
    edges = {"a": ([0, 1, 2], [0, 0, 1], 2), "d": ([0], [0], 1), "k": ([0, 2], [0, 0], 1)}
    star(tmp_path / "imdb", "adk", "m", [1, 2, 3], edges)
    graph = load_graph("imdb", root=tmp_path)
    assert graph.labels.tolist() == [0, 1, 2]
    assert graph.paths[0].counts.toarray().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_dblp_is_rebuilt_from_its_text_files(tmp_path):
    """Papers 0, 1, 2; authors 0, 1; venues 0, 1; terms 0, 1, 2; compared with plain walks over the files."""
    folder = tmp_path / "dblp"
    folder.mkdir()
    pa, pc, pt = [(0, 0), (1, 0), (1, 1), (2, 1)], [(0, 0), (1, 1), (2, 1)], [(0, 0), (1, 1), (2, 1), (2, 2)]
    for name, edges in (("pa", pa), ("pc", pc), ("pt", pt)):
        (folder / f"{name}.txt").write_text("\n".join(f"{a}\t{b}" for a, b in edges))
    sp.save_npz(folder / "p_feat.npz", sp.csr_matrix(np.eye(3)))
    sp.save_npz(folder / "a_feat.npz", sp.csr_matrix(np.eye(2)))
    with (folder / "t_feat.npz").open("wb") as file:  # as published: a plain array under this name
        np.save(file, np.eye(3))
    np.save(folder / "labels.npy", np.array([0, 1]))
    write_splits(folder, 2)
    graph = load_graph("dblp", root=tmp_path)

    def walks(*steps):
        ends = {a: [a] for a in (0, 1)}
        for edges, back in steps:
            ends = {
                a: [v if not back else u for x in found for u, v in edges if (u if not back else v) == x]
                for a, found in ends.items()
            }
        return [[ends[i].count(j) for j in (0, 1)] for i in (0, 1)]

    a_p, p_a = (pa, True), (pa, False)
    assert graph.paths[0].counts.toarray().tolist() == walks(a_p, p_a)
    assert graph.paths[1].counts.toarray().tolist() == walks(a_p, (pc, False), (pc, True), p_a)
    assert graph.paths[2].counts.toarray().tolist() == walks(a_p, (pt, False), (pt, True), p_a)
    assert [c.node_type for c in graph.paths[1].contexts] == ["p", "c", "p"]
    # author 0 has published at both venues, so every paper of a venue of theirs is any paper
    assert graph.paths[1].contexts[2].incidence.toarray().tolist() == [[1, 1, 1], [0, 1, 1]]
    assert graph.paths[2].contexts[1].incidence.toarray().tolist() == [[1, 1, 0], [0, 1, 1]]


def test_a_packed_graph_without_its_text_files_is_refused_in_words(tmp_path):
    np.savez(tmp_path / "meow_aminer.npz", labels=np.zeros(2, np.int32))
    with pytest.raises(InputError, match=r"pa\.txt is read from the folder of the original files"):
        Packed(tmp_path / "meow_aminer.npz").incidence("pa", (2, 2))
    with pytest.raises(InputError, match="no array 'nei_a/row'"):
        load_graph("aminer", root=tmp_path)


def test_aminer_says_what_is_missing(tmp_path):
    star(tmp_path / "aminer", "ar", "p", [0, 1], {"a": ([0, 1], [0, 0], 1), "r": ([0], [0], 1)})
    with pytest.raises(InputError, match=r"feat_pap.w1000.l100.npy is missing.*jianxiangyu/MEOW"):
        load_graph("aminer", root=tmp_path)
    for path in ("pap", "prp"):
        np.save(tmp_path / "aminer" / f"feat_{path}.w1000.l100.npy", np.ones((2, 4)))
    assert [x.shape for x in load_graph("aminer", root=tmp_path).target] == [(2, 4), (2, 4)]


def test_indices_beyond_the_nodes_are_refused_by_name(tmp_path):
    edges = {"a": ([0, 1], [0, 1], 2), "s": ([0, 1], [0, 0], 1)}
    star(tmp_path / "acm", "as", "p", [0, 1], edges)
    broken = {"row": [0, 1], "col": [0, 7], "shape": [2, 2], "data": [1, 1], "format": np.array(b"coo")}
    np.savez(tmp_path / "acm" / "nei_a.npz", **broken)
    with pytest.raises(InputError, match=r"nei_a: edge 1 names node 7 on its second side, which has 2 nodes"):
        load_graph("acm", root=tmp_path)
    with pytest.raises(InputError, match="names node -1 on its first side"):
        incidence(np.array([-1]), np.array([0]), (2, 2))


@pytest.mark.parametrize("packed", [False, True])
def test_features_beyond_the_width_are_refused_by_name(tmp_path, packed):
    edges = {"a": ([0, 1], [0, 1], 2), "s": ([0, 1], [0, 0], 1)}
    star(tmp_path / "acm", "as", "p", [0, 1], edges)
    parts = {"data": np.ones(2), "indices": np.array([0, 9]), "indptr": np.array([0, 1, 2]), "shape": np.array([2, 3])}
    if packed:
        np.savez(tmp_path / "broken.npz", **{f"p_feat/{key}": value for key, value in parts.items()})
        with pytest.raises(InputError, match="p_feat: a damaged matrix"):
            Packed(tmp_path / "broken.npz").sparse("p_feat")
    else:
        np.savez(tmp_path / "acm" / "p_feat.npz", format=np.array(b"csr"), **parts)
        with pytest.raises(InputError, match="p_feat"):
            load_graph("acm", root=tmp_path)


def test_parts_that_do_not_fit_are_refused(acm, tmp_path):
    with pytest.raises(InputError, match="graph='cora' is not one of acm, imdb, dblp, aminer"):
        load_graph("cora")
    with pytest.raises(InputError, match="is missing: run `mixcon data fetch meow`"):
        load_graph("imdb", root=tmp_path)
    small = load_graph("acm", nodes=400)
    path = small.paths[0]
    with pytest.raises(InputError, match="pap: counts must not be negative"):
        check_graph(small._replace(paths=(path._replace(counts=-path.counts),)))
    with pytest.raises(InputError, match=r"pap: counts .* do not fit the 400 target nodes"):
        check_graph(small._replace(paths=(path._replace(counts=path.counts[:9]),)))
    with pytest.raises(InputError, match=r"split val_20: indices must be in range\(400\)"):
        check_graph(small._replace(splits={20: small.splits[20]._replace(val=np.array([400]))}))
    with pytest.raises(InputError, match="features of 'a' have 5 rows for 7167"):
        check_graph(small._replace(features={"a": sp.identity(5, format="csr"), "s": None}))
    with pytest.raises(InputError, match="target features"):
        check_graph(small._replace(target=(small.target[0][:7],)))
