"""Files are whole or absent; a stage is done once, and again when anything about it changed."""

import os
import stat
import threading
from pathlib import Path

import pytest

from tierexport.base.errors import ArtifactError, MachineError
from tierexport.base.files import write_whole, writing
from tierexport.base.locks import locked
from tierexport.base.outputs import building, making
from tierexport.base.stages import Stages, stage_key


class Maker:
    """Makes a stage's folder and counts how often it was asked to."""

    def __init__(self, content: str = "done") -> None:
        self.content, self.calls = content, 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "file").write_text(self.content)


def test_a_stage_is_made_once_per_key(tmp_path: Path) -> None:
    make = Maker()
    for key, calls in (("a", 1), ("a", 1), ("b", 2), ("b", 2)):
        assert (Stages(tmp_path).run("stage", key, make) / "file").read_text() == "done"
        assert make.calls == calls


@pytest.mark.parametrize("harm", ["change", "remove", "add"])
def test_a_harmed_stage_is_made_again(tmp_path: Path, harm: str) -> None:
    make = Maker()
    folder = Stages(tmp_path).run("stage", "key", make)
    if harm == "change":
        (folder / "file").write_text("dome")
    elif harm == "remove":
        (folder / "file").unlink()
    else:
        (folder / "more").write_text("")
    Stages(tmp_path).run("stage", "key", make)
    assert make.calls == 2
    assert [file.name for file in folder.iterdir()] == ["file"]


def test_a_stage_that_fails_leaves_nothing_and_keeps_the_old(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise ValueError

    stages = Stages(tmp_path)
    stages.run("stage", "old", Maker("old"))
    with pytest.raises(ValueError):
        stages.run("stage", "new", fail)
    assert {path.name for path in tmp_path.rglob("*")} == {"stage", "file", ".stages", "stage.json"}
    assert (tmp_path / "stage" / "file").read_text() == "old"


def test_what_a_killed_stage_left_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / ".stage.partial").mkdir()
    (tmp_path / ".stage.partial" / "half").write_text("half")
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "unrecorded").write_text("killed between the rename and the record")
    folder = Stages(tmp_path).run("stage", "key", Maker())
    assert [file.name for file in folder.iterdir()] == ["file"]


def test_a_stage_that_another_is_at_work_on_is_not_dropped_meanwhile(tmp_path: Path) -> None:
    stages = Stages(tmp_path)
    folder = stages.run("stage", "key", Maker())
    dropping = threading.Thread(target=stages.drop, args=("stage",))
    with locked(folder):
        dropping.start()
        dropping.join(0.3)
        assert stages.record("stage") is not None
    dropping.join()
    assert not folder.exists()
    stages.drop("stage")  # what is gone already


MODULE = "tierexport.base.stages"


def test_keys_differ_with_their_inputs() -> None:
    assert stage_key(MODULE, "a", 1) == stage_key(MODULE, "a", 1)
    assert len({stage_key(MODULE, *each) for each in (("a", 1), ("a", 2), ("a",), (["a", 1],))}) == 4


def test_a_build_takes_the_place_of_the_last_one_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for content in ("first", "second"):
        with building(out) as work:
            write_whole(work / "manifest.json", content)
            if content == "second":
                assert (out / "manifest.json").read_text() == "first"  # untouched until the end
    assert (out / "manifest.json").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_build_that_fails_leaves_the_last_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with building(out) as work:
        write_whole(work / "manifest.json", "first")
    with pytest.raises(ValueError), building(out) as work:
        write_whole(work / "manifest.json", "second")
        raise ValueError
    assert (out / "manifest.json").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / ".out.replaced").mkdir()
    (tmp_path / ".out.replaced" / "manifest.json").write_text("first")
    with pytest.raises(ValueError), building(tmp_path / "out"):
        raise ValueError
    assert (tmp_path / "out" / "manifest.json").read_text() == "first"


def test_other_peoples_folders_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="is not an artifact"), building(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_a_folder_is_made_anew_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def make(content: str, stopped: bool = False) -> None:
        with making(out, lambda folder: (folder / "mark").is_file(), "of ours") as work:
            assert not list(work.iterdir())
            (work / "mark").write_text(content)
            if stopped:
                raise KeyboardInterrupt

    (tmp_path / ".out.building").mkdir()
    (tmp_path / ".out.building" / "left").write_text("by a kill")
    make("first")
    with pytest.raises(KeyboardInterrupt):
        make("second", stopped=True)
    assert (out / "mark").read_text() == "first"
    make("third")
    assert (out / "mark").read_text() == "third"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ArtifactError, match="is not of ours"), making(out, lambda _: False, "of ours"):
        out.mkdir()
        (out / "thesis.txt").write_text("years of work")
    assert (out / "thesis.txt").read_text() == "years of work"


def test_two_builds_of_one_folder_do_not_meet(tmp_path: Path) -> None:
    with (
        building(tmp_path / "out"),
        pytest.raises(MachineError, match="another run is at work on "),
        building(tmp_path / "out"),
    ):
        pass


def test_a_file_is_written_whole_and_readable(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "file", "text")
    assert (tmp_path / "a" / "file").read_text() == "text"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(MachineError, match="can't write"), building(tmp_path / "out"):
        pass


def test_a_folder_that_can_t_be_made_is_named() -> None:
    with pytest.raises(MachineError, match="can't write /proc/none/file"):
        write_whole(Path("/proc/none/file"), "text")


def test_another_missing_file_is_not_taken_for_the_target(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writing(tmp_path / "out"):
        (tmp_path / "missing").read_text()


def test_a_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="can't write"), building(tmp_path / "file" / "out"):
        pass
