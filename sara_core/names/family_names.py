"""What a family of models is called in files, now and formerly.

Deltas say in `sara.family` what they were made for. Families that nobody had named yet were written there as their
host's classes are called; they are in files that people have, so those names are known for ever.
"""

FORMER_NAMES = {
    "ACEStep": "ACE-Step",
    "ACEStep15": "ACE-Step 1.5",
    "Boogu": "Boogu-Image",
    "ChromaRadiance": "Chroma Radiance",
    "CogVideoX_I2V": "CogVideoX",
    "CogVideoX_Inpaint": "CogVideoX",
    "CogVideoX_T2V": "CogVideoX",
    "CosmosI2V": "Cosmos 1",
    "CosmosI2VPredict2": "Cosmos Predict2",
    "CosmosT2IPredict2": "Cosmos Predict2",
    "CosmosT2V": "Cosmos 1",
    "DepthAnything3": "Depth Anything 3",
    "ErnieImage": "ERNIE-Image",
    "GenmoMochi": "Mochi 1",
    "HiDream": "HiDream-I1",
    "HiDreamO1": "HiDream-O1",
    "Hunyuan3Dv2": "Hunyuan3D 2",
    "Hunyuan3Dv2_1": "Hunyuan3D 2.1",
    "Hunyuan3Dv2mini": "Hunyuan3D 2 mini",
    "HunyuanDiT": "HunyuanDiT 1.2",
    "HunyuanDiT1": "HunyuanDiT 1.1",
    "HunyuanImage21": "HunyuanImage 2.1",
    "HunyuanImage21Refiner": "HunyuanImage 2.1 Refiner",
    "HunyuanVideo15": "HunyuanVideo 1.5",
    "HunyuanVideo15_SR_Distilled": "HunyuanVideo 1.5 SR",
    "HunyuanVideoI2V": "HunyuanVideo",
    "HunyuanVideoSkyreelsI2V": "SkyReels I2V",
    "Ideogram4": "Ideogram 4",
    "Kandinsky5": "Kandinsky 5",
    "Kandinsky5Image": "Kandinsky 5 Image",
    "Krea2": "Krea 2",
    "LTXAV": "LTX-2",
    "LongCatImage": "LongCat-Image",
    "LotusD": "Lotus",
    "MageFlow": "Mage-Flow",
    "MiniMaxH3": "MiniMax H3",
    "Omnigen2": "OmniGen 2",
    "PixelDiTT2I": "PixelDiT",
    "RT_DETR_v4": "RT-DETR v4",
    "SAM3": "SAM 3",
    "SAM31": "SAM 3.1",
    "SD21UnclipH": "SD2.1 unCLIP-H",
    "SD21UnclipL": "SD2.1 unCLIP-L",
    "SD_X4Upscaler": "SD x4 Upscaler",
    "SV3D_p": "SV3D-p",
    "SV3D_u": "SV3D-u",
    "SVD_img2vid": "Stable Video Diffusion",
    "StableAudio": "Stable Audio",
    "StableAudio3": "Stable Audio 3",
    "Stable_Cascade_B": "Stable Cascade B",
    "Stable_Cascade_C": "Stable Cascade C",
    "Stable_Zero123": "Stable Zero123",
    "WAN21_Camera": "Wan 2.1 Fun Camera",
    "WAN21_CausalAR_T2V": "Wan 2.1 CausVid",
    "WAN21_FlowRVS": "FlowRVS",
    "WAN21_FunControl2V": "Wan 2.1 Fun Control",
    "WAN21_HuMo": "HuMo",
    "WAN21_SCAIL": "SCAIL",
    "WAN21_SCAIL2": "SCAIL-2",
    "WAN21_Vace": "Wan VACE",
    "WAN22_Animate": "Wan 2.2 Animate",
    "WAN22_Camera": "Wan 2.2 Fun Camera",
    "WAN22_S2V": "Wan 2.2 S2V",
    "WAN22_WanDancer": "WanDancer",
    "ZImagePixelSpace": "Z-Image pixel space",
}
# A14B's two experts have the layers of Wan 2.1's 14B, and what fits one fits the other. Only image to video differs,
# and only in what reads the picture; whether a model from text is of 2.1 or of 2.2, its weights do not tell.
WAN_14B, WAN_A14B = "Wan 2.1 / 2.2 A14B", "Wan 2.2 A14B"
_OF_ONE_LAYOUT = {WAN_14B: "Wan 2.1", WAN_A14B: "Wan 2.1"}


def current_name(said: str) -> str:
    """What a family that a file names is called now."""
    return FORMER_NAMES.get(said, said)


def layout_name(said: str) -> str:
    """The same for families, as files name them, whose models have one layout: deltas of them can be merged, and loaded
    on each other's models."""
    name = current_name(said)
    return _OF_ONE_LAYOUT.get(name, name)
