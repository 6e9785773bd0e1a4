"""Pre-gated MoE (2308.12066, sections 4.1 to 4.3): the gate of one layer decides what the next one computes.

The pre-gate of layer l names the experts of layer l + 1 *and* their weights; no router decides at run time but that
of the first layer. So what travels is what is used, always, and the double buffer of `pregated_forecast` never
mispredicts.
It changes the model: answers are those of a network with other routers. The paper trains the gates in when it
fine-tunes (2,048 steps from a pretrained Switch). Liberty: here they are distilled from the routers and the model stays
as it is (`train.pregate`), so that its answers may suffer more.
"""

from expertflow_jax.offload.policies.pregated_forecast import PregatedForecast


class Pregated(PregatedForecast):
    """The double buffer with gates in the routers' place."""

    name = "pregated"
    lossless = False
