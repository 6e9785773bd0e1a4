"""Tasks that a study scores: VQA v2 and MMBench, read from their official files; digit scenes written as both."""
