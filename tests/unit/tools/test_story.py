"""The demonstration's steps and its summary: a failed step is never reported as OK."""

import pytest

from tools.demo.story import Failed, Story


def fail() -> str:
    raise Failed("no answer")


def test_a_step_that_fails_fails_the_whole_and_the_steps_after_it_are_not_reached(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run: list[str] = []
    story = Story()
    story.chapter("first", [("one", lambda: "fine"), ("two", fail), ("three", lambda: run.append("three") or "")])
    story.chapter("second", [("four", lambda: run.append("four") or "")])
    story.chapter("at the end", [("cleaned up", lambda: run.append("cleaned up") or "gone")], always=True)
    capsys.readouterr()
    assert story.summary("all of it") is False
    assert run == ["cleaned up"]
    words = [line[:12].split() for line in capsys.readouterr().out.splitlines() if line]
    assert words[1:] == [
        ["OK", "one"],
        ["FAILED", "two"],
        ["-", "thre"],
        ["-", "four"],
        ["OK", "clea"],
        ["FAILED:", "5", "st"],
    ]


def test_an_error_nobody_expected_is_a_failure_too(capsys: pytest.CaptureFixture[str]) -> None:
    story = Story()
    story.chapter("first", [("one", lambda: str(1 // 0))])
    assert "ZeroDivisionError" in capsys.readouterr().out
    assert story.summary("all of it") is False


def test_without_a_failure_it_is_good(capsys: pytest.CaptureFixture[str]) -> None:
    story = Story()
    story.chapter("first", [("one", lambda: "x" * 200)])
    assert story.summary("all of it") is True
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) <= 100
