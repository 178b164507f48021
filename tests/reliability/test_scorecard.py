"""The scorecard's own book-keeping."""
import scorecard


def test_every_gate_is_in_the_fast_set_and_no_row_is_made_up(request):
    """Only told of a whole run: of a part of the tests, a part of the rows is there."""
    fast = scorecard.collected(request.session.items)
    if fast and len({item.path for item in request.session.items}) > 60:
        assert set(scorecard.GATES) <= fast


def test_the_table_tells_passed_from_failed_and_open(tmp_path, monkeypatch):
    monkeypatch.setattr(scorecard, "_found", scorecard.collections.defaultdict(
        dict, {1: {"a::b": ["passed", "passed"]}, 2: {"a::c": ["passed", "failed"]}}))
    scorecard.write(tmp_path / "t.md", "these versions")
    text = (tmp_path / "t.md").read_text()
    assert "1 of 45 passed" in text and "| **1** | " in text and "| passed | `a::b` (2 cases) |" in text
    assert "| failed | `a::c` (2 cases) |" in text and text.count("| open |  |") == 43
