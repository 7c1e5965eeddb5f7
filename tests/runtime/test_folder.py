"""Run folders: which there are, and what status.json says of one."""

from runtime import checkpoint, folder


def test_runs_are_the_folders_with_a_checkpoint_in_the_order_of_their_names(tmp_path):
    for name in ("rope", "alibi", "nope", "logs"):
        (tmp_path / name).mkdir()
    for name, file in (("rope", checkpoint.NEWEST), ("nope", checkpoint.PREVIOUS)):
        (tmp_path / name / file).write_bytes(b"")
    (tmp_path / "alibi" / checkpoint.FRESH).write_bytes(b"")
    (tmp_path / "notes.txt").write_text("")
    assert folder.runs(tmp_path) == [tmp_path / "nope", tmp_path / "rope"]
    assert folder.runs(str(tmp_path / "nowhere")) == []


def test_a_status_is_changed_in_part_and_a_torn_one_is_empty(tmp_path):
    assert folder.read_status(tmp_path) == {}
    folder.update_status(tmp_path, state="running", iter=3)
    folder.update_status(tmp_path, iter=6)
    assert folder.read_status(tmp_path) == {"state": "running", "iter": 6}
    (tmp_path / "status.json").write_text('{"state": "runn')
    assert folder.read_status(tmp_path) == {}
