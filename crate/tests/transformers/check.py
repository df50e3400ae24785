"""Saved models against transformers: each case is a folder with `model/` and `logits.safetensors`.

python check.py CASE...   prints a line for each case; ends with 1 if one is not read as it was saved.

The file holds `input_ids`, the logits that lowbit computes from them in f32 and in the dtype that is stored, and how far
these may be from transformers', which computes in f32.
"""

import pathlib
import sys
import warnings

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, Mamba2ForCausalLM
from transformers.utils import logging


def check(case: pathlib.Path) -> str | None:
    """What is wrong with a case; nothing if it is as it should be."""
    folder, expected = case / "model", load_file(case / "logits.safetensors")
    config = AutoConfig.from_pretrained(folder)
    is_mamba2 = config.model_type == "mamba2"
    if is_mamba2:
        width = config.num_heads * config.head_dim
        if config.hidden_size * config.expand != width:
            return f"expand = {config.expand} does not make {config.hidden_size} to {width}"
    of = Mamba2ForCausalLM if is_mamba2 else AutoModelForCausalLM
    model, info = of.from_pretrained(folder, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            return f"{kind}: {sorted(info[kind])}"
    found = AutoModelForCausalLM.from_pretrained(folder).__class__.__name__
    if [found] != config.architectures:
        return f"architectures = {config.architectures} does not lead to {found}"
    with torch.no_grad():
        logits = model.eval()(expected["input_ids"].long()).logits.float()
    errors = {kind: (logits - expected[f"{kind}.logits"]).abs().max().item() for kind in ("f32", "stored")}
    allowed = {kind: expected[f"{kind}.tolerance"].item() for kind in errors}
    told = ", ".join(f"{error:.1e} {kind} ({allowed[kind]:.0e} allowed)" for kind, error in errors.items())
    print(f"{case.name}: logits within {told}")
    # Not a number is not within anything.
    return None if all(errors[kind] <= allowed[kind] for kind in errors) else f"logits differ: {told}"


def main() -> int:
    logging.set_verbosity_error()
    # A warning about a config is a mistake in it.
    warnings.filterwarnings("error", module="transformers.configuration_utils")
    found = {case: check(pathlib.Path(case)) for case in sys.argv[1:]}
    for case, wrong in found.items():
        if wrong:
            print(f"{case}: {wrong}", file=sys.stderr)
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
