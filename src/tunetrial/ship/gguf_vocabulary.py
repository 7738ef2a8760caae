"""A tokenizer as GGUF states it: byte-level BPE with GPT-2's rule for words, and what it does at the ends of a text.

llama.cpp knows a tokenizer's rules by a name alone. A name whose rules differ gives other tokens without an error, so
that any other tokenizer is refused here.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tunetrial.core.errors import ModelError
from tunetrial.engine.texts import PLAIN_TEMPLATE
from tunetrial.ship.gguf_head import package

if TYPE_CHECKING:
    from gguf import GGUFWriter

OTHERWISE = "let llama.cpp's converter write it (--llama-cpp FOLDER)"
PLAIN_BPE = {
    "type": "BPE",
    "dropout": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


def add(writer: "GGUFWriter", folder: Path, rows: int) -> None:
    """Add a folder's tokenizer and chat template to a GGUF.

    A base without a template gets the one by which tunetrial writes conversations for it: left out, llama.cpp would
    take another.

    Args:
        rows: Of the embedding; ids beyond the tokenizer's are stated as unused.
    Raises:
        ModelError: The tokenizer is not byte-level BPE with GPT-2's rule, or has no end-of-text token.
    """
    path = folder / "tokenizer.json"
    read = _plain_bpe(path)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{folder}: tokenizer: no end-of-text token, so no answer could end; add eos_token to its config"
        )
    tokens, types = _tokens(read, rows, path)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([_merge(pair) for pair in read["model"]["merges"]])
    bos = tokenizer.bos_token_id
    writer.add_bos_token_id(tokenizer.eos_token_id if bos is None else bos)  # left out it would be token 11
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(begins_by_itself(tokenizer, path))
    writer.add_add_eos_token(False)
    writer.add_chat_template(_template(tokenizer, folder))


def begins_by_itself(tokenizer: PreTrainedTokenizerBase, path: Path) -> bool:
    """Whether the tokenizer puts its beginning-of-text token before a text, as seen on one.

    An end-of-text token after it is passed over: training, too, leaves it out of prompts.
    """
    bare, made = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
    begun = made[:-1] if len(made) > len(bare) and made[-1] == tokenizer.eos_token_id else made
    if begun not in (bare, [tokenizer.bos_token_id, *bare]):
        raise ModelError(f"{path}: post_processor: a text is put between other tokens, got {made}; {OTHERWISE}")
    return begun != bare


def _plain_bpe(path: Path) -> dict:
    """Read a `tokenizer.json`, refusing any but byte-level BPE with GPT-2's rule."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        model, rule = read["model"], read["pre_tokenizer"] or {}
        seen = {f"model.{name}": (model.get(name, plain), plain) for name, plain in PLAIN_BPE.items()}
        seen |= {f"pre_tokenizer.{name}": (rule.get(name, True), plain) for name, plain in BYTE_LEVEL.items()}
        seen["normalizer"] = (read.get("normalizer"), None)
        for added in read.get("added_tokens") or ():
            for name in ("single_word", "lstrip", "rstrip"):
                seen[f"added_tokens: {added['content']}: {name}"] = (added.get(name, False), False)
        seen["model.vocab: bytes left out"] = (sorted(set(bytes_to_unicode().values()) - set(model["vocab"])), [])
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; save the tokenizer with transformers first") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{path}: not a tokenizer of the tokenizers library; restore the file") from None
    if not model.get("merges"):
        raise ModelError(f"{path}: model.merges: llama.cpp wants some, got none; use a base whose tokens are not bytes")
    for name, (found, plain) in seen.items():
        if found != plain:
            got = f"got {json.dumps(found)[:60]}"
            raise ModelError(f"{path}: {name}: byte-level BPE as GPT-2's has {json.dumps(plain)}, {got}; {OTHERWISE}")
    return read


def _tokens(read: dict, rows: int, path: Path) -> tuple[list[str], list[int]]:
    """The text and the type of every row of the embedding; rows that are no token's are unused."""
    kinds = package().TokenType
    tokens = {number: (token, kinds.NORMAL) for token, number in read["model"]["vocab"].items()}
    for added in read.get("added_tokens") or ():
        tokens[added["id"]] = (added["content"], kinds.CONTROL if added["special"] else kinds.USER_DEFINED)
    if max(tokens) >= rows:
        raise ModelError(f"{path}: more tokens than the embedding has rows, got id {max(tokens)} of {rows}; restore it")
    every = [tokens.get(row, (f"[unused{row}]", kinds.UNUSED)) for row in range(rows)]
    return [token for token, _ in every], [int(kind) for _, kind in every]


def _merge(pair: str | list[str]) -> str:
    return pair if isinstance(pair, str) else " ".join(pair)


def _template(tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    """The chat template as it is used in training; where there is no beginning of text, it must not ask for one."""
    template = PLAIN_TEMPLATE if tokenizer.chat_template is None else tokenizer.get_chat_template()
    if tokenizer.bos_token_id is None:
        template = template.removeprefix("{{ bos_token }}")
        if "bos_token" in template:
            raise ModelError(f"{folder}: chat template: asks for bos_token, got none; add bos_token to its config")
    return template
