"""What the example workflows say. Notes are drawn at a small size of type: what must be read is in their headings."""

STYLE_FOLDER = "my_style"
SUBJECT_FOLDER = "my_dog"

TRAIN_STEPS = """# Train a style

## 1. Load Checkpoint: choose the model
Its file is not changed.
## 2. SaRA Dataset: drop your pictures on it
Write under each what it shows, or leave it: the trigger word is put before every caption.
## 3. Trigger word, What to draw
The word calls the style up later: one that means nothing else.
## 4. Press Run
The node shows how it learns. At the end a picture is drawn with the new delta, which is in *output/sara*; the \
template *Use a delta* draws more.
"""

TRAIN_SETTINGS = """# If something is not right

## Not Stable Diffusion 1.5? Picture size
Set what your model is made for, for SDXL 1024.
## Too weak? More steps
Then a higher *density*, up to about 6.
## Too strong, or broken pictures? Fewer steps
Or draw with a lower strength.
## Out of memory? A smaller picture size
Keep *batch_size* at 1 and *gradient_checkpointing* on.
## Cancelled? Press Resume on SaRA Train, then Run
It goes on where it stopped.
"""

SUBJECT_STEPS = """# Learn a subject

## 1. Load Checkpoint: choose the model
Its file is not changed.
## 2. SaRA Dataset: drop 4 to 20 pictures of the subject on it
What varies in them is written under each: *on a beach*.
## 3. Trigger word: a rare word and its kind
*a photo of sks dog*. **Its kind** is the same without the rare word: *a photo of a dog*. The model draws others of \
the kind first; they keep it from making every dog yours.
## 4. Press Run
The delta is saved in *output/sara*, and a picture is drawn with it.
"""

SUBJECT_SETTINGS = """# If something is not right

## Not Stable Diffusion 1.5? Picture size
Set what your model is made for, for SDXL 1024.
## Not learned? More steps
Then a higher *density*.
## Every dog looks like yours? More of the others
*batch_size* of **How many others**, or a higher *prior_weight*.
## Photographs of others? A second SaRA Dataset
Its latents and conditioning go to *class_latents* and *class_positive* in place of the drawn ones.
## Out of memory? A smaller picture size
## Cancelled? Press Resume on SaRA Train, then Run
"""

USE_STEPS = """# Use a delta

## 1. Load Checkpoint: choose the model
The one that the delta was trained on.
## 2. SaRA Loader: choose the delta
They are in *output/sara* and *models/sara*. Press **R** if a new one is not in the list.
## 3. Prompt: say what to draw
The trigger word that the delta was saved with is put before it.
## 4. Press Run
*strength* 1 is what was trained, 0 is the model alone; try 0.5 to 1.5.
"""

COMPARE = """# With and without

## The lower row draws the same without the delta
Both rows have the seed of the node *Seed*. To save the time, select the lower row's three nodes and press **Ctrl+M**.
## Almost the same picture?
The prompt lacks the words of the captions, or the delta needs more training.
"""

STRENGTHS = ("First strength", "Second strength", "Third strength", "Fourth strength")

COMPARE_STEPS = """# Compare strengths

## 1. Load Checkpoint: choose the model. SaRA Loader: choose the delta
The model that the delta was trained on. The *strength* on the loader does nothing here.
## 2. Four strengths: 0 is the model alone, 1 what was trained
## 3. Prompt: say what to draw, and press Run
The same picture comes four times, with one strength after the other: take the one where the delta shows and the \
picture is still whole.
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
