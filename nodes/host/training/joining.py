"""Which samples of a batch go through the model together.

Some networks take for granted that all of a batch is one picture, with a text and without: what they read of the first
sample they use for all, or they put one half in the other's place. Their samples go through one by one.
"""

from .dataset import HostSample


def joinable(model, batch: list[HostSample]) -> list[list[int]]:
    """Positions in the batch, grouped so that each group can go through the host's model at once."""
    groups: list[list[int]] = []
    for position, sample in enumerate(batch):
        for group in groups:
            if batch[group[0]].can_join(sample) and not _mixes_samples(model, sample):
                group.append(position)
                break
        else:
            groups.append([position])
    return groups


def _mixes_samples(model, sample: HostSample) -> bool:
    return (
        # The next noise level (HunyuanImage 2.1 distilled) and the reference pictures (HiDream-O1) are the first one's.
        getattr(model.diffusion_model, "time_r_in", None) is not None
        or "ref_pixel_values" in sample.conditions
        # So is which of the guides' tokens their mask calls padding (LTX).
        or "keyframe_idxs" in sample.conditions
        # Positions of a first picture are written into memory that all of a batch share (HunyuanVideo).
        or "ref_latent" in sample.conditions
        # The halves of the batch change places (Hunyuan3D 2.1).
        or type(model).__name__ == "Hunyuan3Dv2_1"
    )
