"""Checks that every kind of store must pass, on an empty folder."""

from pathlib import Path

from llkd.store.folder import Folder
from llkd.store.transfer import local_copy, upload_folder


def check_what_is_there_and_what_is_not(folder: Folder) -> None:
    assert folder.names() == []
    assert not folder.exists("x")
    assert folder.size("x") is None
    folder.delete()
    folder.delete_file("x")
    folder.write_bytes("x", b"12")
    folder.write_bytes("deep/y", b"")
    assert (folder.names(), set(folder.files())) == (["deep", "x"], {"x"})
    assert (folder.exists("x"), folder.size("x"), folder.exists("deep")) == (True, 2, False)
    folder.write_bytes("x", b"345")
    assert folder.read_bytes("x") == b"345"
    folder.delete_file("x")
    folder.delete_temporary()
    assert folder.names() == ["deep"]
    folder.delete()
    assert folder.names() == []


def check_names_are_taken_as_they_are(folder: Folder) -> None:
    for name in ("a b", "100%25", "q?x#y", "ü"):
        deeper = Folder(f"{folder.uri}/{name}")
        deeper.write_bytes(name, name.encode())
        assert deeper.read_bytes(name).decode() == name
    assert folder.names() == sorted(["a b", "100%25", "q?x#y", "ü"])


def check_folders_are_copied_whole(tmp_path: Path, folder: Folder) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/one").write_text("1")
    (tmp_path / "a/b/two").write_text("2")
    upload_folder(tmp_path / "a", folder.uri)
    with local_copy(folder.uri) as path:
        assert Path(path, "one").read_text() == "1"
        assert Path(path, "b/two").read_text() == "2"
