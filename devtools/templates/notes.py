"""What the example workflows say. Notes are drawn at a small size of type: what must be read is in their headings."""

STYLE_FOLDER = "my_style"
SUBJECT_FOLDER, CLASS_FOLDER = "my_dog", "dogs"

TRAIN_STEPS = f"""# Train a style

## 1. Load Checkpoint: choose the model
Its file is not changed.
## 2. Load Image-Text: choose the folder of your pictures
In ComfyUI's folder *input*, make a folder like *{STYLE_FOLDER}*: the pictures and, beside each, its caption in a text \
file of the same name, *cat.png* and *cat.txt*. Begin every caption with the same words, like *my style, a cat on a \
chair*: they call the style up later. A new folder is in the list after pressing **R**.
## 3. Press Run
The delta is saved in *output/sara*. The template *Use a delta* draws with it.
"""

TRAIN_SETTINGS = """# If something is not right

## Not Stable Diffusion 1.5? Picture size
Set what your model is made for, for SDXL 1024 × 1024.
## Too weak? More steps
Then a higher *density*, up to about 6.
## Too strong, or broken pictures? Fewer steps
Or draw with a lower strength.
## Out of memory? Smaller pictures
Keep *batch_size* at 1 and *gradient_checkpointing* on.
## Cancelled? Press R, choose the snapshot under resume, Run
It goes on where it stopped.
"""

SUBJECT_STEPS = f"""# Learn a subject

## 1. Load Checkpoint: choose the model
Its file is not changed.
## 2. Subject: choose the folder of its pictures
4 to 20 pictures in a folder like *input/{SUBJECT_FOLDER}* and, beside each, its caption in a text file of the same \
name, *1.png* and *1.txt*. Name it by a rare word and its kind: *a photo of sks dog on a beach*.
## 3. Others of its kind: choose a second folder
50 to 200 pictures of other dogs in a folder like *input/{CLASS_FOLDER}*, captioned without the rare word: *a photo of \
a dog*. The model itself can draw them. They keep it from making every dog yours.
## 4. Press Run
The delta is saved in *output/sara*. The template *Use a delta* draws with it.
"""

SUBJECT_SETTINGS = """# If something is not right

## Not Stable Diffusion 1.5? Picture size, twice
Set what your model is made for, for SDXL 1024 × 1024.
## Not learned? More steps
Then a higher *density*.
## Every dog looks like yours? More of the others
Or a higher *prior_weight*.
## No pictures of others? Delete the lower row
It then trains on the subject alone.
## Out of memory? Smaller pictures
Keep *batch_size* at 1 and *gradient_checkpointing* on.
## Cancelled? Press R, choose the snapshot under resume, Run
"""

USE_STEPS = """# Use a delta

## 1. Load Checkpoint: choose the model
The one that the delta was trained on.
## 2. SaRA Loader: choose the delta
They are in *output/sara* and *models/sara*. Press **R** if a new one is not in the list.
## 3. Prompt: begin it with the words of the captions
## 4. Press Run
*strength* 1 is what was trained, 0 is the model alone; try 0.5 to 1.5.
"""

COMPARE = """# With and without

## The lower row draws the same without the delta
Both rows have the seed of the node *Seed*. To save the time, select the lower row's three nodes and press **Ctrl+M**.
## Almost the same picture?
The prompt lacks the words of the captions, or the delta needs more training.
"""

BAKE_STEPS = """# Bake a delta

## 1. SaRA Loader: choose the delta
It needs no model here, and its own *strength* does nothing.
## 2. SaRA Bake: choose the checkpoint
The one that the delta was trained on. Its file is not changed.
## 3. Press Run
The new checkpoint, as large as the old one, is in *output/checkpoints* and, after pressing **R**, in the list of \
**Load Checkpoint**. Any program that reads checkpoints can use it, without SaRA.
"""

MERGE_STEPS = """# Merge two styles

## 1. First style, Second style: choose the deltas
## 2. SaRA Merge: say how much of each
*weights*, like *0.6, 0.6*. A new input appears for a third delta. *sum* adds the changes; where they work against \
each other (the report says so), try *ties*.
## 3. Load Checkpoint: choose the model
The one that both deltas were trained on.
## 4. Prompt: use the words of both, and press Run
**SaRA Save** would keep the merged delta, **SaRA Bake** put it into a checkpoint.
"""

INSPECT_STEPS = """# Inspect and extract

## 1. SaRA Extract: choose the base and the tuned checkpoint
The delta is their largest differences; neither file is changed. *density* is the part that is kept, in per cent. The \
report says how much of the difference that holds.
## 2. Press Run
**SaRA Inspect** shows what the delta is and where in the model it lies; **SaRA Save** keeps it in *output/sara*.
## For training: connect a model to SaRA Inspect
It says how many weights lie below a *threshold*, and what they are worth.
"""

CONVERT_STEPS = """# Convert a LoRA

## 1. SaRA Convert: choose the file and its model
*file_name*: a LoRA, or another kind of adapter, in *models/loras*. *base_name*: the model that it was made for.
## 2. Press Run
A SaRA file is saved in *output/sara*; **SaRA Loader** has it after pressing **R**. The report says how near it is.
## The other way
*file_name* none, a **SaRA Loader** connected to *delta*, and *to* lora.
"""
