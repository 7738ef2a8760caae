"""tunetrial: find out by trial whether to fine-tune fully, with LoRA or with QLoRA."""

__version__ = "0.1.0"
__all__ = ["__version__"]
