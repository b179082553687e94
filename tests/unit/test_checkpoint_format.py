"""Manifests: what counts as a checkpoint, and that an altered one does not."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from windlass_proto import checkpoint_folders
from windlass_proto import checkpoint_format as format_
from windlass_proto.checkpoint_format import Group, Manifest, Part, Position, Residual
from windlass_proto.consistency import Consistency
from windlass_proto.errors import CorruptionError
from windlass_proto.group_specs import GroupSpec
from windlass_proto.layout import GroupLayout, TensorSpec
from windlass_proto.rule_specs import DCASGD, Adam


def group() -> Group:
    tensors = (TensorSpec("w", (2, 3)), TensorSpec("gone", (4,)), TensorSpec("b", (), 0.5, 0.0))
    layout = GroupLayout(0, "float32", tensors, 1024, 2)
    return Group(GroupSpec(0, layout, Adam(lr=0.25), True, Consistency.parse("bsp")), frozenset({"gone"}))


def manifest(step: int = 3, parts: tuple[Part, ...] = ()) -> Manifest:
    positions = (Position("batches-1:10:2", 1, 4, 5, 2, 10, 10),)
    return Manifest("job", "model", "bsp", step, 4, "0.1.0", (group(),), parts, positions, {"best": 0.5})


def written(root: Path, step: int, parts: tuple[Part, ...] = ()) -> Path:
    folder = root / format_.folder_name(step)
    folder.mkdir(parents=True)
    format_.write_manifest(folder, manifest(step, parts))
    return folder


def test_a_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    part = Part(format_.part_name(0, "0badcafe"), 5, "ab", ((0, 0),))
    folder = written(tmp_path, 3, (part,))
    found = format_.read_manifest_untrusted(folder)
    assert found == manifest(3, (part,))
    assert found.digest == manifest(3, (part,)).digest != manifest(4, (part,)).digest
    assert os.listdir(folder) == ["manifest.json"]


def test_a_rule_that_is_refused_under_bsp_comes_back_from_the_mode_that_it_was_saved_in(tmp_path: Path) -> None:
    late = dataclasses.replace(group().spec, rule=DCASGD(), consistency=Consistency.parse("asp"))
    named = dataclasses.replace(manifest(), consistency="asp", groups=(Group(late, frozenset()),))
    folder = tmp_path / format_.folder_name(3)
    folder.mkdir()
    format_.write_manifest(folder, named)
    assert format_.read_manifest_untrusted(folder) == named


def test_tensors_that_are_never_cut_come_back_so_in_a_format_that_older_releases_refuse(tmp_path: Path) -> None:
    layout = dataclasses.replace(group().spec.layout, whole=True)
    whole = dataclasses.replace(group(), spec=dataclasses.replace(group().spec, layout=layout))
    named = dataclasses.replace(manifest(), groups=(whole,))
    folder = tmp_path / format_.folder_name(3)
    folder.mkdir()
    format_.write_manifest(folder, named)
    assert format_.read_manifest_untrusted(folder) == named
    assert (named.format, manifest().format) == (3, 1)


def test_what_workers_kept_is_part_of_a_checkpoint_and_of_no_other_format(tmp_path: Path) -> None:
    names = [format_.residual_name(1, attempt) for attempt in ("0badcafe", "00000000")]
    folder = tmp_path / format_.folder_name(3)
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"12345")
    residual = Residual(1, names[0], 5, "ab")
    with_it = dataclasses.replace(manifest(), residuals=(residual,))
    format_.write_manifest(folder, with_it)
    assert format_.read_manifest_untrusted(folder) == with_it
    assert with_it.format == 1
    assert checkpoint_folders.newest(tmp_path, print) == (folder, with_it)
    checkpoint_folders.sweep(folder, with_it)
    assert sorted(os.listdir(folder)) == ["manifest.json", names[0]], "what it does not name goes"
    (folder / names[0]).write_bytes(b"1234")
    passed: list[str] = []
    assert checkpoint_folders.newest(tmp_path, passed.append) is None
    assert names[0] in passed[0]


def test_every_torn_manifest_is_refused_by_name(tmp_path: Path) -> None:
    folder = written(tmp_path, 3)
    raw = (folder / "manifest.json").read_bytes().rstrip()
    for length in range(len(raw)):
        (folder / "manifest.json").write_bytes(raw[:length])
        with pytest.raises(CorruptionError, match=r"step-000003/manifest\.json"):
            format_.read_manifest_untrusted(folder)


@pytest.mark.parametrize(
    ("before", "after"),
    [('"step": 3', '"step": 4'), ('"best": 0.5', '"best": 0.6'), ('"w"', '"v"'), ('"format": 1', '"format": 2')],
)
def test_an_altered_manifest_is_refused(tmp_path: Path, before: str, after: str) -> None:
    path = written(tmp_path, 3) / "manifest.json"
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")
    with pytest.raises(CorruptionError, match=r"not what was written|a later format"):
        format_.read_manifest_untrusted(path.parent)


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1},
        {"parts": [{"file": "../../etc/part", "bytes": 1, "xxh3_128": "", "blocks": []}]},
        {"parts": [{"file": "part-0-00000000.safetensors", "bytes": 1, "xxh3_128": "", "blocks": [[0, 9]]}]},
        {"parts": [{"file": "part-0-00000000.safetensors", "bytes": 1, "xxh3_128": "", "blocks": [], "folder": ".."}]},
        {"groups": [{"dtype": "float32"}]},
        {"state": []},
        {"data": [{"loader": "x"}]},
        {"residuals": [{"rank": 0, "file": "../residual-0-00000000.safetensors", "bytes": 1, "xxh3_128": ""}]},
    ],
    ids=["count", "path", "block", "folder", "group", "state", "position", "residual"],
)
def test_a_manifest_that_is_whole_and_nonsense_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = written(tmp_path, 3) / "manifest.json"
    record = json.loads(path.read_text(encoding="utf-8")) | change
    del record["digest"]
    path.write_text(json.dumps({"digest": format_._digest(record), **record}), encoding="utf-8")
    with pytest.raises(CorruptionError, match="cannot be read"):
        format_.read_manifest_untrusted(path.parent)


def test_the_newest_complete_checkpoint_counts(tmp_path: Path) -> None:
    passed: list[str] = []
    assert checkpoint_folders.newest(tmp_path / "nothing", passed.append) is None
    good = written(tmp_path, 999_999)
    written(tmp_path, 1_000_000, (Part(format_.part_name(0, "0badcafe"), 5, "ab", ()),))
    (tmp_path / "step-1000001").mkdir()
    (tmp_path / "notes").mkdir()
    found = checkpoint_folders.newest(tmp_path, passed.append)
    assert found is not None
    assert found[0] == good
    assert ["no manifest" in passed[0], "lacks a part" in passed[1]] == [True, True]


def test_a_checkpoint_stays_while_a_later_one_needs_its_parts(tmp_path: Path) -> None:
    file = format_.part_name(0, "0badcafe")
    for step, folders in {1: (), 2: (), 3: ("step-000002",), 4: ("step-000002", "step-000003")}.items():
        elsewhere = tuple(Part(file, 0, "", (), folder=folder) for folder in folders)
        folder = written(tmp_path, step, (*elsewhere, Part(file, 0, "", (), whole=not folders)))
        (folder / file).touch()
    checkpoint_folders.prune(tmp_path, tmp_path / "step-000004", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000003", "step-000004"]
    checkpoint_folders.sweep(tmp_path / "step-000002", manifest(2))
    assert (tmp_path / "step-000002" / file).exists()
    (tmp_path / "step-000002" / file).unlink()
    found = checkpoint_folders.newest(tmp_path, lambda _: None)
    assert found is None, "without the parts that it builds on, none is complete"
