"""The trunk and its training against another library's, step by step: the short form of
benchmarks/same_curve_as_llama.py, and the proof that the comparison would notice."""

import pytest
import torch

pytest.importorskip("transformers", reason="the model that ours is compared with: pip install 'pixelcore[parity]'")

from benchmarks import same_curve_as_llama as same


@pytest.fixture(scope="module")
def text() -> same.Text:
    return same.standard_library_text()


@pytest.mark.slow
def test_ours_and_llama_learn_the_same_from_real_text(text: same.Text):
    curves = same.train_both(same.model_config(text.vocab_size), text, num_steps=40, schedule_steps=200)
    assert max(curves.differences) <= same.LARGEST_DIFFERENCE
    assert curves.ours[-1] < curves.ours[0] - 1, "nothing was learned, so nothing was compared"
    assert max(curves.documents) > same.BLOCKS_PER_STEP, "no batch had a block of several documents"


@pytest.mark.slow
def test_the_comparison_notices_rotary_pairs_in_the_wrong_order(text: same.Text, monkeypatch: pytest.MonkeyPatch):
    right = same.as_llama

    def with_rows_of_one_layer_as_ours(model):
        llama = right(model)
        attention = model.layers[1].attention
        rows = attention.qkv.parts["q_proj"]
        with torch.no_grad():
            llama.get_parameter("model.layers.1.self_attn.q_proj.weight").copy_(attention.qkv.weight[:rows])
        return llama

    monkeypatch.setattr(same, "as_llama", with_rows_of_one_layer_as_ours)
    curves = same.train_both(same.model_config(text.vocab_size), text, num_steps=20, schedule_steps=200)
    assert max(curves.differences) > same.LARGEST_DIFFERENCE
