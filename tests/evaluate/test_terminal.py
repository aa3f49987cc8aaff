import io

from rich.console import Console

from unicl.evaluate.report import Unreadable
from unicl.evaluate.terminal import print_report


def printed(report, width=110):
    file = io.StringIO()
    print_report(report, console=Console(file=file, width=width))
    return file.getvalue()


def test_the_terminal_shows_every_number(report):
    text = printed(report)
    for result in report.results:
        assert result.title in text
        for score in result.scores:
            assert score.name in text
    assert "95% interval" in text


def test_the_weakest_classes_come_first(report):
    text = printed(report)
    start = text.index("Weakest classes")
    result = report.results[0]
    weakest = min(result.classes, key=lambda one: (one.value, one.name))
    assert weakest.name in text[start:].splitlines()[4]


def test_brackets_in_names_are_not_markup(report):
    from dataclasses import replace

    text = printed(replace(report, title="runs/[bold]a", notes=("a note on [red]",)))
    assert "runs/[bold]a" in text
    assert "a note on [red]" in text


def test_of_many_unreadable_images_the_first_are_listed(report):
    from dataclasses import replace

    bad = tuple(Unreadable(id=f"{k}.png", reason="empty") for k in range(25))
    text = printed(replace(report, unreadable=bad))
    assert "could not be read: 25" in text
    assert "9.png: empty" in text
    assert "10.png: empty" not in text
    assert "and 15 more" in text
