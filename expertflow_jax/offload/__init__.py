"""The expert cache engine: host store, slots, link, cache and miss policies, budget. (DESIGN section 7.)"""
