"""The engine on a virtual clock: compute cost models, replay of recorded routing. (DESIGN section 7.)"""
