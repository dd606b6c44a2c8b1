"""compare: what the folders say, in one table and one picture."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

from conftest import Built, run
from tierexport.artifact.folder import read_verification
from tierexport.artifact.manifest import read_manifest
from tierexport.report.card import render_card


def test_the_table_says_what_the_folders_say(scored: Path, packed: Built, tmp_path: Path) -> None:
    done = run("compare", scored, packed.folder, "--picture", tmp_path / "sizes.svg", "--json")
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)["artifacts"]
    assert [(each["name"], each["format"]) for each in rows] == [
        ("four_bit", "torchao"),
        ("three_tier", "gguf"),
        ("three_tier", "torchao"),
    ]  # by size
    verified = {each["format"]: each for each in json.loads((scored / "verify.json").read_text())["results"]}
    for row in rows[1:]:
        ours = verified[row["format"]]
        assert row["loss"] == 1 - ours["cos_mean"]
        assert row["loss_ci"] == [1 - ours["cos_mean_ci"][1], 1 - ours["cos_mean_ci"][0]]
        assert (row["relative_error"], row["relative_error_ci"]) == (ours["relative_error"], ours["relative_error_ci"])
        (judged,) = ours["retrieval"]
        assert row["retrieval"]["retrieval"]["delta"] == judged["delta"]
        assert row["retrieval"]["retrieval"]["ci"] == [judged["ci_low"], judged["ci_high"]]
    assert rows[0]["retrieval"] == {}  # it was not scored
    assert rows[0]["bytes"] == packed.artifact("torchao")["bytes"]
    shown = run("compare", scored, packed.folder, "--picture", tmp_path / "sizes.svg")
    assert f"{judged['delta']:+.4f} ({judged['ci_low']:+.4f} to {judged['ci_high']:+.4f})" in shown.stdout
    assert f"{rows[2]['relative_error']:.5f}" in shown.stdout


def test_the_picture_names_every_artifact_and_comes_out_the_same_each_time(scored: Path, packed: Built, tmp_path: Path) -> None:
    pictures = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for picture in pictures:
        assert run("compare", scored, packed.folder, "--picture", picture).exit_code == 0
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    said = [each.text for each in ElementTree.parse(pictures[0]).iter("{http://www.w3.org/2000/svg}text")]
    assert {"three_tier, gguf on cpu", "three_tier, torchao on cpu", "four_bit, torchao on cpu"} <= set(said)
    assert {"MB", "1 − cosine to fp32", "relative error", "retrieval: Δ NDCG@10 vs fp32"} <= set(said)
    assert run("compare", scored, "--picture", tmp_path / "sizes.png").exit_code == 0
    assert (tmp_path / "sizes.png").read_bytes().startswith(b"\x89PNG")


def test_names_carry_the_model_where_there_are_several(scored: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(scored, tmp_path / "other"))
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["model"] |= {"name": "another", "digest": "0"}
    (other / "manifest.json").write_text(json.dumps(manifest))
    done = run("compare", scored, other, "--picture", tmp_path / "two.svg", "--json")
    names = {each["name"] for each in json.loads(done.stdout)["artifacts"]}
    assert names == {"all-MiniLM-L6-v2 three_tier", "another three_tier"}


def test_a_verification_without_a_relative_error_still_opens(scored: Path, tmp_path: Path) -> None:
    """As those of earlier versions are: compared and published with the figures that they have."""
    folder = Path(shutil.copytree(scored, tmp_path / "earlier"))
    whole = json.loads((folder / "verify.json").read_text())
    for result in whole["results"]:
        del result["relative_error"], result["relative_error_ci"]
    (folder / "verify.json").write_text(json.dumps(whole))
    done = run("compare", folder, "--picture", tmp_path / "c.svg", "--json")
    assert done.exit_code == 0, done.stderr
    assert [each["relative_error"] for each in json.loads(done.stdout)["artifacts"]] == [None, None]
    shown = render_card(read_manifest(folder), read_verification(folder), "name = 1")
    assert f"{whole['results'][0]['cos_mean']:.5f}" in shown
    assert "type: relative_error" not in shown


def test_builds_of_one_recipe_are_told_apart_by_their_folders(scored: Path, packed: Built, tmp_path: Path) -> None:
    for name in ("one/out", "two/out", "two/other"):
        shutil.copytree(scored, tmp_path / name)

    def named(*folders: Path) -> list[str]:
        done = run("compare", *folders, "--picture", tmp_path / "apart.svg", "--json")
        assert done.exit_code == 0, done.stderr
        return [each["name"] for each in json.loads(done.stdout)["artifacts"] if each["format"] == "torchao"]

    one, two, other = (tmp_path / name for name in ("one/out", "two/out", "two/other"))
    assert sorted(named(two, other, packed.folder)) == ["four_bit", "three_tier (other)", "three_tier (out)"]
    assert sorted(named(one, two)) == ["three_tier (one/out)", "three_tier (two/out)"]
    said = [each.text for each in ElementTree.parse(tmp_path / "apart.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert {"three_tier (one/out), gguf on cpu", "three_tier (two/out), gguf on cpu"} <= set(said)
    assert "is named twice" in run("compare", one, tmp_path / "two" / ".." / "one" / "out").stderr


def test_folders_without_figures_are_refused(scored: Path, tmp_path: Path) -> None:
    def refused(folder: Path, picture: str = "c.svg") -> str:
        done = run("compare", folder, "--picture", tmp_path / picture)
        assert done.exit_code == 2
        assert not (tmp_path / picture).exists()
        return done.stderr

    assert "can't read" in refused(tmp_path)
    assert "a picture is one of svg, png, pdf" in refused(scored, "c.txt")
    folder = Path(shutil.copytree(scored, tmp_path / "copy"))
    whole = json.loads((folder / "verify.json").read_text())
    for result in whole["results"]:
        del result["cos_mean_ci"]
    (folder / "verify.json").write_text(json.dumps(whole))
    assert "cos_mean_ci: Field required): verify the folder again" in refused(folder)
    (folder / "verify.json").write_text(json.dumps(whole | {"results": []}))
    assert "no artifact in it ran on any device" in refused(folder)
    (folder / "verify.json").unlink()
    assert "verify.json" in refused(folder)
    assert run("compare").exit_code == 2
