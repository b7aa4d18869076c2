"""Data is found, fetched with its checksum, and verified; what is missing is said in words."""

import hashlib
import http.server
import threading
from functools import partial

import pytest

from mixcon.data import catalog
from mixcon.data.catalog import (
    CATALOG,
    Check,
    Dataset,
    cache_dir,
    check,
    checksums,
    dataset,
    fetch,
    locate,
    table,
    verify,
)
from mixcon.errors import InputError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MIXCON_DATA", raising=False)
    return tmp_path


@pytest.fixture
def server(tmp_path):
    """A web server over a folder laid out as the public one is, and the paths it was asked for."""
    root, asked = tmp_path / "www", []
    root.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *_):
            asked.append(self.path)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root))) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_address[1]}", root, asked
        web.shutdown()


@pytest.fixture
def toy(monkeypatch, server):
    """A set of two files in the catalog and on the server."""
    _, root, _ = server
    contents = {"a.txt": b"alpha", "deep/b.txt": b"beta" * 1000}
    for file, data in contents.items():
        path = root / "someone/toy/HEAD/data" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    entry = Dataset("toy", "two files", "none", "someone/toy", (("", "someone/toy/HEAD/data/"),))
    monkeypatch.setattr(catalog, "CATALOG", (*CATALOG, entry))
    digests = {file: hashlib.sha256(data).hexdigest() for file, data in contents.items()}
    monkeypatch.setattr(catalog, "checksums", lambda: {"toy": digests})
    return contents


def test_fetch_then_verify_then_locate(toy, server):
    address, _, asked = server
    folder = fetch("toy", server=address, progress=False)
    assert folder == cache_dir() / "toy" == locate("toy")
    assert {file: (folder / file).read_bytes() for file in toy} == toy
    assert check("toy") == [Check("a.txt", "ok"), Check("deep/b.txt", "ok")]
    assert len(asked) == 2
    fetch("toy", server=address, progress=False)
    assert len(asked) == 2  # intact files are not fetched again


def test_a_damaged_file_is_seen_and_fetched_again(toy, server):
    folder = fetch("toy", server=server[0], progress=False)
    (folder / "a.txt").write_bytes(b"alphA")
    (folder / "deep/b.txt").unlink()
    assert check("toy") == [Check("a.txt", "differs"), Check("deep/b.txt", "missing")]
    fetch("toy", server=server[0], progress=False)
    assert {file.state for file in check("toy")} == {"ok"}


def test_a_file_that_changed_on_the_server_is_refused_and_not_kept(toy, server):
    address, root, _ = server
    (root / "someone/toy/HEAD/data/a.txt").write_bytes(b"other")
    with pytest.raises(InputError, match=r"a\.txt has changed or was damaged"):
        fetch("toy", server=address, progress=False)
    assert not [path for path in cache_dir().rglob("*") if path.is_file()]


def test_an_unreachable_server_and_a_missing_file_are_said_in_words(toy, server):
    with pytest.raises(InputError, match=r"cannot download .*put it at .*a\.txt"):
        fetch("toy", server="http://127.0.0.1:9", progress=False)
    (server[1] / "someone/toy/HEAD/data/a.txt").unlink()
    with pytest.raises(InputError, match="404"):
        fetch("toy", server=server[0], progress=False)


def test_locate_prefers_the_users_folder_then_the_cache(home, monkeypatch):
    (cache_dir() / "wikitext2").mkdir(parents=True)
    assert locate("wikitext2") == cache_dir() / "wikitext2"
    monkeypatch.setenv("MIXCON_DATA", str(home / "mine"))
    assert locate("wikitext2") == cache_dir() / "wikitext2"
    (home / "mine" / "wikitext2").mkdir(parents=True)
    assert locate("wikitext2") == home / "mine" / "wikitext2"
    (home / "mine" / "unheard_of").mkdir()
    assert locate("unheard_of") == home / "mine" / "unheard_of"


def test_locate_says_what_to_put_where():
    with pytest.raises(InputError, match=r"mixcon data fetch wikitext2.*MIXCON_DATA"):
        locate("wikitext2")
    with pytest.raises(InputError, match=r"CIFAR-10-images, its folders packed .*put its files into .*cifar10_jpeg"):
        locate("cifar10_jpeg")
    with pytest.raises(InputError, match="Did you mean wikitext2"):
        locate("wikitext")
    for name in ("../etc", "a/b", "", "/absolute"):
        with pytest.raises(InputError, match="one folder name"):
            locate(name)


def test_what_cannot_be_fetched_is_said_in_words():
    with pytest.raises(InputError, match="comes with an installed package"):
        fetch("emoji")
    with pytest.raises(InputError, match=r"repacked.*CIFAR-10-images"):
        fetch("cifar10_jpeg")
    with pytest.raises(InputError, match="did you mean multi30k"):
        fetch("multi30")
    with pytest.raises(InputError, match="no checksums"):
        verify("digits")


def test_the_embedded_set_is_intact():
    assert verify("emoji") == "emoji: 1 file intact"


def test_verify_names_what_is_wrong_and_how_to_mend_it(toy, server):
    folder = fetch("toy", server=server[0], progress=False)
    assert verify("toy") == "toy: 2 files intact"
    (folder / "deep/b.txt").unlink()
    with pytest.raises(InputError, match=r"of 2 files, deep/b.txt missing. `mixcon data fetch toy` mends it"):
        verify("toy")


def test_the_table_says_what_is_here():
    (cache_dir() / "wikitext2").mkdir(parents=True)
    lines = {line.split()[0]: line.split()[1] for line in table().splitlines()[1:]}
    assert len(lines) == len(CATALOG)
    assert (lines["emoji"], lines["wikitext2"], lines["stsb"], lines["mulan"]) == ("yes", "yes", "fetch", "no")


def test_the_catalog_is_consistent():
    named = [entry.name for entry in CATALOG]
    assert len(set(named)) == len(named)
    assert set(checksums()) <= set(named)
    for entry in CATALOG:
        assert entry.what
        assert entry.licence
        for file, address in catalog._addresses(entry):
            owner, repository, head, *path = address.split("/")
            assert owner
            assert repository
            assert head == "HEAD"
            assert path[-1] == file.rsplit("/")[-1]
    assert dataset("emoji").origin == ""
    assert all(len(digest) == 64 for digests in checksums().values() for digest in digests.values())
    assert not any(file.startswith(("/", "..")) for digests in checksums().values() for file in digests)
