"""`qlora`: LoRA beside a base that is stored in 4 bits (Dettmers et al. 2023, arXiv:2305.14314)."""

from typing import Literal

from pydantic import Field

from tunetrial.methods.lora import Lora


class QLora(Lora):
    """LoRA with all linear layers of the blocks in NF4 with double quantisation, dequantised to the compute dtype.

    Embeddings, norms and heads stay in the compute dtype. AdamW is the same as in every arm, not a paged one.
    """

    base: Literal["nf4"] = Field(default="nf4", description="storage of the frozen layers", examples=["nf4"])
