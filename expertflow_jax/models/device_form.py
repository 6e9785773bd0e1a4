"""How experts lie and run on a device: the few things in which a GPU and the CPU backend want different programs.

Everything else is the same code with another of these arguments, so the GPU's way can be run and tested on a CPU. One
value is chosen where a model is loaded (`device_form`); its stages and every engine that serves it share it.
"""

import dataclasses
from typing import Literal

import jax

from expertflow_jax import names
from expertflow_jax.models.experts import BufferLayout, ExpertLayout


@dataclasses.dataclass(frozen=True)
class DeviceForm:
    """One way to hold and to run experts.

    Attributes:
      slots: "in_place": a slot has arrays of its own, which the next expert overwrites by donation. "replaced": the
        evicted arrays are deleted and the next expert put anew. "pool": one array for all slots, into which an expert
        is copied when it has arrived beside it, and a kernel that indexes it.
      least_rows: of an expert in a group. A product with one row is no matrix product to XLA on a GPU: it multiplies
        and adds, and fuses the last expert's sum with what follows, so that a group's bits depend on its size.
      apart: each expert of a group is computed on its own and all of them before the rows are put in place, which
        keeps the scatter free of arithmetic and weights from being joined.
      reads_last: slots whose expert may still be read by a running computation are the last to be given away.
      widens: narrow experts are multiplied in float32, for which a copy is made.
      staged: experts on their way that take memory beside their slots.
      interpreted: kernels are not compiled but carried out step by step, for a backend that cannot compile them.
    """

    slots: Literal["in_place", "replaced", "pool"]
    least_rows: int
    apart: bool
    reads_last: bool
    widens: bool
    staged: int = 0
    interpreted: bool = False

    @property
    def pooled(self) -> bool:
        """Whether all slots are one array."""
        return self.slots == "pool"

    @property
    def separate(self) -> "DeviceForm":
        """The form for slots that hold experts of several layouts, which no pool does."""
        return dataclasses.replace(self, slots="replaced", reads_last=True, staged=0) if self.pooled else self

    def on(self, device: jax.Device) -> "DeviceForm":
        """The same as `device` can run it: a CPU cannot compile the pool's kernel."""
        return dataclasses.replace(self, interpreted=True) if self.pooled and device.platform == "cpu" else self

    def scratch_bytes(self, layout: BufferLayout) -> int:
        """Device bytes that moving and running experts takes beside their slots."""
        matrices = isinstance(layout, ExpertLayout)  # as they lie: nothing to restore
        unpacking = 0 if matrices and not self.widens else layout.scratch_bytes
        return unpacking + self.staged * layout.nbytes


# Overwriting takes 0.1 to 0.6 of the time of a fresh buffer on CPU (no new pages), and the write itself waits for
# readers of that slot.
IN_PLACE = DeviceForm("in_place", least_rows=1, apart=False, reads_last=False, widens=True)
# On a GPU only a plain `device_put` travels on the copy stream, beside compute.
REPLACED = DeviceForm("replaced", least_rows=2, apart=True, reads_last=True, widens=False)
# An expert is copied into its slot in the order of dispatch, so slots that are still read need not come last.
POOL = DeviceForm("pool", least_rows=2, apart=True, reads_last=False, widens=False, staged=2)
GPU = POOL
INTERPRETED_POOL = dataclasses.replace(POOL, interpreted=True)
FORMS: dict[str, DeviceForm] = {form.slots: form for form in (IN_PLACE, REPLACED, POOL)}


def device_form(device: jax.Device | None = None) -> DeviceForm:
    """The form for a device, the first local one by default."""
    forms = {"cpu": IN_PLACE, "gpu": GPU, "cuda": GPU, "rocm": GPU}
    return forms.get((device or jax.local_devices()[0]).platform, REPLACED)


def named_form(name: str | None) -> DeviceForm | None:
    """The form that a caller or a config names; None for None or an empty name: what suits the device.

    Raises:
      InputError: there is none of this name.
    """
    return None if name is None or name == "" else FORMS[names.find("device_form", name, FORMS)]
