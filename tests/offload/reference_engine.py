"""A plain model of the engine and of every policy: lists, dictionaries and loops, one event after the other.

Written from the engine's docstring for comparison in tests, with nothing shared but the way the forecast's value is
rounded. Axes: H steps of the horizon, L MoE layers, E experts. A key is layer * E + expert.
"""

import math

import numpy as np

EMPTY, MOVING, READY = "empty", "moving", "ready"


def shares(num_slots, num_layers):
    """Slots of each layer, first layers one more."""
    if num_slots < num_layers:
        return [[layer % num_slots] for layer in range(num_layers)]
    lists, start = [], 0
    for layer in range(num_layers):
        size = num_slots // num_layers + (layer < num_slots % num_layers)
        lists.append(list(range(start, start + size)))
        start += size
    return lists


class Reference:
    def __init__(self, policy, num_slots, num_layers, num_experts, seconds, latency, window):
        self.policy, self.L, self.E, self.window = policy, num_layers, num_experts, window
        self.seconds, self.latency = seconds, latency
        self.slots = [{"key": -1, "state": EMPTY, "used": 0, "fresh": False} for _ in range(num_slots)]
        self.now = self.link_free = 0.0
        self.flying = []  # (arrival, slot), in order
        self.urgent, self.background, self.needed, self.pinned = [], [], set(), set()
        self.tick = 0
        self.counted = -1
        self.counts = dict.fromkeys(
            ["hits", "late", "misses", "corrections", "prefetches", "urgent_transfers", "background_transfers"], 0
        )
        self.counts["wasted_prefetches"] = 0
        self.stall = 0.0
        self.frequency = np.full((num_layers, num_experts), 0.1, np.float32)
        self.start_frequency, self.asked, self.called_for = self.frequency.copy(), set(), None
        self.horizon, self.layer, self.view = None, -1, None
        self.working, self.layer_seconds, self.before = None, 0.0, None
        for layer, numbers in enumerate(shares(num_slots, num_layers)):
            for expert, number in enumerate(numbers):
                if self.slots[number]["state"] == EMPTY and expert < num_experts:
                    self.slots[number].update(key=layer * num_experts + expert, state=READY)

    # the link

    def advance(self, moment):
        while True:
            while self.flying and self.flying[0][0] <= self.now:
                self.slots[self.flying.pop(0)[1]]["state"] = READY
            if self.link_free <= self.now and len(self.flying) < self.window and self.start_transfer():
                continue
            coming = [t for t in [arrival for arrival, _ in self.flying] + [self.link_free] if t > self.now]
            if not coming or min(coming) > moment:
                self.now = max(self.now, moment)
                return
            self.now = min(coming)

    def start_transfer(self):
        if self.urgent:
            number = self.find_slot(self.urgent[0], urgent=True)
            if number is None:
                return False
            self.reserve(self.urgent.pop(0), number, "urgent_transfers")
            return True
        key = self.prefetch()
        if key is not None and (number := self.find_slot(key, urgent=False)) is not None:
            self.reserve(key, number, "prefetches")
            return True
        for key in list(self.background):
            if self.slot_of(key) is not None:
                self.background.remove(key)
            elif (number := self.find_slot(key, urgent=False)) is not None:
                self.background.remove(key)
                self.reserve(key, number, "background_transfers")
                return True
        return False

    def reserve(self, key, number, kind):
        slot = self.slots[number]
        assert slot["key"] not in self.needed, "an expert that the running layer needs was evicted"
        self.counts["wasted_prefetches"] += slot["fresh"]
        slot.update(key=key, state=MOVING, used=self.tick, fresh=kind == "prefetches")
        self.pinned.discard(number)
        if key in self.needed:
            self.pinned.add(number)
        self.counts[kind] += 1
        self.link_free = self.now + self.seconds
        self.flying.append((self.link_free + self.latency, number))

    def slot_of(self, key):
        return next((number for number, slot in enumerate(self.slots) if slot["key"] == key), None)

    def ready(self, key):
        number = self.slot_of(key)
        return number is not None and self.slots[number]["state"] == READY

    def find_slot(self, key, urgent):
        home = range(len(self.slots))
        if self.policy == "cache_moe":
            home = shares(len(self.slots), self.L)[key // self.E]
        for number in home:
            if self.slots[number]["state"] == EMPTY:
                return number
        candidates = [n for n in home if self.slots[n]["state"] == READY and n not in self.pinned]
        return self.victim(key, candidates, urgent) if candidates else None

    # the policies

    def least_recent(self, candidates):
        return min(candidates, key=lambda n: (self.slots[n]["used"], self.slots[n]["key"]))

    def next_use(self, key):
        layer, expert = divmod(key, self.E)
        for h in range(0 if self.horizon is None else len(self.horizon)):
            if self.horizon[h][layer][expert] > 0.5 and (h > 0 or layer > self.layer):
                return h * self.L + layer
        return math.inf

    def value(self, key):
        layer, expert = divmod(key, self.E)
        one = np.float32(1)
        steps = self.start_frequency[None] if self.horizon is None else self.horizon
        uses, never = [], one
        self.chance[key] = np.float32(0)
        for h in range(len(steps)):
            distance = h * self.L + layer - self.layer
            if h == 0 and layer in self.asked:
                continue
            first = never * np.float32(steps[h][layer][expert])
            never = never - first
            self.chance[key] = max(self.chance[key], first)
            if distance > 0:
                uses.append(first * (one / np.float32(distance)))
        often = self.frequency[layer, expert]
        wait = np.float32(len(steps) * self.L + layer - self.layer - self.L)
        value = never * often / (often * wait + np.float32(self.L))
        for use in uses:
            value = value + use
        return value

    def least_chance(self):
        working = 0.4 if self.working is None else self.working
        if working >= 0.5:
            return np.float32(0.3)
        return np.float32(0.75 if working >= 0.15 else 1)

    def look(self):
        if self.view is None:
            self.chance = {}
            self.values = [self.value(key) for key in range(self.L * self.E)]
            absent = (key for key in range(self.L * self.E) if self.slot_of(key) is None)
            self.view = {key for key in absent if self.chance[key] >= self.least_chance()}

    def starved(self):
        return self.working is not None and self.working < 0.25

    def hidden(self):
        return self.layer_seconds / self.seconds if self.seconds > 0 else math.inf

    def first_use(self, key, step):
        """P(first used in that step)."""
        layer, expert = divmod(key, self.E)
        steps = self.start_frequency[None] if self.horizon is None else self.horizon
        never = np.float32(1)
        for h in range(1 if layer in self.asked else 0, step):
            never = never - never * np.float32(steps[h][layer][expert])
        return never * np.float32(steps[step][layer][expert])

    def worth(self, key, victim):
        count = 1 if self.horizon is None else len(self.horizon)
        layer = key // self.E
        step = 0 if layer > self.layer else 1
        if step >= count:
            return False
        saved = self.first_use(key, step) * min(1.0, (step * self.L + layer - self.layer) * self.hidden())
        lost = np.float32(0)
        for h in range(0 if victim // self.E > self.layer else 1, count):
            lost = lost + self.first_use(victim, h)
        return saved > lost

    def prefetch(self):
        keys = range(self.L * self.E)
        if self.policy == "oracle":
            absent = [key for key in keys if self.slot_of(key) is None]
            key = min(absent, key=lambda key: (self.next_use(key), key), default=None)
            return None if key is None or self.next_use(key) == math.inf else key
        if self.policy == "expertflow":
            self.look()
            while self.view:
                key = max(self.view, key=lambda key: (self.values[key], -key))
                if self.slot_of(key) is None:
                    return key
                self.view.remove(key)
        return None

    def victim(self, key, candidates, urgent):
        held = [self.slots[n]["key"] for n in candidates]
        if self.policy == "oracle":
            furthest = max(self.next_use(k) for k in held)
            if not urgent and furthest <= self.next_use(key):
                return None
            candidates = [n for n, k in zip(candidates, held, strict=True) if self.next_use(k) == furthest]
        elif self.policy == "expertflow":
            self.look()
            lowest = min(self.values[k] for k in held)
            if not urgent and lowest * np.float32(1.1) >= self.values[key]:
                return None
            if self.starved() and urgent:
                row = range(self.layer * self.E, (self.layer + 1) * self.E)
                running = [k for k in row if self.ready(k) and self.slot_of(k) in self.pinned]
                if any(self.values[k] < lowest for k in running):
                    return None
            candidates = [n for n, k in zip(candidates, held, strict=True) if self.values[k] == lowest]
            chosen = self.least_recent(candidates)
            if self.starved() and not urgent and not self.worth(key, self.slots[chosen]["key"]):
                return None
        return self.least_recent(candidates)

    def observe(self, layer, experts):
        used = np.zeros(self.E, np.float32)
        used[experts] = 1
        self.frequency[layer] += 0.1 * (used - self.frequency[layer])
        self.layer = layer
        self.asked.add(layer)
        self.view = None

    # what the engine's caller sees

    def begin_step(self, horizon):
        if horizon is not None:
            horizon = np.rint(horizon * 1024) / 1024
        self.advance(self.now)
        self.release()
        if self.before is not None and self.now > self.before[0] and self.tick > self.before[2]:
            share = 1 - (self.stall - self.before[1]) / (self.now - self.before[0])
            each = (self.now - self.before[0] - self.stall + self.before[1]) / (self.tick - self.before[2])
            if self.working is None:
                self.working, self.layer_seconds = share, each
            else:
                self.working += 0.3 * (share - self.working)
                self.layer_seconds += 0.3 * (each - self.layer_seconds)
        self.before = self.now, self.stall, self.tick
        self.horizon = horizon if self.policy in ("oracle", "expertflow") else None
        self.called_for = None if self.horizon is None else self.horizon[0]
        self.layer, self.view, self.asked = -1, None, set()
        self.start_frequency = self.frequency.copy()
        self.advance(self.now)

    def update_horizon(self, horizon):
        horizon = np.rint(horizon * 1024) / 1024
        self.advance(self.now)
        if self.policy in ("oracle", "expertflow"):
            self.horizon, self.called_for, self.view = horizon, horizon[0], None
        self.advance(self.now)

    def end_step(self):
        self.advance(self.now)
        self.release()
        self.advance(self.now)

    def release(self):
        self.pinned, self.needed, self.urgent, self.counted = set(), set(), [], -1

    def spend(self, seconds):
        self.advance(self.now + seconds)

    def count(self, keys, hits):
        self.tick += 1
        for key in keys:
            number = self.slot_of(key)
            self.counts["misses" if number is None else "hits" if key in hits else "late"] += 1
            if number is not None:
                self.slots[number]["fresh"] = False

    def serve(self, layer, experts, seconds):
        """A layer-step; `seconds(round)` of compute follow each round. Returns the rounds."""
        keys = [layer * self.E + int(e) for e in experts]
        self.advance(self.now)
        counted = self.counted == layer
        self.release()
        hits = [key for key in keys if self.ready(key)]
        missing = [key for key in keys if self.slot_of(key) is None]
        if not counted:
            self.count(keys, hits)
            if self.called_for is not None:
                self.counts["corrections"] += sum(self.called_for.reshape(-1)[key] < 0.5 for key in missing)
            self.observe(layer, experts)
        for key in keys:
            if key not in missing:
                self.pinned.add(self.slot_of(key))
                self.slots[self.slot_of(key)]["used"] = self.tick
        if self.policy == "expertflow" and len(missing) > 1:
            self.look()
            missing.sort(key=lambda key: (self.values[key], key))
        self.needed, self.urgent = set(keys), list(missing)
        self.advance(self.now)
        rounds, ready = [], hits
        while True:
            if ready:
                rounds.append(tuple(key % self.E for key in ready))
                self.spend(seconds(rounds[-1]))
                for key in ready:
                    self.pinned.discard(self.slot_of(key))
                    self.needed.discard(key)
                self.advance(self.now)
            if not self.needed:
                break
            while not (ready := [key for key in sorted(self.needed) if self.ready(key)]):
                before = self.now
                self.advance(self.flying[0][0])
                self.stall += self.now - before
        self.release()
        self.advance(self.now)
        return rounds

    def usable(self, layer):
        self.advance(self.now)
        self.release()
        row = range(layer * self.E, (layer + 1) * self.E)
        self.pinned = {self.slot_of(key) for key in row if self.ready(key)}
        return np.array([self.ready(key) for key in row])

    def note_lossy(self, layer, experts, usable):
        keys = [layer * self.E + int(e) for e in experts]
        self.count(keys, [key for key in keys if usable[key % self.E]])
        self.counted = layer
        for key in keys:
            if usable[key % self.E]:
                self.slots[self.slot_of(key)]["used"] = self.tick
        self.observe(layer, experts)
        for key in keys:
            if self.slot_of(key) is None and key not in self.background:
                self.background.append(key)
        self.background = self.background[-len(self.slots) :]
        self.advance(self.now)
