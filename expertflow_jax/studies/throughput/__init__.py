"""Side-by-side measurements of the offload engine under the real clock, against the physical limit."""
