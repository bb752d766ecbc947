import numpy as np
import pytest

from diffsda_jax.data.face_crop import crop_face, find_faces, median_box


def test_a_crop_stays_in_the_frame():
    frames = np.arange(64, dtype=np.uint8)[None, :, None, None] * np.ones((2, 1, 64, 3), np.uint8)
    low = crop_face(frames, np.array([40.0, 50.0, 64.0, 64.0]), 8)
    assert low.shape == (2, 8, 8, 3) and low.max() == 63 - 1
    assert low[0, 0, 0, 0] > 36
    large = crop_face(frames, np.array([-10.0, 0.0, 90.0, 60.0]), 64)
    np.testing.assert_array_equal(large, frames)


def test_faces_are_the_largest_boxes():
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    answers = iter([None, [], [[0, 0, 2, 2], [1, 1, 5, 4]], np.array([[-1.0, 0, 3, 3]])])
    boxes = find_faces(lambda frame: next(answers), frames)
    assert np.isnan(boxes[:2]).all()
    np.testing.assert_array_equal(boxes[2:], [[1, 1, 5, 4], [-1, 0, 3, 3]])


def test_the_median_leaves_out_frames_without_a_face():
    none = [np.nan] * 4
    faces = np.array([none, [0, 0, 9, 9], [2, 1, 8, 9], none, [1, 5, 30, 9]], np.float64)
    np.testing.assert_array_equal(median_box(faces), [1, 1, 9, 9])
    assert np.isnan(median_box(faces[:1])).all()


@pytest.mark.parametrize("answer", [[1, 2, 3, 4], [[5, 5, 2, 2]], [[0, 0, 1]], [[0, 0, 1, np.nan]]])
def test_answers_that_are_no_boxes(answer):
    with pytest.raises(
        ValueError, match=r"the face detector returned .* must return boxes \[N, 4\]"
    ):
        find_faces(lambda frame: answer, np.zeros((1, 8, 8, 3), np.uint8))
