from __future__ import annotations

import pytest
import torch

from cvaeopt.config import Config
from cvaeopt.errors import CheckpointError
from cvaeopt.vae.model import CVAE, check_weights, widths


def test_the_default_widths_have_the_labs_parameter_count() -> None:
    assert sum(parameter.numel() for parameter in CVAE().parameters()) == 1_585_620


@pytest.mark.parametrize(
    ("module", "gflop"),
    [
        ("frame_transformation", 0.787),
        ("label_transformation", 0.068),
        ("Gaussian_Predictor", 0.033),
        ("Decoder_Fusion", 2.516),
        ("Generator", 3.055),
    ],
)
def test_each_module_costs_what_the_labs_does(module: str, gflop: float) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    channels = {
        "frame_transformation": 3,
        "label_transformation": 3,
        "Gaussian_Predictor": 160,
        "Decoder_Fusion": 172,
        "Generator": 192,
    }
    model = CVAE().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        getattr(model, module)(torch.zeros(1, channels[module], 32, 64))
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, abs=0.0015)


def test_the_keys_of_the_weights_are_the_labs() -> None:
    keys = set(CVAE(8, 4, 4, 8).state_dict())
    for key in (
        "frame_transformation.0.conv1.weight",
        "frame_transformation.0.skip.weight",
        "frame_transformation.1.block.0.conv1.0.weight",
        "frame_transformation.1.block.0.depth_conv.weight",
        "frame_transformation.1.block.1.conv_out.bias",
        "label_transformation.2.running_mean",
        "Gaussian_Predictor.6.weight",
        "Decoder_Fusion.2.block.0.adaptor.weight",
        "Decoder_Fusion.5.bias",
        "Generator.7.weight",
    ):
        assert key in keys
    assert {key.split(".")[0] for key in keys} == {
        "frame_transformation",
        "label_transformation",
        "Gaussian_Predictor",
        "Decoder_Fusion",
        "Generator",
    }


def test_widths_are_read_back_from_the_weights() -> None:
    for shape in [(128, 32, 12, 192), (32, 16, 4, 48), (8, 4, 8, 16)]:
        assert tuple(widths(CVAE(*shape).state_dict()).values()) == shape


def test_a_mismatch_names_the_first_tensor_with_both_shapes() -> None:
    with pytest.raises(
        CheckpointError, match=r"frame_transformation\.0\.conv1\.weight.*\(2, 3, 3, 3\).*\(1, 3, 3, 3\)"
    ):
        check_weights(CVAE(8, 4, 4, 8), CVAE(16, 4, 4, 8).state_dict())
    with pytest.raises(CheckpointError, match="no tensor 'frame_transformation"):
        widths({"conv.weight": torch.zeros(1)})


def test_weights_depend_on_the_seed_alone() -> None:
    config = Config(F_dim=8, L_dim=4, N_dim=4, D_out_dim=8, seed=3)
    torch.manual_seed(1)
    first = CVAE.of(config).state_dict()
    before = torch.random.get_rng_state()
    second = CVAE.of(config).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = CVAE.of(config.model_copy(update={"seed": 4})).state_dict()
    assert not torch.equal(first["Generator.7.weight"], other["Generator.7.weight"])
