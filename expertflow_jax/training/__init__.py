"""Training of the small MoE vision-language model that the study acts on."""
