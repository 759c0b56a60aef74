"""The numbers the demo's scripts, workflows and tests share."""

# Sampling (KSampler), the same for the base, the style and the judging.
SIZE = 64
SAMPLER, SCHEDULER = "ddim", "ddim_uniform"
SAMPLE_STEPS, GUIDANCE = 20, 2.5

# The style and its trigger; a caption is "neon style, a handwritten digit three".
STYLE = "neon style"

# SaRATrain's inputs for the style; a learning rate of 0 is the paper's rule.
TRAINING = {
    "select_by": "density",
    "density": 5.0,
    "steps": 200,
    "batch_size": 8,
    "learning_rate": 0.0,
    "seed": 0,
}
