import gzip
import hashlib
import shutil
import socket
import subprocess
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from dfkd_core import downloads
from dfkd_core.data import published_files as dataset_files
from dfkd_core.data.published_files import ensure_files, find_files, read_files, torchvision_class
from dfkd_core.errors import DataError

FETCH_WITH_TORCHVISION = downloads.fetch_with_torchvision
FETCH_DEBIAN_PACKAGE = downloads.fetch_debian_package
# Two training images of one pixel and one test image, as torchvision's download reads what it has fetched.
CONTENTS = {
    "train-images-idx3-ubyte": bytes([0, 0, 8, 3, *(0, 0, 0, 2), *(0, 0, 0, 1), *(0, 0, 0, 1), 5, 6]),
    "train-labels-idx1-ubyte": bytes([0, 0, 8, 1, *(0, 0, 0, 2), 0, 1]),
    "t10k-images-idx3-ubyte": bytes([0, 0, 8, 3, *(0, 0, 0, 1), *(0, 0, 0, 1), *(0, 0, 0, 1), 7]),
    "t10k-labels-idx1-ubyte": bytes([0, 0, 8, 1, *(0, 0, 0, 1), 2]),
}
TEST_CONTENTS = {name: content for name, content in CONTENTS.items() if name.startswith("t10k")}


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def put_files(folder, *, packed=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in CONTENTS.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A world with a three-image Fashion-MNIST, an empty data folder, an empty system folder and no network."""
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}
    for name in ("fashion_mnist", "mnist"):
        files = replace(dataset_files.IDX_SETS[name], checksums=checksums)
        monkeypatch.setitem(dataset_files.IDX_SETS, name, files)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    monkeypatch.setattr(dataset_files, "fetch_with_torchvision", raising(OSError("no network")))
    monkeypatch.setattr(dataset_files, "fetch_debian_package", raising(DataError("apt-get is not installed")))
    return SimpleNamespace(
        root=tmp_path / "data",
        own=tmp_path / "data" / "fashion_mnist",
        system=tmp_path / "system",
        bin=tmp_path / "bin",
        scratch=tmp_path / "scratch",
        tmp=tmp_path,
    )


def raising(error):
    def fetch(*arguments):
        raise error

    return fetch


def put_below(dataset_class, folder, scratch):
    return put_files(scratch / "below")


def ensure(places, dataset="fashion_mnist"):
    return ensure_files(dataset, places.root, system_folder=places.system)


def read(places, dataset="fashion_mnist"):
    """Read the test split."""
    return read_files(dataset, list(TEST_CONTENTS), places.root, system_folder=places.system)


@pytest.mark.parametrize("packed", [True, False])
def test_torchvision_layout_in_the_data_folder_is_read(places, packed):
    folder = put_files(places.root / "FashionMNIST" / "raw", packed=packed)
    assert ensure(places) == folder
    assert read(places) == TEST_CONTENTS


def test_files_are_found_where_they_would_be_read_from_and_only_if_all_are_there(places):
    def find():
        return find_files("fashion_mnist", places.root, system_folder=places.system)

    assert find() is None
    for folder in (places.system / "fashion-mnist", places.root / "FashionMNIST" / "raw", places.own):
        put_files(folder)
        assert find() == folder == ensure(places)
    (places.own / "t10k-labels-idx1-ubyte.gz").unlink()
    assert find() == places.root / "FashionMNIST" / "raw"


def test_data_folder_comes_before_the_system_folder(places):
    put_files(places.system / "fashion-mnist")
    assert ensure(places) == places.system / "fashion-mnist"
    put_files(places.own)
    assert ensure(places) == places.own


def test_system_folder_is_read_where_it_is(places):
    put_files(places.system / "fashion-mnist")
    assert read(places) == TEST_CONTENTS
    assert not places.own.exists()


def test_a_fetched_set_is_kept_in_the_data_folder(places, monkeypatch):
    monkeypatch.setattr(dataset_files, "fetch_with_torchvision", put_below)
    assert read(places) == TEST_CONTENTS
    assert sorted(path.name for path in places.own.iterdir()) == sorted(f"{name}.gz" for name in CONTENTS)
    assert list(places.scratch.iterdir()) == []
    monkeypatch.setattr(dataset_files, "fetch_with_torchvision", raising(AssertionError("fetched twice")))
    assert ensure(places) == places.own


def test_a_missing_file_is_fetched_again(places, monkeypatch):
    put_files(places.own)
    (places.own / "train-labels-idx1-ubyte.gz").unlink()
    monkeypatch.setattr(dataset_files, "fetch_with_torchvision", put_below)
    assert read(places) == TEST_CONTENTS
    assert (places.own / "train-labels-idx1-ubyte.gz").is_file()


@pytest.mark.parametrize("damage", [lambda raw: raw[:-20], lambda raw: gzip.compress(b"other"), lambda raw: b"nothing"])
def test_a_corrupt_file_in_the_data_folder_is_named_and_kept(places, damage):
    put_files(places.own)
    put_files(places.system / "fashion-mnist")
    path = places.own / "t10k-images-idx3-ubyte.gz"
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(DataError) as caught:
        read(places)
    expected = hashlib.sha256(CONTENTS["t10k-images-idx3-ubyte"]).hexdigest()
    assert f"{path} is corrupt" in str(caught.value)
    assert expected in str(caught.value)
    assert "found" in str(caught.value)
    assert "Delete this file" in str(caught.value)
    assert path.read_bytes() == damaged


def test_ensure_checks_all_files(places):
    put_files(places.own)
    (places.own / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"other"))
    assert read(places) == TEST_CONTENTS
    found = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(DataError, match=f"train-images-idx3-ubyte.gz is corrupt.*found {found}"):
        ensure(places)


def test_a_corrupt_system_folder_or_download_is_passed_over(places, monkeypatch):
    put_files(places.system / "fashion-mnist")
    (places.system / "fashion-mnist" / "t10k-images-idx3-ubyte.gz").write_bytes(b"nothing")

    def fetch_corrupt(dataset_class, folder, scratch):
        put_files(scratch)
        (scratch / "t10k-images-idx3-ubyte.gz").write_bytes(b"nothing")
        return scratch

    monkeypatch.setattr(dataset_files, "fetch_with_torchvision", fetch_corrupt)
    monkeypatch.setattr(dataset_files, "fetch_debian_package", lambda package, scratch: put_files(scratch))
    assert read(places) == TEST_CONTENTS


def test_every_way_is_named_if_none_works(places):
    with pytest.raises(DataError) as caught:
        read(places)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("The data set fashion_mnist was not found and could not be downloaded")
    assert lines[1:6] == [
        f"  - {places.own}: no such folder",
        f"  - {places.root / 'FashionMNIST' / 'raw'}: no such folder",
        f"  - {places.system / 'fashion-mnist'}: no such folder",
        "  - torchvision.datasets.FashionMNIST (download): no network",
        "  - Debian package dataset-fashion-mnist: apt-get is not installed",
    ]
    assert "set data.dataset to digits" in lines[6]


def test_a_data_folder_that_cannot_be_written_is_named(places, monkeypatch):
    places.root.write_text("a file where the folder should be")
    monkeypatch.setattr(dataset_files, "fetch_with_torchvision", put_below)
    with pytest.raises(DataError, match=r"download\): \[Errno \d+\]"):
        read(places)


def test_mnist_has_no_debian_package(places):
    with pytest.raises(DataError) as caught:
        read(places, "mnist")
    assert "Debian" not in str(caught.value)
    put_files(places.root / "mnist")
    assert ensure(places, "mnist") == places.root / "mnist"


@pytest.fixture
def mirror(places, monkeypatch):
    """Point torchvision's own download at a local address."""
    from dfkd_core.common.vision import datasets

    def point(port):
        packed = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in CONTENTS.items()}
        resources = [(name, hashlib.md5(raw).hexdigest()) for name, raw in packed.items()]
        monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"http://127.0.0.1:{port}/"])
        monkeypatch.setattr(datasets.FashionMNIST, "resources", resources)
        monkeypatch.setattr(dataset_files, "fetch_with_torchvision", FETCH_WITH_TORCHVISION)
        return packed

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return point


def test_download_by_torchvision(places, mirror):
    folder = places.tmp / "served"
    folder.mkdir()
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, raw in mirror(server.server_address[1]).items():
            (folder / name).write_bytes(raw)
        contents = read(places)
        server.shutdown()
    assert contents == TEST_CONTENTS
    assert len(list(places.own.glob("*.gz"))) == 4


def test_a_silent_server_does_not_hang_the_download(places, mirror, monkeypatch):
    monkeypatch.setattr(downloads, "DOWNLOAD_TIMEOUT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mirror(silent.getsockname()[1])
        with pytest.raises(DataError, match=r"torchvision.datasets.FashionMNIST \(download\): .*timed out"):
            read(places)
    assert socket.getdefaulttimeout() is None


def put_command(places, name, script):
    path = places.bin / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def put_dpkg(places):
    """Put a dpkg that unpacks the files whatever the package."""
    packaged = put_files(places.tmp / "packaged")
    below = "$3/usr/share/datasets"
    put_command(places, "dpkg", f'mkdir -p "{below}"; cp -r {packaged} "{below}/fashion-mnist"')


def test_debian_package_is_downloaded_and_unpacked_without_being_installed(places, monkeypatch):
    monkeypatch.setattr(dataset_files, "fetch_debian_package", FETCH_DEBIAN_PACKAGE)
    put_command(places, "apt-get", 'for last; do :; done; echo "$@" >"$last"_1_all.deb')
    put_dpkg(places)
    assert read(places) == TEST_CONTENTS
    assert len(list(places.own.glob("*.gz"))) == 4


def test_a_machine_without_package_lists_fetches_private_ones(places, monkeypatch):
    monkeypatch.setattr(dataset_files, "fetch_debian_package", FETCH_DEBIAN_PACKAGE)
    log = places.tmp / "calls"
    script = f"""
    echo "$*" >>{log}
    for option; do case "$option" in
        Dir::State::Lists=*) lists="${{option#*=}}" ;;
        Dir::Cache=*) cache="${{option#*=}}" ;;
    esac; last="$option"; done
    if test "$last" = update; then
        test -d "$lists/partial" && test -d "$cache/archives/partial" && touch "$lists/Packages"
    elif test -f "$lists/Packages"; then
        touch some_1_all.deb
    else
        echo "E: Unable to locate package" >&2; exit 100
    fi
    """
    put_command(places, "apt-get", script)
    put_dpkg(places)
    assert read(places) == TEST_CONTENTS
    bare, *private = log.read_text().splitlines()
    assert "Dir::" not in bare
    assert [call.split()[-1] for call in private] == ["update", "dataset-fashion-mnist"]
    assert all(f"Dir::State::Lists={places.scratch}/" in call for call in private)
    assert all(f"Dir::Cache={places.scratch}/" in call for call in private)
    assert list(places.scratch.iterdir()) == []


def test_private_lists_are_not_fetched_where_the_package_is_known(places, monkeypatch):
    monkeypatch.setattr(dataset_files, "fetch_debian_package", FETCH_DEBIAN_PACKAGE)
    log = places.tmp / "calls"
    put_command(places, "apt-get", f'echo "$*" >>{log}; touch some_1_all.deb')
    put_dpkg(places)
    assert read(places) == TEST_CONTENTS
    assert len(log.read_text().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get, and the internet")
def test_debian_package_is_really_fetched_without_package_lists(tmp_path, monkeypatch):
    for folder in ("lists/partial", "archives/partial"):
        (tmp_path / "blank" / folder).mkdir(parents=True)
    settings = tmp_path / "apt.conf"
    settings.write_text(f'Dir::State "{tmp_path / "blank"}";\nDir::Cache "{tmp_path / "blank"}";\n')
    monkeypatch.setenv("APT_CONFIG", str(settings))
    blank = subprocess.run(
        ["apt-get", "download", "dataset-fashion-mnist"], cwd=tmp_path, capture_output=True, text=True
    )
    assert "Unable to locate package" in blank.stderr
    monkeypatch.setattr(dataset_files, "fetch_with_torchvision", raising(OSError("not asked")))
    fetched = ensure_files("fashion_mnist", tmp_path / "data", system_folder=tmp_path / "none")
    assert fetched == tmp_path / "data" / "fashion_mnist"
    assert len(list(fetched.glob("*.gz"))) == 4


def test_why_the_debian_package_failed_is_told(places, monkeypatch):
    monkeypatch.setattr(dataset_files, "fetch_debian_package", FETCH_DEBIAN_PACKAGE)
    put_command(places, "apt-get", 'echo "W: never mind" >&2; echo "E: Unable to locate package" >&2; exit 100')
    with pytest.raises(DataError, match="apt-get failed with exit status 100: E: Unable to locate package\n"):
        read(places)
    put_command(places, "apt-get", "exit 0")
    with pytest.raises(DataError, match=r"left no \.deb file"):
        read(places)
    monkeypatch.setenv("PATH", str(places.tmp / "nowhere"))
    with pytest.raises(DataError, match="apt-get is not installed"):
        read(places)


def test_file_names_are_those_of_torchvision():
    for name in ("fashion_mnist", "mnist"):
        published = [resource for resource, _ in torchvision_class(name).resources]
        assert [f"{file}.gz" for file in dataset_files.IDX_SETS[name].checksums] == published


@pytest.mark.parametrize("below", ["cifar100/cifar-100-python", "cifar-100-python"])
@pytest.mark.parametrize("position", range(3))
def test_cifar_checksums_are_those_of_torchvision(places, below, position):
    listing = torchvision_class("cifar100")
    published = [*listing.train_list, *listing.test_list, (listing.meta["filename"], listing.meta["md5"])]
    assert [name for name, _ in published] == ["train", "test", "meta"]
    for name in ("train", "test", "meta"):
        (places.root / below).mkdir(parents=True, exist_ok=True)
        (places.root / below / name).write_bytes(b"other")
    name, digest = published[position]
    with pytest.raises(DataError, match=f"{below}/{name} is corrupt: expected content with md5 {digest}"):
        read_files("cifar100", [name], places.root, system_folder=places.system)
