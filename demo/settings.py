"""The numbers the demo's scripts, workflows and tests share."""

# Pictures are squares of this many pixels.
SIZE = 64

# Sampling (KSampler), the same for the base, the style and the judging; the negative prompt is empty.
SAMPLER, SCHEDULER = "ddim", "ddim_uniform"
SAMPLE_STEPS, GUIDANCE = 20, 2.5

# The style and its trigger; a caption is "sunset style, a handwritten digit three".
STYLE = "sunset style"

# SaRATrain's inputs for the style; a learning rate of 0 is the paper's rule. Without the adjustment: in a model with
# weights as small as these hardly an element is below θ by the middle of the run, and the rest would train nothing.
TRAINING = {
    "select_by": "density",
    "density": 4.0,
    "steps": 400,
    "batch_size": 8,
    "learning_rate": 0.0,
    "adjust_at": "",
    "seed": 0,
}
