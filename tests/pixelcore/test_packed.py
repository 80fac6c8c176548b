from dataclasses import replace

import pytest
import torch

from pixelcore.packed import Packed


def test_documents_stand_end_to_end():
    packed = Packed.from_lengths([2, 1, 3])
    assert packed.offsets.tolist() == [0, 2, 3, 6]
    assert packed.positions.tolist() == [0, 1, 0, 0, 1, 2]
    assert packed.documents.tolist() == [0, 0, 2, 3, 3, 3]
    assert (packed.max_length, packed.lengths, packed.visible) == (3, (2, 1, 3), None)
    assert packed.offsets.dtype == packed.positions.dtype == torch.int32
    assert packed.documents.dtype == torch.int64


def test_documents_may_be_named():
    assert Packed.from_lengths([2, 1], documents=[7, 5]).documents.tolist() == [7, 7, 5]


@pytest.mark.parametrize("lengths", [[], [3, 0], [-1]])
def test_an_empty_document_is_refused(lengths):
    with pytest.raises(ValueError, match="must be positive"):
        Packed.from_lengths(lengths)


@pytest.mark.parametrize("visible", [[0, 2], [3, 3]])
def test_a_document_shows_at_least_one_row_and_at_most_all(visible):
    with pytest.raises(ValueError, match="must be from 1 to the lengths"):
        Packed.from_lengths([3, 2], visible=visible)


def test_documents_that_show_all_their_rows_need_no_note_of_it():
    assert Packed.from_lengths([3, 2], visible=[3, 2]).visible is None
    assert Packed.from_lengths([3, 2], visible=[1, 2]).visible == (1, 2)


def test_neighbours_of_one_length_are_one_run():
    runs = Packed.from_lengths([4, 4, 2, 4, 1, 1, 1]).equal_runs()
    assert runs == [(0, 2, 4, 4), (8, 1, 2, 2), (10, 1, 4, 4), (14, 3, 1, 1)]
    assert sum(count * length for _, count, length, _ in runs) == 17


def test_a_run_ends_where_other_rows_are_visible():
    runs = Packed.from_lengths([4, 4, 4, 4, 3], visible=[4, 2, 2, 3, 3]).equal_runs()
    assert runs == [(0, 1, 4, 4), (4, 2, 4, 2), (12, 1, 4, 3), (16, 1, 3, 3)]


def test_another_device_keeps_the_structure():
    moved = Packed.from_lengths([2, 3], visible=[1, 3]).to("meta")
    assert moved.offsets.device.type == moved.positions.device.type == moved.documents.device.type == "meta"
    assert (moved.max_length, moved.lengths, moved.visible, moved.reach) == (3, (2, 3), (1, 3), None)
    reaching = replace(moved, reach=torch.tensor([0, 0, 0, 1, 2])).to("meta")
    assert reaching.reach is not None and reaching.reach.device.type == "meta"


def test_selected_rows_keep_their_names():
    chosen = Packed.from_lengths([2, 1, 3], documents=[7, 5, 6]).select(torch.tensor([4, 0]))
    assert chosen.positions.tolist() == [1, 0]
    assert chosen.documents.tolist() == [6, 7]
