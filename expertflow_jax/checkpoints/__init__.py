"""Hugging Face safetensors to our trees and back; one name table per family."""

from expertflow_jax.checkpoints.expert_files import ExpertFiles
from expertflow_jax.checkpoints.load import load_dense_and_experts, load_model
from expertflow_jax.checkpoints.save import save_hf

__all__ = ["ExpertFiles", "load_dense_and_experts", "load_model", "save_hf"]
