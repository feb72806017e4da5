"""What cannot be generated is refused in one sentence before the network is called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import idlm
from idlm.errors import UserError
from idlm.models import DiffusionLM
from tests.sampling.helpers import count_calls
from tests.tiny_models import make_models

Make = Callable[..., DiffusionLM]
MASK = 12
SLOT = [1, MASK]


class Letters:
    """A tokenizer of letters a to l; anything else is outside of a small vocabulary."""

    eos_token_id = None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        # numbers
        ({"num_samples": 0}, "num_samples is 0; it must be at least 1"),
        ({"num_samples": 2.5}, "num_samples is 2.5; it must be a whole number of at least 1"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"length": 0}, "length is 0; it must be at least 1"),
        ({"length": 17}, "length is 17 but the model was trained on 16 tokens; ask for 16 or few"),
        ({"num_samples": 10**12}, "num_samples is 1000000000000 and length is 16, which no memory"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1, or left out"),
        (
            {"batch_size": 2.5},
            "batch_size is 2.5; it must be a whole number of at least 1, or left",
        ),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"seed": 2**64}, r"seed is 18446744073709551616; it must be below 2\^64"),
        ({"first_index": -1}, "first_index is -1; it must be at least 0"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0 and finite"),
        ({"temperature": float("inf")}, "temperature is inf; it must be above 0 and finite"),
        ({"temperature": float("nan")}, "temperature is nan; it must be above 0 and finite"),
        ({"temperature": "1"}, "temperature is '1'; it must be a number"),
        ({"top_p": None}, "top_p is None; it must be a number"),
        ({"top_p": 0.0}, r"top_p is 0.0; it must be in \(0, 1\]"),
        ({"top_p": 1.01}, r"top_p is 1.01; it must be in \(0, 1\]"),
        ({"top_p": float("nan")}, r"top_p is nan; it must be in \(0, 1\]"),
        ({"order": "best"}, "order is 'best'; choose one of random, confidence, entropy, margin"),
        ({"stride": 0}, "stride is 0; it must be at least 1"),
        ({"stride": 17}, "stride is 17 but .* 16 tokens; choose from 1 to 16 new tokens"),
        ({"probabilities": True}, "probabilities are for a callback, and there is none"),
        # prompts
        ({"prompt": []}, "prompt is empty; give it a token at least, or leave prompt out"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": [[1], []]}, "prompt 1 is empty"),
        ({"prompt": [1] * 16}, "prompt has 16 tokens and length is 16, which counts the prompt in"),
        ({"prompt": [[1], [1] * 9], "length": 8}, "prompt 1 has 9 tokens and length is 8"),
        ({"prompt": [1, 13]}, "prompt holds the token id 13; the model's tokens are 0 to 11"),
        ({"prompt": [[1], [-1]]}, "prompt 1 holds the token id -1"),
        ({"prompt": [1, MASK]}, "prompt holds 12, the mask id, which is no token; .* as infill"),
        ({"prompt": [1.0, 2.5]}, "prompt holds float64 such as 1.0; token ids are whole numbers"),
        ({"prompt": [[1], [2.5]]}, "prompt 1 holds float64 such as 2.5"),
        ({"prompt": [True]}, "prompt holds bool such as True; token ids are whole numbers"),
        ({"prompt": {"input_ids": [1]}}, "prompt is {.*}; token ids are whole numbers"),
        ({"prompt": 5}, r"prompt has shape \(\); give one row \[L\], a table \[N, L\], or a list"),
        ({"prompt": torch.ones(1, 2, 3, dtype=torch.int64)}, r"prompt has shape \(1, 2, 3\); give"),
        ({"prompt": [[1], 2]}, "prompt has 2 axes or mixes rows with numbers"),
        ({"prompt": [[[1]], [[2]]]}, "prompt has 3 axes or mixes"),
        ({"prompt": [[1], [2]], "num_samples": 3}, "prompt has 2 rows and num_samples is 3"),
        ({"prompt": ["a", [1]]}, r"prompt mixes text with \[1\]; give all as text or all as ids"),
        ({"prompt": "az"}, "prompt holds the token id 25; the model's tokens are 0 to 11"),
        ({"prompt": "a\ud800"}, r"prompt holds '\\ud800', which is no character; give it as UTF-8"),
        # infills
        ({"infill": SLOT, "prompt": [1]}, "prompt and infill are both given"),
        ({"infill": SLOT, "length": 3}, "length is 3 but infill 0 has 2 tokens; leave length out"),
        ({"infill": [1, 2]}, "infill has nothing to write; mark it by .* the mask id 12"),
        ({"infill": [SLOT, [1, 2]]}, "infill 1 has nothing to write"),
        ({"infill": "abc"}, "infill has nothing to write"),
        ({"infill": ([1, 2], [False, False])}, "infill has nothing to write"),
        ({"infill": [1, 13, MASK]}, "infill holds the token id 13"),
        ({"infill": [-1, MASK]}, "infill holds the token id -1"),
        ({"infill": ([1, 13], [True, False])}, "infill holds the token id 13"),
        ({"infill": ([1, MASK], [True, False])}, "infill holds 12, the mask id"),
        ({"infill": ([1, 2], [0, 1])}, "the mask of infill holds int64; it is True where to write"),
        ({"infill": ([1, 2], [True])}, "infill has rows of 2 tokens and masks of 1; each token"),
        ({"infill": ([1.5, 2.0], [True, True])}, "the tokens of infill holds float64 such as 1.5"),
        ({"infill": [MASK] * 17}, "the length of infill is 17 but the model was trained on 16"),
        ({"infill": [SLOT, SLOT], "num_samples": 3}, "infill has 2 rows and num_samples is 3"),
        ({"infill": "a[MASK:0]"}, r"infill has the slot '\[MASK:0\]'; write \[MASK\] for one"),
        ({"infill": "a[MASK:x]"}, r"infill has the slot '\[MASK:x\]'"),
        ({"infill": "a[MASK:-2]"}, r"infill has the slot '\[MASK:-2\]'"),
        ({"infill": "a[MASK:99999999999]"}, "infill has the slot .*, up to 1000000"),
        ({"infill": SLOT, "stop": 1}, "stop ends a text, but an infill has its own end"),
        # stop rules
        ({"stop": 13}, "stop holds the token id 13; the model's tokens are 0 to 11"),
        ({"stop": [1, MASK]}, "stop holds 12, the mask id"),
        ({"stop": []}, r"stop is \[\]; give a token id, a list of ids, or 'eos'"),
        ({"stop": 1.5}, "stop holds float64 such as 1.5"),
        ({"stop": "end"}, "stop is 'end'; give a token id, a list of ids, or 'eos'"),
        ({"stop": "eos"}, "stop is 'eos' but the tokenizer has no such token; give its id"),
    ],
)
def test_an_impossible_request_is_refused_before_any_work(
    make: Make, request_: dict[str, Any], sentence: str
) -> None:
    model = make()
    calls = count_calls(model)
    with pytest.raises(UserError, match=sentence) as caught:
        idlm.generate(model, **{"tokenizer": Letters(), **request_})
    assert calls == []
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("request_", [{"prompt": "a"}, {"infill": "a[MASK]"}, {"stop": "eos"}])
def test_text_without_a_tokenizer_is_refused(
    make: Make, tmp_path: Path, request_: dict[str, str]
) -> None:
    with pytest.raises(UserError, match=r"needs a tokenizer, and .* pass token ids, or a token"):
        idlm.generate(make(), **request_)
    folder = make_models(tmp_path).teacher
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"needs a tokenizer \(.*\); pass token ids, or a tokeni"):
        idlm.generate(idlm.load(folder), **request_)


def test_a_process_without_a_sampler_is_refused(make: Make) -> None:
    model = make()
    model.process.name = "continuous"
    with pytest.raises(
        UserError, match=r"process is 'continuous', which has no sampler; .* absorbing, uniform"
    ):
        idlm.generate(model)
