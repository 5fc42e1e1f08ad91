"""The weights that come with eslkit: what they are, what the model card says, what they reach."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from eslkit_tsdn.data.photos import packaged_photos
from eslkit_tsdn.evaluation import evaluate, evaluate_input, test_pairs
from eslkit_tsdn.models import TSDN
from eslkit_tsdn.weights import MODEL_CARD, SHIPPED, find_weights, load_network, read_metadata

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "shipped.json"


def test_it_is_the_papers_network_in_a_small_file() -> None:
    network = load_network(find_weights())
    assert type(network) is TSDN
    assert network.state_dict().keys() == TSDN().state_dict().keys()
    assert SHIPPED.stat().st_size < 4e6
    assert json.loads(read_metadata(SHIPPED)["settings"])["preset"]["name"] == "shipped"


def test_the_figures_are_those_of_this_file() -> None:
    results = json.loads(RESULTS.read_text("utf-8"))
    assert results["weights"] == hashlib.sha256(SHIPPED.read_bytes()).hexdigest()
    assert results["settings"] == json.loads(read_metadata(SHIPPED)["settings"])


def test_the_model_card_says_what_was_measured() -> None:
    """Every row of its tables is a row of the results."""
    results, card = json.loads(RESULTS.read_text("utf-8")), MODEL_CARD.read_text("utf-8")
    assert results["weights"][:16] in card
    for name in ("folder", "packaged"):
        before, after = results[name]["noisy"], results[name]["denoised"]
        for ratio in (1, 4, 16, 32, 48, 64, 100, 250, 300):
            cells = [
                f"{figures[f'psnr_x{ratio}']:.2f} / {figures[f'ssim_x{ratio}']:.3f}"
                for figures in (before, after)
            ]
            assert f"| x{ratio} | {cells[0]} | {cells[1]} |" in card


def test_it_denoises_photographs_that_it_has_not_seen() -> None:
    network = load_network(SHIPPED)
    photos = [photo for photo in packaged_photos() if photo.name in ("coffee", "chelsea")]
    pairs = test_pairs(photos, ratios=(16, 100, 300), largest=128)
    noisy, made = evaluate_input(pairs), evaluate(network, pairs)
    for ratio in (16, 100, 300):
        assert made[f"psnr_x{ratio}"] > noisy[f"psnr_x{ratio}"] + 3
    with torch.no_grad():
        assert float(network(torch.zeros(1, 4, 32, 32)).abs().max()) < 0.05, "black stays black"
