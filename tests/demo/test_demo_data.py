"""The demo's package data: there, small enough, and texts that share nothing."""

import pytest

from thermoe import demo
from thermoe.errors import DataError


def test_texts_are_four_held_out_slices_of_real_length():
    paths = demo.demo_text_paths()
    assert [p.stem for p in paths] == [
        "heldout_king_james_bible",
        "heldout_shakespeare_eight_plays",
        "heldout_us_inaugural_addresses",
        "heldout_us_state_of_the_union",
    ]
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert 40_000 <= len(text) <= 60_000
        assert "\ufffd" not in text


def test_calibration_text_shares_no_long_line_with_the_held_out_texts():
    calibration = demo.calibration_text_path().read_text(encoding="utf-8")
    assert 110_000 <= len(calibration) <= 121_000
    held = [line for path in demo.demo_text_paths() for line in path.read_text(encoding="utf-8").splitlines()]
    long_lines = {line.strip() for line in held if len(line.strip()) > 60}
    assert len(long_lines) > 500
    assert not long_lines & {line.strip() for line in calibration.splitlines()}


def test_missing_data_is_said_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "files", lambda package: tmp_path)
    for missing in (demo.demo_model_path, demo.demo_text_paths, demo.calibration_text_path):
        with pytest.raises(DataError, match=r"missing from this installation .*train_demo_model\.py"):
            missing()
