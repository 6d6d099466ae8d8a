"""Test the frontier, the places of labels, and plots of scores against costs."""

import re
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from ds_distill.reporting.frontier import find_frontier
from ds_distill.reporting.label_places import Box, place_labels
from ds_distill.reporting.panels import SVG_SETTINGS, pyplot
from ds_distill.reporting.scatter import FEW, Point, Scatter, _draw, get_frontier, make_scatter_svg, write_scatter_png

# A coarse grid, so that many points have equal costs or equal worths.
POINTS = st.lists(st.tuples(st.integers(1, 8), st.integers(0, 8)), max_size=20)


def is_beaten(point: tuple[float, float], others: list[tuple[float, float]]) -> bool:
    return any(cost <= point[0] and worth >= point[1] and (cost, worth) != point for cost, worth in others)


@given(POINTS)
def test_the_frontier_is_that_of_a_search_among_all_pairs(points):
    frontier = [points[index] for index in find_frontier(points)]
    assert frontier == sorted({point for point in points if not is_beaten(point, points)})


@given(POINTS, st.integers(1, 8))
def test_the_frontier_has_the_best_point_of_every_budget(points, budget):
    affordable = [worth for cost, worth in points if cost <= budget]
    on_line = [points[index][1] for index in find_frontier(points) if points[index][0] <= budget]
    assert max(affordable, default=None) == max(on_line, default=None)


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 8)), unique=True, max_size=20), st.randoms())
def test_the_order_of_the_points_does_not_matter(points, random):
    shuffled = random.sample(points, len(points))
    assert [points[i] for i in find_frontier(points)] == [shuffled[i] for i in find_frontier(shuffled)]


def overlap(first: Box, second: Box) -> bool:
    return (
        first.left < second.right
        and second.left < first.right
        and first.bottom < second.top
        and second.bottom < first.top
    )


PLACES = st.tuples(st.floats(0, 300), st.floats(0, 250))


@settings(max_examples=25)
@given(st.lists(st.tuples(PLACES, st.floats(10, 160)), min_size=1, max_size=25))
def test_labels_stay_within_the_plot_and_off_each_other(points):
    area, height = Box(0, 0, 300, 250), 10.0
    sizes = [[(width, height), (10.0, height)] for _, width in points]
    places = place_labels([point for point, _ in points], sizes, area)
    boxes = [place.box for place in places if place]
    assert not any(overlap(first, second) for i, first in enumerate(boxes) for second in boxes[:i])
    for place, choices in zip(places, sizes, strict=True):
        if place:
            left, bottom, right, top = place.box
            assert left >= 0 and bottom >= 0 and right <= 300 and top <= 250
            assert abs(right - left - choices[place.text][0]) < 1e-9
    assert places[0] is not None, "the first label has all of the plot"


def test_a_label_prefers_its_long_text_and_a_place_beside_its_point():
    [alone] = place_labels([(150, 125)], [[(80, 10), (10, 10)]], Box(0, 0, 300, 250))
    assert alone.text == 0 and abs(alone.box.left - 150) < 20
    [squeezed] = place_labels([(10, 5)], [[(80, 10), (10, 10)]], Box(0, 0, 40, 40))
    assert squeezed.text == 1, "there is room for the short one only"
    assert place_labels([(5, 5)], [[(80, 10)]], Box(0, 0, 40, 40)) == [None]


def crowded(count: int = 40) -> Scatter:
    """Return a plot of many models that cost nearly the same, half of them exactly."""
    points = [
        Point(
            number,
            f"student {number} with a rather long name",
            "int8" if number % 2 else "fp32",
            5.0 if number % 4 < 2 else 5.0 + 0.1 * number,
            90 + (number * 7 % 11) / 5,
            89 + (number * 7 % 11) / 5,
            91 + (number * 7 % 11) / 5,
            certain=number % 5 > 0,
        )
        for number in range(1, count)
    ]
    teacher = Point(count, "teacher", "fp32", 20.0, 100.0)
    return Scatter("1 × 128 tokens", "ms", "share (%)", [*points, teacher], ["fp32", "int8"], 100.0)


def test_no_label_of_a_crowded_plot_covers_another_or_leaves_it():
    scatter = crowded()
    with pyplot().rc_context(SVG_SETTINGS):
        figure, places = _draw(scatter)
        left, bottom, right, top = 72 / figure.dpi * figure.axes[0].bbox.extents
        pyplot().close(figure)
    boxes = [place.box for place in places]
    assert len(boxes) == len(scatter.points), "each point has a label"
    assert not any(overlap(first, second) for i, first in enumerate(boxes) for second in boxes[:i])
    assert all(box.left >= left and box.right <= right and box.bottom >= bottom and box.top <= top for box in boxes)


def test_a_plot_names_its_points_and_needs_nothing_else(tmp_path):
    scatter = crowded()
    svg = make_scatter_svg(scatter, "figure-1")
    texts = [
        "".join(element.itertext()).strip() for element in ElementTree.fromstring(svg).iter() if "text" in element.tag
    ]
    assert {str(point.number) for point in scatter.points} <= {text.split(" ")[0] for text in texts}
    assert "40 teacher" in texts and not any(text.startswith("1 student") for text in texts), "the frontier has names"
    few = Scatter("size", "MB", "share (%)", scatter.points[:FEW], ["fp32", "int8"])
    assert make_scatter_svg(few, "x").count("student ") >= FEW
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]+"', "", svg) and svg == make_scatter_svg(scatter, "figure-1")
    assert "var(--series-0)" in svg and "var(--page)" in svg and "#0072b2" not in svg
    write_scatter_png(scatter, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_a_score_that_was_not_measured_on_the_file_is_no_part_of_the_frontier():
    points = [
        Point(1, "a", "int8", 1.0, 99.0, certain=False),
        Point(2, "b", "int8", 2.0, 98.0),
        Point(3, "c", "fp32", 3.0, 97.0),
    ]
    assert [point.number for point in get_frontier(points)] == [2]
    svg = make_scatter_svg(Scatter("size", "MB", "%", points[:1], ["int8"]), "x")
    assert "frontier" not in re.sub("<desc.*?</desc>", "", svg), "a plot without any such point has no line"


@settings(max_examples=5)
@given(st.lists(st.tuples(st.floats(0.01, 1e4), st.floats(-5, 105)), min_size=1, max_size=5))
def test_any_costs_and_scores_can_be_drawn(values):
    points = [
        Point(i, "$x_{$ <b>", "fp32", cost, worth, worth - 1, worth + 1) for i, (cost, worth) in enumerate(values)
    ]
    ElementTree.fromstring(make_scatter_svg(Scatter("size", "MB", "%", points, ["fp32"]), "x"))
