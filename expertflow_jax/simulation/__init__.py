"""The engine against a virtual clock: compute cost models and replay of recorded routing. (DESIGN section 7.)"""
