"""How long a sweep still takes is told from what its points have trained and asked."""

from llava_lab.experiment.pace import Pace
from llava_lab.experiment.sweep import Point

# Two seeds, each of a model that is asked in three ways, and of another that is asked in one.
POINTS = [
    Point({"shown": shown}, options, seed)
    for shown, options in {
        "4": {"data.views.frames": 4},
        "8": {"data.views.frames": 8},
        "16": {"data.views.frames": 16},
        "linear": {"model.connector": "Linear"},
    }.items()
    for seed in (0, 1)
]


def cost(seconds: float, training: float) -> dict[str, float]:
    return {"seconds": seconds, "seconds_trained_here": training}


def test_points_that_only_ask_are_told_from_those_that_train() -> None:
    pace = Pace(POINTS, jobs=2)
    assert pace.left == ""
    pace.ended(POINTS[0], cost(1100, 1000))
    # Three others train, of each seed two only ask.
    assert pace.left == "; about 30:50 left"
    for point in POINTS[1:6]:
        pace.ended(point, cost(100, 0))
    assert pace.left == "; about 18:20 left"
    for point in POINTS[6:]:
        pace.ended(point, {})
    assert pace.left == ""


def test_points_whose_stages_were_there_do_not_tell_how_long_training_takes() -> None:
    pace = Pace(POINTS, jobs=1)
    pace.ended(POINTS[0], cost(50, 0))
    assert pace.left == ""
    pace.ended(POINTS[1], cost(20, 300))  # its last process alone, after an interruption
    assert pace.left == ""
    pace.ended(POINTS[6], cost(350, 300))
    assert pace.left == "; about 09:10 left"
