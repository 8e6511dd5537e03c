"""What a job may name: files under the operator's roots, and nothing that only looks like one of them."""

import os
from pathlib import Path

import pytest

from pyfunq.environment import read_settings
from pyfunq.errors import InputNotAllowed, InputUnavailable, NotConfigured
from pyfunq.input_roots import InputRoots


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`data` is allowed; `database` and `secret` beside it are not."""
    for name in ("data", "data/sub", "database"):
        (tmp_path / name).mkdir()
    for name in ("data/a.parquet", "data/sub/b.parquet", "database/c.parquet", "secret"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path / "data"


@pytest.fixture
def roots(root: Path) -> InputRoots:
    return InputRoots([str(root), "s3://bucket/folder"])


def refused(roots: InputRoots, place: str) -> None:
    """By the producer, and by a worker that finds it in a job all the same."""
    with pytest.raises(InputNotAllowed, match="PYFUNQ_INPUT_ROOTS"):
        roots.open(roots.canonical(place))
    with pytest.raises(InputNotAllowed, match="PYFUNQ_INPUT_ROOTS"):
        roots.open(place)


def test_what_lies_under_a_root_is_opened(roots: InputRoots, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    for given in ("a.parquet", "./a.parquet", str(root / "a.parquet"), f"/{root}//./a.parquet"):
        assert roots.canonical(given) == str(root / "a.parquet")
    with roots.open(str(root / "sub" / "b.parquet")).file as file:
        assert file.read() == b"data/sub/b.parquet"
    assert roots.canonical("s3://bucket/folder/x.parquet/") == "s3://bucket/folder/x.parquet"
    assert roots.listing(str(root)) == [str(root / "a.parquet"), str(root / "sub")]
    assert roots.listing(str(root / "a.parquet")) is None


def test_paths_that_lead_elsewhere_are_refused(roots: InputRoots, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "link").symlink_to(root.parent / "secret")
    (root / "folder").symlink_to(root.parent / "database")
    (root.parent / "outside").symlink_to(root)
    for place in (
        f"{root}/../secret",
        f"{root}/sub/../../secret",
        f"{root}/sub/../a.parquet",
        f"{root.parent}/database/c.parquet",
        f"{root.parent}/secret",
        f"{root}/link",
        f"{root}/folder/c.parquet",
        f"{root.parent}/outside/a.parquet",
        str(root.parent),
        "/",
        "/etc/passwd",
        f"{root}/a.parquet\0",
        f"{root}/\udcff.parquet",
    ):
        refused(roots, place)
    monkeypatch.chdir(root.parent)
    refused(roots, "secret")
    with pytest.raises(InputNotAllowed):
        roots.open("a.parquet")  # a job's path is absolute, whatever the worker's directory


@pytest.mark.parametrize(
    "url",
    [
        "file:///{root}/a.parquet",
        "file:/{root}/a.parquet",
        "FILE://{root}/a.parquet",
        "local://{root}/a.parquet",
        "simplecache::s3://bucket/folder/x.parquet",
        "filecache::file://{root}/a.parquet",
        "zip://a.parquet::s3://bucket/folder/x.zip",
        "s3://bucket/folder/x.zip::zip://a",
        "s3://bucket/folderly/x.parquet",
        "s3://bucket/x.parquet",
        "s3://bucket/folder/../x.parquet",
        "s3://bucket/folder/%2e%2e/x.parquet",
        "s3://bucket/folder//x.parquet",
        "s3://bucket/folder/./x.parquet",
        "s3://bucket/folder/x.parquet?versionId=1",
        "s3://bucket/folder/x.parquet#y",
        "s3://bucket\\folder/x.parquet",
        "s3://user@bucket/folder/x.parquet",
        "S3://bucket/folder/x.parquet",
        "s3a://bucket/folder/x.parquet",
        "http://169.254.169.254/latest",
        "s3://bucket/folder/x\n.parquet",
        "s3://",
    ],
)
def test_urls_beside_the_roots_are_refused(roots: InputRoots, root: Path, url: str) -> None:
    refused(roots, url.format(root=root))


def test_without_roots_nothing_is_allowed(root: Path) -> None:
    with pytest.raises(InputNotAllowed, match="PYFUNQ_INPUT_ROOTS is empty"):
        InputRoots([]).canonical(str(root / "a.parquet"))
    with pytest.raises(InputNotAllowed):
        InputRoots([]).open(str(root / "a.parquet"))


def test_a_root_may_be_a_link_itself(root: Path) -> None:
    (root.parent / "mount").symlink_to(root)
    roots = InputRoots([f"{root.parent}/mount"])
    for place in (f"{root.parent}/mount/a.parquet", f"{root}/a.parquet"):
        with roots.open(roots.canonical(place)).file as file:
            assert file.read() == b"data/a.parquet"
    refused(roots, f"{root.parent}/secret")


def test_only_regular_files_are_opened(roots: InputRoots, root: Path) -> None:
    os.mkfifo(root / "pipe")
    refused(roots, f"{root}/pipe")
    refused(roots, f"{root}/sub")
    refused(roots, str(root))


def test_a_missing_root_is_no_missing_file(roots: InputRoots, root: Path) -> None:
    with pytest.raises(FileNotFoundError):
        roots.open(f"{root}/gone.parquet")
    root.rename(root.parent / "unmounted")
    with pytest.raises(InputUnavailable, match="is not there"):
        roots.open(f"{root}/a.parquet")


def test_a_stamp_says_when_another_file_has_the_name(roots: InputRoots, root: Path) -> None:
    opened = roots.open(f"{root}/a.parquet")
    with opened.file:
        assert opened.now() == opened.stamp
        os.utime(root / "a.parquet", ns=(1, 1))
        assert opened.now() != opened.stamp
        os.utime(root / "a.parquet", ns=(opened.stamp.version, opened.stamp.version))  # type: ignore[arg-type]
        assert opened.now() == opened.stamp
        (root / "sub" / "b.parquet").write_bytes(b"data/a.parquex")
        os.utime(root / "sub" / "b.parquet", ns=(opened.stamp.version, opened.stamp.version))  # type: ignore[arg-type]
        (root / "sub" / "b.parquet").replace(root / "a.parquet")
        assert opened.now() != opened.stamp
        (root / "a.parquet").unlink()
        with pytest.raises(FileNotFoundError):
            opened.now()


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_link_that_is_put_in_place_meanwhile_is_not_followed(
    roots: InputRoots, root: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Between the check and the opening somebody swaps the folder, or the file, for a link out of the root."""
    (root.parent / "database" / "b.parquet").write_bytes(b"not for you")
    real = os.path.realpath

    def swapping(path: str) -> str:
        found = real(path)
        if path.endswith("b.parquet"):
            victim = root / "sub" if what == "folder" else root / "sub" / "b.parquet"
            victim.rename(root / "aside")
            victim.symlink_to(root.parent / "database" / ("" if what == "folder" else "b.parquet"))
        return found

    monkeypatch.setattr(os.path, "realpath", swapping)
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        roots.open(f"{root}/sub/b.parquet")
    monkeypatch.undo()
    assert (root / "sub" / "b.parquet").read_bytes() == b"not for you", "the link is there"
    refused(roots, f"{root}/sub/b.parquet")


@pytest.mark.parametrize(
    "root",
    [
        "data",
        "./data",
        "/",
        "/data/..",
        "file:///data",
        "zip://a",
        "simplecache::s3://b",
        "s3://",
        "s3://b/../c",
        "s3://b/%2e",
    ],
)
def test_roots_that_cannot_be_are_named(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="neither an absolute directory"):
        InputRoots([root])
    monkeypatch.setenv("PYFUNQ_INPUT_ROOTS", f"/fine,{root}")
    with pytest.raises(NotConfigured, match="PYFUNQ_INPUT_ROOTS"):
        read_settings()


def test_the_setting_is_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_settings().input_roots == ()
    monkeypatch.setenv("PYFUNQ_INPUT_ROOTS", " /data/in, s3://bucket/folder/ ")
    assert read_settings().input_roots == ("/data/in", "s3://bucket/folder/")
