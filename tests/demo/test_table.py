import io

from rich.console import Console

from unicl.demo.table import Results, show

SCORES = {
    ("a", 0): {"x": 0.2, "y": 0.5},
    ("a", 1): {"x": 0.4, "y": 0.5},
    ("b", 0): {"x": 0.35, "y": 0.1},
    ("b", 1): {"x": 0.35, "y": 0.2},
}


def test_means_deviations_and_the_best_of_each_column():
    results = Results.of(SCORES)
    cell = results.cells["a", "x"]
    assert (round(cell.mean, 6), round(cell.deviation, 6), cell.best) == (0.3, 0.141421, False)
    assert results.cells["b", "x"].best
    assert results.cells["a", "y"].best
    assert str(cell) == ".300 ± .141"
    assert results.plain()["systems"]["b"]["y"][0] == 0.15000000000000002


def test_every_column_is_shown_the_lost_ones_too():
    out = io.StringIO()
    show(Results.of(SCORES), Console(file=out, width=80))
    assert all(text in out.getvalue() for text in (".300 ± .141", ".350 ± .000", ".150 ± .071"))
