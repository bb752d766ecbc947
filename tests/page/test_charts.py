from html.parser import HTMLParser

import numpy as np
import pytest

from diffsda_jax.page.charts import Axis, Line, axis_of, format_tick, line_chart


class Tags(HTMLParser):
    """All start tags with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def points(chart):
    return [
        [tuple(map(float, pair.split(","))) for pair in line["points"].split()]
        for line in Tags(chart).of("polyline")
    ]


def test_ticks_are_round_and_inside():
    assert Axis("", 0.0, 1000.0).ticks() == [0, 500, 1000]
    assert np.allclose(Axis("", -0.93, 0.6).ticks(), [-0.5, 0, 0.5])
    assert np.allclose(Axis("", 0.15, 5.2, True).ticks(), [0.2, 0.5, 1, 2, 5])
    assert np.allclose(Axis("", 1e-9, 1e-3, True).ticks(), [1e-9, 1e-7, 1e-5, 1e-3])


def test_numbers_beside_ticks_are_short():
    assert [format_tick(x) for x in (0.0, 0.25, -1000.0, 2.5e-4, 1e6, 1e-17)] == [
        "0",
        "0.25",
        "-1000",
        "2.5e-4",
        "1e6",
        "0",
    ]


def test_an_axis_shows_all_finite_values():
    axis = axis_of([np.array([1.0, np.nan]), np.array([3.0])], "x")
    assert axis.low < 1 and axis.high > 3 and not axis.log
    assert axis_of([np.array([0.1, 10.0])], "x", log=True).log
    assert not axis_of([np.array([0.0, 10.0])], "x", log=True).log
    assert axis_of([np.array([2.0, 2.0])], "x").low < 2  # a constant
    assert axis_of([np.array([np.nan])], "x") == Axis("x", 0.0, 1.0)


def test_lines_go_from_corner_to_corner_and_leave_gaps():
    x_axis, y_axis = Axis("step", 0.0, 4.0), Axis("value", 0.0, 1.0)
    line = Line("a<b", np.arange(5), np.array([0.0, 0.5, np.nan, 1.0, np.nan]), 9)
    chart = line_chart([line], x_axis, y_axis, 'both "sides"')
    first, second = points(chart)
    left, top, right, bottom = map(float, Tags(chart).of("svg")[0]["data-plot"].split())
    assert first == [(left, bottom), (left + (right - left) / 4, (top + bottom) / 2)]
    assert second[0] == second[1] == (left + (right - left) * 0.75, top)  # a dot
    assert Tags(chart).of("svg")[0]["aria-label"] == 'both "sides"'
    assert Tags(chart).of("polyline")[0]["data-name"] == "a<b"
    assert Tags(chart).of("polyline")[0]["class"] == "line c1 dash"


@pytest.mark.parametrize("count", [1, 241, 10_000])
def test_long_lines_are_thinned_but_keep_both_ends(count):
    x_axis, y_axis = Axis("step", 0.0, float(count)), Axis("value", -1.0, 1.0)
    chart = line_chart([Line("a", np.arange(count), np.zeros(count))], x_axis, y_axis, "a")
    (line,) = points(chart)
    assert len(set(line)) <= 242
    left, _, right, _ = map(float, Tags(chart).of("svg")[0]["data-plot"].split())
    assert line[0][0] == left
    assert line[-1][0] == pytest.approx(left + (right - left) * (count - 1) / count, abs=0.1)
