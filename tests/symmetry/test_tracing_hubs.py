"""Small random networks of transformers and diffusers: traced, proved, tapped. Needs both packages.

`python -m pytest -q -s tests/symmetry/test_tracing_hubs.py` prints the table.
"""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from rebasin_utils.symmetry.permutation import permute, random_permutation
from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.symmetry.tracing.taps import tapped

tf = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")

ROWS: list[str] = []
WORDS = {"input_ids": torch.randint(1, 50, (2, 7), generator=torch.Generator().manual_seed(0))}
MASKED = WORDS | {"attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3])}
BOTH = WORDS | {"decoder_input_ids": WORDS["input_ids"][:, :5]}
IMAGES = {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
NOISED = {"sample": IMAGES["pixel_values"][..., :16, :16], "timestep": torch.tensor([3, 9])}
TOLD = NOISED | {"encoder_hidden_states": torch.randn(2, 5, 12)}

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48
}  # fmt: skip
LLAMA = SIZES | {"vocab_size": 50, "num_key_value_heads": 2}
PATCHES = SIZES | {"image_size": 32, "patch_size": 8}
GPT2 = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
T5 = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
DISTIL = {"vocab_size": 50, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
OPT = SIZES | {"vocab_size": 50, "ffn_dim": 48, "word_embed_proj_dim": 32}
STAGES = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2]}
UNET = {
    "sample_size": 16, "in_channels": 3, "out_channels": 3, "layers_per_block": 1,
    "block_out_channels": (16, 32), "norm_num_groups": 4,
}  # fmt: skip


def made(model: str, config: str, **options) -> Callable[[], nn.Module]:
    return lambda: getattr(tf, model)(getattr(tf, config)(**options))


def unet(kind: str, inner: str, **options) -> Callable[[], nn.Module]:
    return lambda: getattr(diffusers, kind)(
        down_block_types=("DownBlock2D", f"{inner}DownBlock2D"),
        up_block_types=(f"{inner}UpBlock2D", "UpBlock2D"),
        **UNET,
        **options,
    )


# constructor, example, groups, share of channel positions that is free at least
HUBS = {
    "ResNet": (
        made("ResNetForImageClassification", "ResNetConfig", layer_type="basic", **STAGES),
        IMAGES, 6, 0.98,
    ),
    "ViT": (made("ViTForImageClassification", "ViTConfig", **PATCHES), IMAGES, 5, 0.98),
    "BERT": (
        made("BertForSequenceClassification", "BertConfig", vocab_size=50, **SIZES),
        WORDS, 6, 0.75,
    ),
    "BERT, padded": (
        made("BertForMaskedLM", "BertConfig", vocab_size=50, attn_implementation="eager", **SIZES),
        MASKED, 5, 0.7,
    ),
    "DistilBERT": (made("DistilBertForMaskedLM", "DistilBertConfig", **DISTIL), WORDS, 5, 0.7),
    "GPT-2": (made("GPT2LMHeadModel", "GPT2Config", **GPT2), WORDS, 5, 0.93),
    "Llama": (made("LlamaForCausalLM", "LlamaConfig", **LLAMA), WORDS, 5, 0.9),
    "T5": (made("T5ForConditionalGeneration", "T5Config", **T5), BOTH, 8, 0.34),
    "OPT": (made("OPTForCausalLM", "OPTConfig", **OPT), WORDS, 5, 0.4),
    "UNet2D": (unet("UNet2DModel", "Attn", attention_head_dim=8), NOISED, 68, 0.99),
    "UNet2DCondition": (
        unet("UNet2DConditionModel", "CrossAttn", attention_head_dim=2, cross_attention_dim=12),
        TOLD, 80, 0.98,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def table():
    yield
    print("\n" + "\n".join([f"{'network':16}{'error':>10}{'groups':>8}{'free':>8}", *ROWS]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", HUBS)
def test_a_hubs_network_is_traced_proved_and_tapped(name):
    make, example, groups, free = HUBS[name]
    torch.manual_seed(0)
    net = make().eval()
    spec = PermutationSpec.trace(net, example)
    error, share = spec.check(net, example), spec.report().free_share
    ROWS.append(f"{name:16}{error:10.1e}{len(spec.groups):8}{share:8.3f}")
    assert error < 1e-5
    assert len(spec.groups) == groups
    assert share > free
    assert not [p for p in spec.pinned if "called in" in p.reason or "not underst" in p.reason]

    p = random_permutation(spec, torch.Generator().manual_seed(0))
    batch = [torch.cat([x, x.flip(0), x]) for x in example.values()]
    before = tapped(net, spec)(*batch)
    net.load_state_dict(permute(spec, p, net.state_dict()))
    for group, after in tapped(net, spec)(*batch).items():
        scale = before[group].abs().max()
        assert (after - before[group][:, p[group]]).abs().max() < 1e-4 * scale
