"""The expert cache engine: host store, device slots, link, cache and miss policies, budget. (DESIGN section 7.)"""
